"""A run: one directory that records what was done, survives a crash at any moment, and goes on where it stopped.

config.yaml       the full resolved configuration
status.json       state, process, times; replaced atomically
environment.json  versions, git commit, seed, hardware
metrics.jsonl     one line a logged step, append-only
events.jsonl      what happened when, append-only
stages/NAME.json  the recorded output of a finished stage
artifacts/        reports, tables, whatever the run makes
checkpoints/      model and optimiser states
sinks/            copies of the metrics for other tools, if the user wants them
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignlab.core.config import differing_fields, from_dict, to_dict
from alignlab.core.device import peak_memory_bytes, reset_peak_memory
from alignlab.core.errors import ConfigError, RunError
from alignlab.core.files import append_bytes, append_jsonl, atomic_write, mend_tail, writing
from alignlab.core.run_creation import make_run_directory, new_place, pretty_json
from alignlab.core.run_lock import RunLock
from alignlab.core.run_record import RESERVED, RunRecord, StageRecord
from alignlab.core.run_status import STATUS_FILE, RunSummary, find_run, list_runs, new_status, read_status
from alignlab.core.sinks import Sinks, check_sinks

__all__ = ["Run", "RunSummary", "StageRecord", "find_run", "find_same", "list_runs"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_STATUS_EVERY_SECONDS = 5.0


class Run(RunRecord):
    """A run directory. Made by `create`, `open` (to go on writing) or `read` (without taking the lock)."""

    def __init__(self, path: Path, status: dict[str, Any], lock: RunLock | None):
        """Not for callers: use `Run.create`, `Run.open` or `Run.read`."""
        super().__init__(path, status)
        self._lock = lock
        self._sinks: Sinks | None = None
        self._metrics_descriptor: int | None = None
        self._status_written = 0.0

    # Making, opening and reading

    @classmethod
    def create(
        cls,
        config: object,
        *,
        name: str,
        seed: int = 0,
        root: str | Path | None = None,
        path: str | Path | None = None,
        sinks: Sequence[str] = (),
    ) -> Self:
        """Start a new run in `path`, or in a new directory TIME-NAME-SUFFIX below `root` (default: `runs_dir()`).

        `config` is a config dataclass or a plain mapping. Raises RunError if the directory exists or cannot be made,
        ConfigError or MissingExtraError for a sink that is unknown or not installed.
        """
        _check_name(name, "the name of a run")
        check_sinks(sinks)
        plain = _plain_config(config)
        target = Path(path) if path is not None else new_place(name, root)
        lock = make_run_directory(target, plain, name=name, seed=seed)
        try:
            run = cls(target, read_status(target), lock)
            run._sinks = Sinks.open(sinks, target / "sinks", name, plain)
            run.event("created")
        except BaseException:
            lock.release()
            shutil.rmtree(target, ignore_errors=True)  # ours, new, and without a single result
            raise
        return run

    @classmethod
    def open(cls, path: str | Path, *, config: object | None = None, sinks: Sequence[str] = ()) -> Self:
        """Go on with the run in `path`, after mending what a crash tore.

        With `config`, it must equal the recorded one: ConfigError names the fields that differ. Raises RunError if the
        directory holds no run or another process writes it.
        """
        path = Path(path)
        read_status(path)
        check_sinks(sinks)
        lock = RunLock(path)
        try:
            run = cls(path, read_status(path), lock)
            if config is not None:
                _check_same(path, run.config_dict, _plain_config(config))
            for name in ("metrics.jsonl", "events.jsonl"):
                _mend(path / name)
            run._status |= {**new_status(run.name, run.seed), "started": run._status["started"]}
            run._write_status()
            run._sinks = Sinks.open(sinks, path / "sinks", run.name, run.config_dict)
            run.event("opened")
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Look at the run in `path` without writing, even while a process writes it. RunError if there is none."""
        path = Path(path)
        return cls(path, read_status(path), None)

    # Recording

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of one step, here and in the sinks. Logging a (name, step) again replaces it.

        Survives kill -9 from the moment it returns. Raises RunError when the disk is full.
        """
        self._check_writable()
        numbers = {key: float(value) for key, value in metrics.items()}
        row: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for key, number in numbers.items():
            if key in RESERVED:
                raise RunError(f"a metric is named {key!r}, allowed: any name but {' and '.join(RESERVED)}")
            row[key] = number if math.isfinite(number) else str(number)  # JSON has no NaN
        path = self.path / "metrics.jsonl"
        if self._metrics_descriptor is None:
            with writing(path):
                self._metrics_descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # No fsync: the kernel keeps the line when the process dies, and a disk flush a step would slow training.
        append_bytes(self._metrics_descriptor, f"{json.dumps(row)}\n".encode(), path)
        if self._sinks is not None:
            self._report_failures(self._sinks.log(int(step), numbers))
        if time.monotonic() - self._status_written > _STATUS_EVERY_SECONDS:
            self._write_status()

    def event(self, kind: str, **fields: Any) -> None:
        """Append {"time", "kind", ...} to events.jsonl."""
        self._check_writable()
        append_jsonl(self.path / "events.jsonl", [{"time": round(time.time(), 3), "kind": kind, **fields}])

    def write_artifact(self, name: str, data: Any) -> Path:
        """Write `artifacts/NAME` atomically: text or bytes as they are, anything else as JSON. Returns the path."""
        self._check_writable()
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise RunError(f"the name of an artifact is {name!r}, allowed: a relative path without '..'")
        target = self.artifacts / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, data if isinstance(data, str | bytes) else pretty_json(data))
        return target

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The output of stage `name`: the recorded one if it finished before, else that of `work()`, recorded.

        The output must be a dict that JSON can hold and always comes back as JSON gives it, so that a resumed run sees
        the same values as an uninterrupted one. Seconds and peak memory are recorded with it.
        """
        _check_name(name, "the name of a stage")
        record = self.stage_record(name)
        if record is not None:
            return record.output
        self._check_writable()
        attempts = 1 + sum(e["kind"] == "stage_started" and e.get("stage") == name for e in self.events())
        self.event("stage_started", stage=name)
        self._status["stage"] = name
        self._write_status()
        reset_peak_memory()
        started = time.perf_counter()
        output = work()
        if not isinstance(output, dict):
            raise TypeError(f"stage {name} returned {type(output).__name__}, allowed: a dict")
        measured = {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}
        content = pretty_json({"name": name, **measured, "attempts": attempts, "output": output})
        atomic_write(self.path / "stages" / f"{name}.json", content)
        self.event("stage_finished", stage=name, **measured)
        self._status["stage"] = None
        self._write_status()
        recorded: dict[str, Any] = json.loads(content)["output"]
        return recorded

    # End

    def close(self, state: str = "finished", error: str | None = None) -> None:
        """End the run as finished, failed or interrupted and give its directory free. Closing twice is harmless."""
        if self._lock is None:
            return
        if state not in ("finished", "failed", "interrupted"):
            raise RunError(f"the state of a run is {state!r}, allowed: finished, failed, interrupted")
        try:
            if self._sinks is not None:
                self._report_failures(self._sinks.close(state))
            self._status |= {"state": state, "error": error}
            self._write_status()
            self.event("closed", state=state)
        finally:
            if self._metrics_descriptor is not None:
                os.close(self._metrics_descriptor)
                self._metrics_descriptor = None
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        state = "failed" if isinstance(error, Exception) else "interrupted"
        with suppress(RunError):  # the disk is full, most likely: the error on its way out says so already
            self.close(state, f"{type(error).__name__}: {error}"[:2000])

    def _report_failures(self, failures: Sequence[str]) -> None:
        for failure in failures:
            self.event("sink_failed", reason=failure)

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RunError(f"the run {self.path} is not open for writing, open it with Run.open")

    def _write_status(self) -> None:
        self._status["updated"] = time.time()
        atomic_write(self.path / STATUS_FILE, pretty_json(self._status))
        self._status_written = time.monotonic()


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise RunError(f"{what} is {name!r}, allowed: letters, digits, '.', '_', '-', at most 80")


def _plain_config(config: object) -> dict[str, Any]:
    return dict(config) if isinstance(config, Mapping) else to_dict(config)


def _check_same(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples as lists, which is how YAML gave the recorded ones
    fields = differing_fields(recorded, wanted)
    if fields:
        was = ", ".join(f"{field} (was {_at(recorded, field)!r}, now {_at(wanted, field)!r})" for field in fields)
        raise ConfigError(f"the run {path} was started with another config, it differs in {was}")


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part, "missing") if isinstance(value, Mapping) else "missing"
    return value


def _mend(path: Path) -> None:
    """Make a JSONL file that a crash may have torn end in a complete line."""
    if not path.exists():
        return
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        mend_tail(descriptor, path)
    finally:
        os.close(descriptor)


def find_same(name: str, config: object) -> Path | None:
    """The newest run called `name` of exactly this config, finished or not, that no process is writing."""
    for found in reversed(list_runs()):
        if found.name == name and found.state not in ("running", "unreadable"):
            with suppress(ConfigError):  # a run of a version that had other fields
                if from_dict(type(config), Run.read(found.path).config_dict) == config:
                    return found.path
    return None
