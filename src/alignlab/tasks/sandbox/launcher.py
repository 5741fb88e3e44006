"""The process between ours and the sandbox: reads a job, starts the sandbox, watches it, writes the outcome.

A process of its own, because namespaces, limits and a filter cannot be taken off again, and because ours may hold
threads that must not be forked. Standard library only; `run.BOOT` starts it without the rest of the package.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from typing import Any

from alignlab.tasks.sandbox import inside, namespaces, supervise, syscalls


def main() -> None:
    """Serve one job from standard input."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    json.dump(serve(json.load(sys.stdin)), sys.stdout)


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Run the job's commands; an outcome with the key `refused` when the walls could not be built."""
    contained = not job["unsafe"]
    job["present_processes"] = _present_processes(contained)
    identity: tuple[int, int] | None = None
    if contained:
        try:
            identity = namespaces.enter()
        except OSError as error:
            return {"refused": str(error)}
    else:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    pipes = {name: os.pipe() for name in ("stdout", "stderr", "status")}
    first = os.fork()
    if first == 0:
        for reading, _ in pipes.values():
            os.close(reading)
        streams = (pipes["stdout"][1], pipes["stderr"][1])
        inside.live(job, identity, streams, inside.Report(pipes["status"][1]))
    for _, writing in pipes.values():
        os.close(writing)
    supervisor = supervise.Supervisor(first, job["limits"], contained=contained)
    supervisor.follow({name: reading for name, (reading, _) in pipes.items()})
    return supervisor.outcome()


def _present_processes(contained: bool) -> int:
    """Tasks of this user that the process limit counts besides the sandbox's own.

    Since Linux 5.14 a user namespace counts for itself, and root's identity is used by nothing else.
    """
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if contained and (os.geteuid() == 0 or release >= (5, 14)):
        return 0
    total = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.geteuid():
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return total
