"""Where points come from: a file of points, a sweep, a folder of runs, or runs by their paths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.align.objectives.points import POINTS_FILE, PointSet, Record, point_set, read_records, record_of
from alignlab.align.objectives.recording import FILE
from alignlab.core.config import differing_fields
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import read_json
from alignlab.core.run_status import STATUS_FILE, list_runs
from alignlab.core.runs import Run

MOST_OBJECTIVES = 4
"""More are not taken without being chosen: a sweep's points may hold every metric that was logged."""


def read_points(
    paths: Sequence[Path],
    objectives: Sequence[str] = (),
    minimise: Sequence[str] = (),
    *,
    last: float = 0.2,
) -> PointSet:
    """The points of files (JSONL), of sweeps (their points.jsonl), or of runs and folders of runs.

    A run brings its `artifacts/objectives.json`, item by item; one that has none brings the means of the metrics named
    in `objectives` over the last share `last` of its steps: one number a training, so that only seeds tell noise.
    """
    if not 0 < last <= 1:
        raise ConfigError(f"last is {last!r}, allowed: a share of the steps above 0 and up to 1")
    records: list[Record] = []
    runs: list[Path] = []
    for path in paths:
        if path.is_file():
            records += read_records(path)
        elif not path.is_dir():
            raise DataError(f"{path} is neither a file of points nor a folder of runs")
        elif (path / STATUS_FILE).is_file():
            runs.append(path)
        elif (path / POINTS_FILE).is_file():
            records += read_records(path / POINTS_FILE)
        else:
            inside = [run.path for run in list_runs(path) if run.state != "unreadable"]
            if not inside:
                raise DataError(f"{path} holds no runs and no {POINTS_FILE}")
            runs += inside
    records += run_records(runs, tuple(dict.fromkeys((*objectives, *minimise))), last)
    if not records:
        raise DataError("no points are given; name a file of points, a sweep or a folder of runs")
    known = records[0].values
    if not objectives and len(known) > MOST_OBJECTIVES:
        raise ConfigError(
            f"the points have {len(known)} numbers ({', '.join(list(known)[:8])}, ...); choose the objectives among "
            "them with --objectives"
        )
    return point_set(records, objectives, minimise)


def run_records(paths: Sequence[Path], metrics: Sequence[str], last: float) -> list[Record]:
    """One record a run; runs that differ in nothing but their seed are one point, named by what sets it apart.

    Runs that failed or are still at work are left out unless none is left. DataError where a run has neither
    objectives nor the metrics.
    """
    runs = [Run.read(path) for path in paths]
    runs = [run for run in runs if run.state == "finished"] or runs
    configs = [seedless(run.config_dict) for run in runs]
    changed = sorted({name for config in configs[1:] for name in differing_fields(configs[0], config)})
    found = []
    for run, config in zip(runs, configs, strict=True):
        settings = {name: at(config, name) for name in changed}
        name = ", ".join(f"{key}={value}" for key, value in settings.items()) or run.name
        file = run.artifacts / FILE
        where = str(file if file.is_file() else run.path)
        row: dict[str, Any] = read_json(file) if file.is_file() else summary_of(run, metrics, last)
        if not isinstance(row, dict):
            raise DataError(f"{file} is not the record of a point")
        own = {"point": row.get("point") or name, "seed": run.seed, "settings": row.get("settings") or settings}
        found.append(record_of({**row, **own}, where))
    return found


def summary_of(run: Run, metrics: Sequence[str], last: float) -> dict[str, Any]:
    """The means of metrics over the last steps that have them, as a record of one item."""
    if not metrics:
        raise DataError(
            f"the run {run.path.name} has no artifacts/{FILE}; name metrics that it logged with --objectives"
        )
    rows = run.metrics()
    values: dict[str, float] = {}
    for name in metrics:
        series = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if not series:
            known = sorted({key for row in rows for key in row if key != "step"})
            raise DataError(f"the run {run.path.name} has no metric {name!r}, only {', '.join(known[:12]) or 'none'}")
        kept = series[-max(1, round(last * len(series))) :]
        values[name] = sum(kept) / len(kept)
    return {"item": "all", "objectives": values}


def seedless(value: Any) -> Any:
    """A config without its seeds and its places, which do not make another point of it."""
    if isinstance(value, Mapping):
        return {key: seedless(item) for key, item in value.items() if key not in ("seed", "run", "out")}
    return value


def at(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name, as text where it is no plain one."""
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float | str | bool) or value is None else json.dumps(value, default=str)
