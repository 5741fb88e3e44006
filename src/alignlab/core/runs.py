"""A run: one directory that records what was done, survives a crash at any moment, and goes on where it stopped.

    config.yaml       the full resolved configuration
    status.json       state, process, times; replaced atomically
    environment.json  versions, git commit, seed, hardware
    metrics.jsonl     one line a logged step, append-only
    events.jsonl      what happened when, append-only
    stages/NAME.json  the recorded output of a finished stage
    artifacts/        reports, tables, whatever the run makes
    checkpoints/      model and optimiser states
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignlab.core.config import differing_fields, to_dict
from alignlab.core.device import peak_memory_bytes, reset_peak_memory
from alignlab.core.environment import environment
from alignlab.core.errors import ConfigError, RunError
from alignlab.core.files import (
    append_bytes,
    append_jsonl,
    atomic_write,
    mend_tail,
    read_json,
    read_jsonl,
    runs_dir,
    sync_directory,
    writing,
)
from alignlab.core.run_lock import RunLock
from alignlab.core.run_status import (
    STATUS_FILE,
    RunSummary,
    StageRecord,
    find_run,
    list_runs,
    new_status,
    read_status,
)
from alignlab.core.sinks import Sinks, check_sinks
from alignlab.core.yaml_text import dump_yaml, read_yaml

__all__ = ["Run", "RunSummary", "StageRecord", "find_run", "list_runs"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_RESERVED = ("step", "time")
_STATUS_EVERY_SECONDS = 5.0
_NOT_FINITE = {"nan", "inf", "-inf"}


class Run:
    """A run directory. Made by `create`, `open` (to go on writing) or `read` (without taking the lock)."""

    def __init__(self, path: Path, status: dict[str, Any], lock: RunLock | None, sinks: Sinks | None):
        """Not for callers: use `Run.create`, `Run.open` or `Run.read`."""
        self.path = path
        self.config_dict: dict[str, Any] = read_yaml(path / "config.yaml") or {}
        self._status = status
        self._lock = lock
        self._sinks = sinks
        self._metrics_descriptor: int | None = None
        self._status_written = 0.0

    @property
    def name(self) -> str:
        """The name given at creation."""
        return str(self._status["name"])

    @property
    def seed(self) -> int:
        """The seed given at creation."""
        return int(self._status["seed"])

    @property
    def state(self) -> str:
        """running, finished, failed or interrupted."""
        return str(self._status["state"])

    @property
    def artifacts(self) -> Path:
        """The folder of what the run made."""
        return self.path / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """The folder of the model and optimiser states."""
        return self.path / "checkpoints"

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

        `config` is a config dataclass or a plain mapping. Raises RunError if the directory exists or cannot be made.
        """
        _check_name(name, "the name of a run")
        check_sinks(sinks)
        config_dict = dict(config) if isinstance(config, Mapping) else to_dict(config)
        surroundings = environment(seed)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        target = Path(path) if path is not None else Path(root or runs_dir()) / f"{stamp}-{name}-{secrets.token_hex(3)}"
        if target.exists() or target.is_symlink():
            raise RunError(f"run directory {target} exists already, choose another or go on with the run in it")
        # Built beside its place and renamed into it: at no moment is there a half-made run, and of two processes that
        # want one place the second fails, because a directory cannot be renamed onto one with content.
        unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.creating"
        with writing(target):
            unfinished.mkdir(parents=True)
        try:
            lock = RunLock(unfinished)
            with writing(target):
                for folder in ("artifacts", "checkpoints", "stages"):
                    (unfinished / folder).mkdir()
            atomic_write(unfinished / "config.yaml", dump_yaml(config_dict))
            atomic_write(unfinished / "environment.json", _pretty(surroundings))
            atomic_write(unfinished / STATUS_FILE, _pretty(new_status(name, seed)))
            with writing(target):
                os.rename(unfinished, target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_directory(target.parent)
        run = cls(target, read_status(target), lock, Sinks.open(sinks, target, name, config_dict))
        run.event("created")
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
            run = cls(path, read_status(path), lock, None)
            if config is not None:
                run._check_config(config)
            for name in ("metrics.jsonl", "events.jsonl"):
                run._mend(path / name)
            run._status |= {**new_status(run.name, run.seed), "started": run._status["started"]}
            run._write_status()
            run._sinks = Sinks.open(sinks, path, run.name, run.config_dict)
            run.event("opened")
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Look at the run in `path` without writing, even while another process writes it. RunError if there is none."""
        path = Path(path)
        return cls(path, read_status(path), None, None)

    def _check_config(self, config: object) -> None:
        wanted = dict(config) if isinstance(config, Mapping) else to_dict(config)
        wanted = json.loads(json.dumps(wanted))
        recorded = json.loads(json.dumps(self.config_dict))
        fields = differing_fields(recorded, wanted)
        if fields:
            was = ", ".join(f"{field} (was {_at(recorded, field)!r}, now {_at(wanted, field)!r})" for field in fields)
            raise ConfigError(f"the run {self.path} was started with another config, it differs in {was}")

    @staticmethod
    def _mend(path: Path) -> None:
        if path.exists():
            with writing(path):
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
            try:
                mend_tail(descriptor, path)
            finally:
                os.close(descriptor)

    # Recording

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of one step, here and in the sinks. Logging a (name, step) again replaces it.

        Survives kill -9 from the moment it returns. Raises RunError when the disk is full.
        """
        self._writable()
        row: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for key, value in metrics.items():
            if key in _RESERVED:
                raise RunError(f"a metric is named {key!r}, allowed: any name but {' and '.join(_RESERVED)}")
            number = float(value)
            row[key] = number if math.isfinite(number) else str(number)  # JSON has no NaN
        if self._metrics_descriptor is None:
            path = self.path / "metrics.jsonl"
            with writing(path):
                self._metrics_descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # No fsync: the kernel keeps the line when the process dies, and a disk flush a step would slow training.
        append_bytes(self._metrics_descriptor, f"{json.dumps(row)}\n".encode(), self.path / "metrics.jsonl")
        if self._sinks is not None:
            for failure in self._sinks.log(int(step), {key: float(value) for key, value in metrics.items()}):
                self.event("sink_failed", reason=failure)
        self._heartbeat()

    def metrics(self) -> list[dict[str, Any]]:
        """One row {"step": ..., name: number, ...} a step, in order of steps; the last write of a (name, step) wins."""
        path = self.path / "metrics.jsonl"
        rows: dict[int, dict[str, Any]] = {}
        for line in read_jsonl(path) if path.exists() else []:
            row = rows.setdefault(line["step"], {"step": line["step"]})
            for key, value in line.items():
                if key not in _RESERVED:
                    row[key] = float(value) if value in _NOT_FINITE else value
        return [rows[step] for step in sorted(rows)]

    def event(self, kind: str, **fields: Any) -> None:
        """Append {"time", "kind", ...} to events.jsonl."""
        self._writable()
        append_jsonl(self.path / "events.jsonl", [{"time": round(time.time(), 3), "kind": kind, **fields}])

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        path = self.path / "events.jsonl"
        return read_jsonl(path) if path.exists() else []

    def write_artifact(self, name: str, data: Any) -> Path:
        """Write `artifacts/NAME` atomically: text or bytes as they are, anything else as JSON. Returns the path."""
        self._writable()
        target = self.artifacts / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise RunError(f"the name of an artifact is {name!r}, allowed: a relative path without '..'")
        content = data if isinstance(data, str | bytes) else _pretty(data)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, content)
        return target

    # Stages

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The output of stage `name`: the recorded one if it finished before, else that of `work()`, recorded.

        The output must be a dict that JSON can hold and always comes back as JSON gives it, so that a resumed run sees
        the same values as an uninterrupted one. Seconds and peak memory are recorded with it.
        """
        _check_name(name, "the name of a stage")
        record = self._stage_record(name)
        if record is not None:
            return record.output
        self._writable()
        attempts = 1 + sum(e["kind"] == "stage_started" and e.get("stage") == name for e in self.events())
        self.event("stage_started", stage=name)
        self._status["stage"] = name
        self._write_status()
        reset_peak_memory()
        started = time.perf_counter()
        output = work()
        if not isinstance(output, dict):
            raise TypeError(f"stage {name} returned {type(output).__name__}, allowed: a dict")
        measured = {
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(),
            "attempts": attempts,
        }
        atomic_write(self.path / "stages" / f"{name}.json", _pretty({"name": name, **measured, "output": output}))
        self.event("stage_finished", stage=name, **measured)
        self._status["stage"] = None
        self._write_status()
        finished = self._stage_record(name)
        assert finished is not None
        return finished.output

    def stages(self) -> dict[str, StageRecord]:
        """The finished stages in the order in which they finished."""
        names = [event["stage"] for event in self.events() if event["kind"] == "stage_started"]
        names += sorted(path.stem for path in (self.path / "stages").glob("*.json"))
        records = {name: self._stage_record(name) for name in dict.fromkeys(names)}
        return {name: record for name, record in records.items() if record is not None}

    def _stage_record(self, name: str) -> StageRecord | None:
        path = self.path / "stages" / f"{name}.json"
        if not path.exists():
            return None
        record = read_json(path)
        try:
            return StageRecord(**{field: record[field] for field in StageRecord.__dataclass_fields__})
        except (KeyError, TypeError) as error:
            raise RunError(f"{path} is not the record of a stage, delete it to run the stage again") from error

    # Status and end

    def close(self, state: str = "finished", error: str | None = None) -> None:
        """End the run as finished, failed or interrupted and give its directory free. Closing twice is harmless."""
        if self._lock is None:
            return
        if state not in ("finished", "failed", "interrupted"):
            raise RunError(f"the state of a run is {state!r}, allowed: finished, failed, interrupted")
        try:
            if self._sinks is not None:
                for failure in self._sinks.close(state):
                    self.event("sink_failed", reason=failure)
            self.event("closed", state=state)
            self._status |= {"state": state, "error": error}
            self._write_status()
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
        try:
            self.close(state, f"{type(error).__name__}: {error}"[:2000])
        except RunError:  # the disk is full, most likely: the error on its way out says so already
            pass

    def _writable(self) -> None:
        if self._lock is None:
            raise RunError(f"the run {self.path} is not open for writing, open it with Run.open")

    def _heartbeat(self) -> None:
        if time.monotonic() - self._status_written > _STATUS_EVERY_SECONDS:
            self._write_status()

    def _write_status(self) -> None:
        self._status["updated"] = time.time()
        atomic_write(self.path / STATUS_FILE, _pretty(self._status))
        self._status_written = time.monotonic()


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise RunError(f"{what} is {name!r}, allowed: letters, digits, '.', '_', '-', at most 80")


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part, "missing") if isinstance(value, Mapping) else "missing"
    return value
