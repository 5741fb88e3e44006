"""`alignlab sweep`: a command or a function over settings and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from alignlab.core.config import load_yaml, parse_cli, require, save_yaml, to_dict
from alignlab.core.errors import ConfigError, RunError
from alignlab.core.files import atomic_write
from alignlab.core.run_creation import pretty_json
from alignlab.core.run_lock import RunLock
from alignlab.core.yaml_text import read_yaml
from alignlab.research.sweep.config import SweepConfig
from alignlab.research.sweep.jobs import Job, Result, finished, jobs_of
from alignlab.research.sweep.runners import Places, results_of
from alignlab.research.sweep.table import POINTS, point_rows, sweep_table, write_points


@dataclass(frozen=True)
class SweepCommand(Places):
    """Try settings and seeds of a command (or of a function of yours), each in a run of its own; a table in the end.

    Started again it goes on: what is finished is not done again, what failed is tried once more.
    """

    file: Path | None = None
    """The sweep, in YAML; docs/sweeps.md shows one."""
    out: Path | None = None
    """Directory of the sweep; none is ./sweeps/NAME."""
    table: bool = False
    """Run nothing, show the table of what is there."""
    time_limit: float | None = None
    """Seconds after which a run is stopped and counts as failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.time_limit
        require(limit is None or limit > 0, "time_limit", limit, "none or a positive number of seconds")


def sweep(argv: list[str]) -> int:
    """The `alignlab sweep` command; 1 where a run failed, else 0."""
    command = parse_cli(SweepCommand, argv, prog="alignlab sweep", first="file")
    if command.file is None:
        raise ConfigError("a sweep needs its file: alignlab sweep FILE.yaml")
    if not command.file.is_file():
        raise ConfigError(f"there is no file {command.file}")
    config = load_yaml(SweepConfig, command.file)
    out = command.out or Path("sweeps") / config.name
    check_place(config, out)
    jobs = jobs_of(config, out, time_limit=command.time_limit)
    found = [finished(job) for job in jobs]
    if command.table:
        return conclude(config, out, [result for result in found if result is not None])
    out.mkdir(parents=True, exist_ok=True)
    lock = RunLock(out)
    try:
        save_yaml(config, out / "sweep.yaml")
        places = Places(**{field.name: getattr(command, field.name) for field in fields(Places)})
        return conclude(config, out, carry_out(jobs, found, places))
    finally:
        lock.release()


def check_place(config: SweepConfig, out: Path) -> None:
    """Refuse a directory of another sweep; settings, seeds and metrics of a sweep may change."""
    if (out / "sweep.yaml").is_file():
        there, here = read_yaml(out / "sweep.yaml"), to_dict(config)
        if not isinstance(there, dict):
            raise RunError(f"{out / 'sweep.yaml'} holds no sweep; give another --out")
        for name in ("command", "function"):  # anything else may change
            was, now = there.get(name) or "none", here[name] or "none"
            if was != now:
                raise ConfigError(
                    f"{out} holds another sweep: its {name} is {was!r}, here it is {now!r}; give another --out"
                )
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no sweep; give another --out")


def carry_out(jobs: Sequence[Job], found: Sequence[Result | None], places: Places) -> list[Result]:
    """All results: those that were there and finished, and those of the jobs that are done now."""
    kept = [result for result in found if result is not None and result.state == "finished"]
    todo = [job for job, result in zip(jobs, found, strict=True) if result is None or result.state != "finished"]
    where = "with ray" if places.runner == "ray" else f"{min(places.jobs, max(1, len(todo)))} at a time"
    print(f"{len(jobs)} runs: {len(kept)} finished before, {len(todo)} to do, {where}", flush=True)
    for number, result in enumerate(results_of(todo, places), start=1):
        kept.append(result)
        what = f"{result.state} after {result.seconds:.0f} s" + (f": {result.error}" if result.error else "")
        print(f"[{number}/{len(todo)}] {result.point}, seed {result.seed}: {what}", flush=True)
    order = {(job.point, job.seed): i for i, job in enumerate(jobs)}
    return sorted(kept, key=lambda result: order[result.point, result.seed])


def conclude(config: SweepConfig, out: Path, results: list[Result]) -> int:
    """Write the table and the points, and show the table."""
    if not results:
        raise RunError(f"{out} has no finished run to show")
    table = sweep_table(config, results)
    lines = table.lines()
    atomic_write(out / "table.txt", "\n".join(lines) + "\n")
    atomic_write(out / "table.json", pretty_json(table.as_dict()))
    rows = point_rows(config, results, out)
    write_points(out / POINTS, rows)
    print("\n".join(["", *lines, "", f"table  {out / 'table.json'}"]))
    if rows:
        print(f"trade-offs:  alignlab pareto {out / POINTS}")
    return 1 if table.failures else 0
