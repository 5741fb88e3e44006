"""One run of a sweep: a process of its own, with its output, its run directory and its result beside each other.

jobs/<point>/seed-0/
    run/         the run directory, as the command or the function makes it
    output.txt   everything that the process said
    result.json  finished or failed, why, and the numbers; there is none while it runs or after a crash
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignlab.core.errors import AlignlabError
from alignlab.core.files import atomic_write, read_json
from alignlab.core.runs import Run
from alignlab.research.sweep.config import Over, SweepConfig, combinations, flags, place_of

RESULT, RETURNED = "result.json", "returned.json"


@dataclass(frozen=True)
class Job:
    """One point and one seed; plain data, so that it can be sent to another machine."""

    point: str
    settings: dict[str, Any]
    seed: int
    directory: str
    command: tuple[str, ...]
    over: Over
    environment: dict[str, str] = field(default_factory=dict)
    time_limit: float | None = None

    @property
    def result(self) -> Path:
        return Path(self.directory) / RESULT


@dataclass(frozen=True)
class Result:
    """What became of a job."""

    point: str
    settings: dict[str, Any]
    seed: int
    state: str
    """finished or failed"""
    metrics: dict[str, float]
    error: str
    """One sentence where it failed."""
    seconds: float
    run: str
    """The run directory, below the sweep's."""


def jobs_of(config: SweepConfig, out: Path, *, time_limit: float | None = None) -> list[Job]:
    """All jobs, the first seed of every point first, so that an early look at the table sees them all."""
    jobs = []
    for seed in config.seeds:
        for point, settings in combinations(config).items():
            directory = (out / "jobs" / place_of(point) / f"seed-{seed}").resolve()
            if config.function:
                given = json.dumps({"function": config.function, "settings": settings, "seed": seed})
                command = [sys.executable, "-m", "alignlab.research.sweep.calling", given, str(directory)]
            else:
                command = [sys.executable, "-m", "alignlab", *config.command, *flags(settings)]
                command += ["--seed", str(seed), "--run", str(directory / "run")]
            jobs.append(Job(point, settings, seed, str(directory), tuple(command), config.over, {}, time_limit))
    return jobs


def finished(job: Job) -> Result | None:
    """The result of a job that was done before; None where there is none that can be read."""
    with suppress(AlignlabError, TypeError):
        return Result(**read_json(job.result))
    return None


def run_job(job: Job, stopped: threading.Event | None = None) -> Result:
    """Run the job to its end and keep its result; whatever goes wrong in it is its result.

    `stopped` ends it early, without a result: started again, it goes on.
    """
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    error = _run(job, directory / "output.txt", stopped or threading.Event())
    if stopped is not None and stopped.is_set():
        return Result(job.point, job.settings, job.seed, "stopped", {}, "stopped with the sweep", 0.0, "")
    metrics: dict[str, float] = {}
    if not error:
        try:
            metrics = metrics_of(directory, job.over)
        except AlignlabError as problem:
            error = f"its metrics cannot be read: {problem}"
    place = f"jobs/{directory.parent.name}/{directory.name}/run"
    state = "failed" if error else "finished"
    seconds = round(time.monotonic() - started, 2)
    result = Result(job.point, job.settings, job.seed, state, metrics, error, seconds, place)
    atomic_write(job.result, json.dumps(asdict(result), indent=1))
    return result


def _run(job: Job, output: Path, stopped: threading.Event) -> str:
    """Empty where the process ended well, else one sentence about how it did not."""
    with output.open("ab") as log:
        began = log.tell()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **job.environment}
        process = subprocess.Popen(
            job.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            code = _wait(process, job.time_limit, stopped)
            if code is None:
                return f"not done after {job.time_limit:g} s (time limit)" if job.time_limit else "stopped"
        finally:
            if process.poll() is None:  # also when the sweep is stopped
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its own children too
                process.wait()
    if code == 0:
        return ""
    with output.open("rb") as stream:
        stream.seek(began)
        said = stream.read().decode(errors="replace")
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}; {last_words(said)}"
    return last_words(said) or f"exit code {code}"


def _wait(process: subprocess.Popen[bytes], limit: float | None, stopped: threading.Event) -> int | None:
    """The exit code; None past the limit or once the sweep is stopped."""
    until = math.inf if limit is None else time.monotonic() + limit
    while time.monotonic() < until and not stopped.is_set():
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.2)
    return process.poll()


def last_words(said: str) -> str:
    """The sentence of alignlab in an output, else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    ours = [line.removeprefix("alignlab: ") for line in lines if line.startswith("alignlab: ")]
    return (ours or lines or [""])[-1][:500]


def metrics_of(directory: Path, over: Over) -> dict[str, float]:
    """What a run logged, and what a function returned, as one number each; numbers that are not finite are left out."""
    found: dict[str, list[float]] = {}
    if (directory / "run").is_dir():
        for row in Run.read(directory / "run").metrics():
            for name, value in row.items():
                if name not in ("step", "time") and isinstance(value, int | float):
                    found.setdefault(name, []).append(float(value))
    numbers = {name: summarised(values, over) for name, values in found.items()}
    if (directory / RETURNED).is_file():
        numbers |= {name: float(value) for name, value in read_json(directory / RETURNED).items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def summarised(values: Sequence[float], over: Over) -> float:
    """The last value, or the mean of the last third of them (at least one)."""
    chosen = values[-1:] if over == "last" else values[len(values) - max(1, len(values) // 3) :]
    return sum(chosen) / len(chosen)
