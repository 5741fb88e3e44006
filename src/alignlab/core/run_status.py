"""What can be learnt of a run without opening it: its state, stages and place in the list of runs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError, RunError
from alignlab.core.files import read_json, runs_dir
from alignlab.core.run_lock import is_locked

STATUS_FILE = "status.json"
FORMAT = 1
STATES = ("running", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs."""

    path: Path
    name: str
    state: str
    """running, finished, failed, interrupted (its process is gone) or unreadable."""
    started: float
    """Seconds since 1970."""
    updated: float
    """Seconds since 1970."""
    seed: int | None
    stage: str | None
    """The stage at work, or the one that it stopped in."""
    error: str | None
    """Why it failed."""


def new_status(name: str, seed: int) -> dict[str, Any]:
    """The status of a run that begins now in this process."""
    now = time.time()
    return {
        "format": FORMAT, "name": name, "seed": seed, "state": "running", "pid": os.getpid(),
        "host": socket.gethostname(), "started": now, "updated": now, "stage": None, "error": None,
    }  # fmt: skip


def read_status(path: Path) -> dict[str, Any]:
    """The recorded status, with `running` corrected to `interrupted` where the writer is gone. RunError if no run."""
    if not path.is_dir():
        raise RunError(f"{path} is not a run: there is no such directory")
    if not (path / STATUS_FILE).is_file() or not (path / "config.yaml").is_file():
        raise RunError(f"{path} is not a run directory: it has no {STATUS_FILE} with a config.yaml")
    status = _recorded_status(path)
    if status["state"] == "running" and not _is_alive(path, status):
        status = _recorded_status(path)  # its writer may have ended properly between the two looks
        if status["state"] == "running":
            status["state"] = "interrupted"
    return status


def _recorded_status(path: Path) -> dict[str, Any]:
    try:
        status = read_json(path / STATUS_FILE)
    except DataError as error:
        raise RunError(f"the run {path} cannot be read: {error}") from error
    if not isinstance(status, dict) or status.get("state") not in STATES or "name" not in status:
        raise RunError(f"the run {path} cannot be read: {STATUS_FILE} holds no known state")
    if status.get("format") != FORMAT:
        raise RunError(f"the run {path} has format {status.get('format')!r}, allowed: {FORMAT}")
    return status


def _is_alive(path: Path, status: Mapping[str, Any]) -> bool:
    # The lock alone is not proof: a worker forked by a killed process can hold it a little longer.
    return is_locked(path) and (status.get("host") != socket.gethostname() or _pid_exists(int(status.get("pid", 0))))


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's process
        return True
    return pid > 0


def list_runs(root: str | Path | None = None) -> list[RunSummary]:
    """The runs below `root` (default: `runs_dir()`), oldest first. What is no run is left out."""
    root = Path(root) if root is not None else runs_dir()
    if not root.is_dir():
        return []
    runs = (path for path in root.iterdir() if not path.name.startswith(".") and (path / STATUS_FILE).is_file())
    return sorted((summarise(path) for path in runs), key=lambda run: (run.started, run.path.name))


def summarise(path: Path) -> RunSummary:
    """The summary of one run directory; a damaged one is `unreadable` and says why."""
    try:
        status = read_status(path)
        return RunSummary(
            path=path, name=str(status["name"]), state=status["state"], started=float(status["started"]),
            updated=float(status["updated"]), seed=status.get("seed"), stage=status.get("stage"),
            error=status.get("error"),
        )  # fmt: skip
    except (RunError, KeyError, TypeError, ValueError) as error:
        changed = path.stat().st_mtime
        return RunSummary(path, path.name, "unreadable", changed, changed, None, None, str(error))


def find_run(spec: str, root: str | Path | None = None) -> Path:
    """The directory of a run given as a path, a name below `root`, an unambiguous part of a name, or "latest"."""
    if (Path(spec) / STATUS_FILE).is_file():
        return Path(spec)
    root = Path(root) if root is not None else runs_dir()
    runs = list_runs(root)
    if not runs:
        raise RunError(f"there is no run {spec!r}: {root} has no runs")
    if spec == "latest":
        return runs[-1].path
    matches = [run.path for run in runs if run.path.name == spec] or [r.path for r in runs if spec in r.path.name]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise RunError(f"there is no run {spec!r} in {root}, the latest is {runs[-1].path.name}")
    names = ", ".join(path.name for path in matches[-3:])
    raise RunError(f"{spec!r} fits {len(matches)} runs, name one, such as: {names}")
