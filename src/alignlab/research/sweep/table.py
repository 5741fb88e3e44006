"""What came of a sweep: each point's numbers with intervals over seeds, against a baseline, failures beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.core.config import unknown_name
from alignlab.core.errors import AlignlabError, ConfigError
from alignlab.core.files import atomic_write, read_json
from alignlab.research.sweep.config import SweepConfig, combinations
from alignlab.research.sweep.jobs import Result
from alignlab.stats.cluster import clustered_interval
from alignlab.stats.interval import Interval
from alignlab.stats.multiplicity import holm

POINTS = "points.jsonl"
SHOWN = 4
"""Metrics in the text; all are in the JSON."""


@dataclass(frozen=True)
class Cell:
    """One metric of one point."""

    mean: Interval
    """Over the seeds that finished: a t interval, unbounded with one seed."""
    difference: Interval | None
    """To the baseline, paired by seed; None for the baseline itself and without two common seeds."""
    p_value: float | None
    """Of "no difference" (t test, paired by seed), corrected by Holm over all points of the metric."""


@dataclass(frozen=True)
class SweepTable:
    """Points in rows, metrics in columns."""

    metrics: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    """By point, by metric; a point without a finished run has none."""
    done: dict[str, tuple[int, int, int]]
    """By point: runs that finished, that failed, and that are wanted."""
    failures: tuple[Result, ...]
    baseline: str

    def lines(self) -> list[str]:
        """The table as text, then the failures."""
        width, shown = max(map(len, self.done)), self.metrics[:SHOWN]
        rows = [f"{'point':<{width}}  runs  " + "  ".join(f"{name:>30}" for name in shown)]
        for point, (finished, _, wanted) in self.done.items():
            cells = [_shown(self.cells.get(point, {}).get(name)) for name in shown]
            rows.append(f"{point:<{width}}  {finished}/{wanted:<2}  " + "  ".join(f"{cell:>30}" for cell in cells))
        if len(self.metrics) > SHOWN:
            rows.append(f"and {len(self.metrics) - SHOWN} more metrics; `metrics` of the sweep says which to show")
        differences = [
            f"{point}: {name} {d.estimate:+.4g} [{d.low:+.4g}, {d.high:+.4g}] (n={d.n} seeds, p={cell.p_value:.3g} "
            f"after Holm), {verdict(cell)}"
            for name in shown
            for point, own in self.cells.items()
            if (cell := own.get(name)) is not None and (d := cell.difference) is not None and cell.p_value is not None
        ]
        if differences:
            rows += ["", f"against {self.baseline}, paired by seed:", *differences]
        if self.failures:
            rows += ["", f"{len(self.failures)} run(s) failed:"]
            rows += [f"{result.point}, seed {result.seed}: {result.error}" for result in self.failures]
        return rows

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "metrics": list(self.metrics),
            "baseline": self.baseline,
            "points": {
                point: {
                    "finished": finished,
                    "failed": failed,
                    "wanted": wanted,
                    "metrics": {
                        name: {
                            "mean": cell.mean.as_dict(),
                            "difference": None if cell.difference is None else cell.difference.as_dict(),
                            "p_value": cell.p_value,
                            "verdict": verdict(cell),
                        }
                        for name, cell in self.cells.get(point, {}).items()
                    },
                }
                for point, (finished, failed, wanted) in self.done.items()
            },
            "failures": [{"point": r.point, "seed": r.seed, "error": r.error} for r in self.failures],
        }


def verdict(cell: Cell) -> str:
    """higher or lower than the baseline only where interval and corrected test say so; else tied."""
    found, p = cell.difference, cell.p_value
    if found is None or p is None:
        return "not compared"
    if p >= 0.05 or not found.excludes(0.0):
        return "tied"
    return "higher" if found.estimate > 0 else "lower"


def sweep_table(config: SweepConfig, results: Iterable[Result]) -> SweepTable:
    """The table of the results that there are; ConfigError where no finished run has a metric that was asked for."""
    results = list(results)
    finished = [result for result in results if result.state == "finished"]
    failures = tuple(result for result in results if result.state == "failed")
    metrics = _metrics(config, finished)
    points = combinations(config)
    baseline = config.baseline or next(iter(points))
    values = {
        point: {
            name: {r.seed: r.metrics[name] for r in finished if r.point == point and name in r.metrics}
            for name in metrics
        }
        for point in points
    }
    cells: dict[str, dict[str, Cell]] = {point: {} for point in points}
    for name in metrics:
        _fill(cells, {point: own[name] for point, own in values.items()}, name, baseline)
    good, bad = Counter(r.point for r in finished), Counter(r.point for r in failures)
    done = {point: (good[point], bad[point], len(config.seeds)) for point in points}
    return SweepTable(metrics, {point: own for point, own in cells.items() if own}, done, failures, baseline)


def _fill(cells: dict[str, dict[str, Cell]], values: dict[str, dict[int, float]], name: str, baseline: str) -> None:
    differences: dict[str, Interval] = {}
    tests: dict[str, float] = {}
    for point, own in values.items():
        common = sorted(own.keys() & values[baseline].keys())
        if point != baseline and len(common) >= 2:
            apart = [own[seed] - values[baseline][seed] for seed in common]
            differences[point], tests[point] = over_seeds(apart), _p_value(apart)
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True)) if tests else {}
    for point, own in values.items():
        if own:
            mean = over_seeds([own[seed] for seed in sorted(own)])
            cells[point][name] = Cell(mean, differences.get(point), corrected.get(point))


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over seeds with its t interval: it speaks about seeds that were not tried; unbounded with one."""
    if len(values) == 1:
        return Interval(values[0], float("-inf"), float("inf"), 1, 0.95, "t")
    return clustered_interval(values, range(len(values)))


