"""Jobs of an experiment as processes beside each other: so many at a time, some after others, told as they end."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One process."""

    name: str
    command: list[str]
    result: Path
    """Written when it is done; a job that has it is not begun again."""
    log: Path | None = None
    """Where what it says goes; none: to the terminal."""
    needs: str | None = None
    """A job that must be done before."""
    environment: dict[str, str] = field(default_factory=dict)


def run_jobs(jobs: Sequence[Job], at_a_time: int) -> list[str]:
    """Every job that has no result yet; the names of those that failed, or whose needs did. The others go on."""
    waiting = {job.name: job for job in jobs if not job.result.is_file()}
    results = {job.name: job.result for job in jobs}
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    try:
        while waiting or running:
            for name, job in list(waiting.items()):
                if job.needs in failed:
                    failed.append(name)
                    del waiting[name]
                elif len(running) < at_a_time and (job.needs is None or results[job.needs].is_file()):
                    del waiting[name]
                    running[name] = _started(job)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [name] if process.returncode else []
                    print(f"{name}: {f'FAILED ({process.returncode})' if process.returncode else 'done'}", flush=True)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
    for job in jobs:
        if job.name in failed and job.log is not None:
            said = job.log.read_text(errors="replace").strip().splitlines()[-1:] if job.log.is_file() else []
            print(f"{job.name} failed: {''.join(said) or 'what it needs failed'}", flush=True)
    return failed


def _started(job: Job) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **job.environment}
    if job.log is None:
        return subprocess.Popen(job.command, env=environment)
    with job.log.open("wb") as log:
        return subprocess.Popen(job.command, stdout=log, stderr=log, env=environment)
