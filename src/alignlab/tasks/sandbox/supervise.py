"""Watches a sandbox from outside: its time, its memory and its output. Standard library only."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Mapping
from typing import Any

FASTEST_SAMPLE, SLOWER = 0.01, 5
READ = 1 << 16


def descendants(root: int) -> list[int]:
    """`root` and all processes below it; those that end meanwhile are left out."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    waiting.extend(int(child) for child in file.read().split())
        except OSError:
            continue
    return found


def memory_of(pids: list[int]) -> int:
    """Bytes of private and shared memory of these processes; what two of them share counts twice."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return total


class Supervisor:
    """Follows one sandbox to its end; `outcome` holds what is known then."""

    def __init__(self, first: int, limits: Mapping[str, Any], *, contained: bool) -> None:
        self.first, self.limits, self.contained = first, limits, contained
        self.streams: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "status": bytearray()}
        self.cause: str | None = None
        self.peak = 0
        self._started: float | None = None
        self._created = time.monotonic()
        self.seconds = 0.0

    def follow(self, descriptors: Mapping[str, int]) -> None:
        """Read until all ends are closed, which is when no process of the sandbox is left."""
        with selectors.DefaultSelector() as selector:
            for name, descriptor in descriptors.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            next_sample, reaped = 0.0, False
            while selector.get_map():
                for key, _ in selector.select(FASTEST_SAMPLE):
                    if not self._read(key.data, key.fd):
                        selector.unregister(key.fd)
                        os.close(key.fd)
                now = time.monotonic()
                if not reaped and now >= next_sample:
                    self._sample(now)
                    next_sample = now + max(FASTEST_SAMPLE, SLOWER * (time.monotonic() - now))
                if not reaped and os.waitid(os.P_PID, self.first, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    self._finish()
                    reaped = True
            if not reaped:
                self._finish()

    def _read(self, name: str, descriptor: int) -> bool:
        try:
            data = os.read(descriptor, READ)
        except BlockingIOError:
            return True
        stream = self.streams[name]
        if name == "status":
            stream += data
            if self._started is None and b'"ready"' in stream:
                self._started = time.monotonic()
            return bool(data)
        room = self.limits["output_kib"] * 1024 - len(self.streams["stdout"]) - len(self.streams["stderr"])
        stream += data[:room]
        if len(data) > room:
            self._end("output")
        return bool(data)

    def _sample(self, now: float) -> None:
        pids = descendants(self.first)
        used = memory_of(pids)
        self.peak = max(self.peak, used)
        if used > self.limits["memory_mib"] << 20:
            self._end("memory")
        elif now - (self._started or self._created) > self.limits["seconds"]:
            self._end("timeout")

    def _end(self, cause: str) -> None:
        self.cause = self.cause or cause
        self._kill()

    def _kill(self) -> None:
        # In namespaces the kernel ends all processes with the first; without, each must be found.
        pids = [self.first] if self.contained else [*descendants(self.first), *self._left_behind()]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _left_behind(self) -> list[int]:
        return [pid for pid in descendants(os.getpid()) if pid != os.getpid()]

    def _finish(self) -> None:
        os.waitpid(self.first, 0)
        self.seconds = time.monotonic() - (self._started or self._created)
        while not self.contained and (left := self._left_behind()):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
                except (ProcessLookupError, ChildProcessError):
                    continue

    def outcome(self) -> dict[str, Any]:
        """JSON values: the facts that the first process told, what ended the run, the output."""
        facts: dict[str, Any] = {}
        cpu = 0.0
        for line in bytes(self.streams["status"]).splitlines():
            told = json.loads(line)
            cpu += told.pop("cpu", 0.0)
            facts.update(told)
        texts = {name: bytes(self.streams[name]).decode(errors="replace") for name in ("stdout", "stderr")}
        return {**facts, **texts, "cause": self.cause, "seconds": self.seconds, "cpu": cpu, "peak": self.peak}