def _p_value(differences: Sequence[float]) -> float:
    from scipy.stats import ttest_1samp

    if len(set(differences)) == 1:  # nothing varies, where t would be sure: as many equal signs by chance
        return 1.0 if differences[0] == 0 else 2.0 ** (1 - len(differences))
    return float(ttest_1samp(differences, 0.0).pvalue)


def _metrics(config: SweepConfig, finished: list[Result]) -> tuple[str, ...]:
    common = [name for name in finished[0].metrics if all(name in r.metrics for r in finished)] if finished else []
    seen = {name for result in finished for name in result.metrics}
    for name in config.metrics:
        if finished and name not in seen:
            raise ConfigError(f"no run has that metric: {unknown_name('metric', name, seen)}")
    return config.metrics or tuple(common)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    mean = cell.mean
    return f"{mean.estimate:.4g} (n=1)" if mean.n == 1 else f"{mean.estimate:.4g} [{mean.low:.4g}, {mean.high:.4g}]"


def point_rows(config: SweepConfig, results: Iterable[Result], out: Path) -> list[dict[str, Any]]:
    """What `alignlab pareto` reads: the objectives that a run recorded item by item, else its metrics as one item."""
    rows = []
    for result in results:
        if result.state != "finished":
            continue
        row: dict[str, Any] = {"point": result.point, "seed": result.seed, "settings": result.settings}
        recorded = out / result.run / "artifacts" / "objectives.json"
        try:
            kept = read_json(recorded) if recorded.is_file() else {}
        except AlignlabError:
            kept = {}
        if isinstance(kept, dict) and kept.get("objectives"):
            row |= {key: kept[key] for key in ("objectives", "items") if key in kept}
        else:
            names = config.metrics or tuple(result.metrics)
            row |= {"item": "all", "objectives": {n: result.metrics[n] for n in names if n in result.metrics}}
        if row["objectives"]:
            rows.append(row)
    return rows


def write_points(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One record a line, whole or not at all."""
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
