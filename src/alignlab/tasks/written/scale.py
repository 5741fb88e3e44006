"""Does a behaviour grow with scale? Scores of several models, or of several steps of one, on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.paired import Comparison, compare
from alignlab.tasks.evaluation import Evaluation, cluster_labels
from alignlab.viz.theme import COLOURWAY, label, styled, whiskers


@dataclass(frozen=True)
class Trend:
    """Scores against scale, and their slope over the same items."""

    task: str
    points: tuple[tuple[float, str, Interval | None, int], ...]
    """Scale, model, mean score with its interval (None: nothing could be scored), unscorable samples."""
    slope: Comparison | None
    """Change of the score per factor of ten (per unit, if not `log`); None without an item scored everywhere."""
    worst: Interval | None
    """The slope over all items if every missing score had gone the way that makes it worse; None: unbounded score."""
    best: Interval | None
    n_unscorable: int
    """Items left out of the slope because some evaluation could not score them."""
    log: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        intervals = {"slope": self.slope.difference if self.slope else None, "worst": self.worst, "best": self.best}
        return {
            "task": self.task,
            "points": [
                {"scale": x, "model": model, "mean": mean.as_dict() if mean else None, "n_unscorable": lost}
                for x, model, mean, lost in self.points
            ],
            "slope per": "factor of ten" if self.log else "unit",
            **{name: interval.as_dict() if interval else None for name, interval in intervals.items()},
            "p_value": self.slope.p_value if self.slope else None,
            "verdict": self.slope.verdict if self.slope else None,
            "n_unscorable": self.n_unscorable,
        }


def scaling_trend(evaluations: Mapping[float, Evaluation], *, log: bool = True, seed: int = 0) -> Trend:
    """The least-squares slope of the mean score on scale (parameters, training steps), paired over items.

    The slope of means is the mean of the items' own slopes, so items (or their clusters) are resampled as in any paired
    comparison: that the same items were asked everywhere is used, and the noise of single models' training is not in
    the interval. The verdict is for the larger scale. `log`: on log10 of the scale.

    Raises:
        DataError: fewer than two evaluations, of different tasks, items or scorers, or a scale that is no (positive)
            number.
    """
    if len(evaluations) < 2:
        raise DataError(f"there are {len(evaluations)} evaluations, allowed: at least two scales")
    ordered = sorted(evaluations.items())
    for x, _ in ordered:
        if not math.isfinite(x) or (log and x <= 0):
            raise DataError(f"a scale is {x}, allowed: {'a positive' if log else 'a finite'} number")
    first = ordered[0][1]
    for _, other in ordered[1:]:
        for part in ("task", "dataset", "scorer", "score_range", "higher_is_better"):
            if first.header.get(part) != other.header.get(part):
                raise DataError(f"the evaluations by {first.model!r} and {other.model!r} differ in their {part}")
    at = [math.log10(x) if log else x for x, _ in ordered]
    centre = math.fsum(at) / len(at)
    spread = math.fsum((x - centre) ** 2 for x in at)
    weights = [(x - centre) / spread for x in at]
    columns = [evaluation.values for _, evaluation in ordered]
    rows = [[column[result.id] for column in columns] for result in first.results]
    whole = [i for i, row in enumerate(rows) if None not in row]
    clusters = cluster_labels(first.results)

    def slope(which: Sequence[int], low: float, high: float) -> Comparison:
        """A missing score becomes `low` at small scales and `high` at large ones."""

        def filled(weight: float, value: float | None) -> float:
            return weight * (value if value is not None else high if weight > 0 else low)

        each = [math.fsum(map(filled, weights, rows[i])) for i in which]
        own = [clusters[i] for i in which] if clusters is not None else None
        return compare([0.0] * len(each), each, clusters=own, seed=seed, higher_is_better=first.higher_is_better)

    middle = slope(whole, 0.0, 0.0) if whole else None
    worst = best = middle.difference if middle is not None and len(whole) == len(rows) else None
    if len(whole) < len(rows) and first.score_range is not None:
        low, high = first.score_range
        ends = slope(range(len(rows)), high, low).difference, slope(range(len(rows)), low, high).difference
        worst, best = ends if first.higher_is_better else ends[::-1]
    points = tuple((x, e.model, e.aggregate.mean, e.aggregate.n_unscorable) for x, e in ordered)
    return Trend(first.task, points, middle, worst, best, len(rows) - len(whole), log)


def scale_figure(trends: Sequence[Trend], *, x_label: str = "parameters", y_label: str = "score") -> go.Figure:
    """One line a task, with intervals as whiskers; a dotted line where chance is a half is left to the reader.

    DataError when no point of any trend could be scored.
    """
    figure = go.Figure()
    for i, trend in enumerate(trends):
        known = [(x, model, mean) for x, model, mean, _ in trend.points if mean is not None]
        if not known:
            continue
        figure.add_scatter(
            name=label(trend.task),
            x=[x for x, _, _ in known],
            y=[mean.estimate for _, _, mean in known],
            error_y=whiskers([mean for _, _, mean in known], width=5),
            mode="lines+markers",
            line={"width": 2, "color": COLOURWAY[(i + 1) % len(COLOURWAY)]},
            marker={"size": 9},
            customdata=[[label(model), mean.low, mean.high, mean.n] for _, model, mean in known],
            hovertemplate="<b>%{customdata[0]}</b><br>%{x}: %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]"
            "<br>n = %{customdata[3]}<extra></extra>",
        )
    if not figure.data:
        raise DataError("none of the evaluations has a scored sample; there is nothing to draw")
    figure.update_xaxes(title={"text": label(x_label)}, type="log" if all(t.log for t in trends) else None)
    figure.update_yaxes(title={"text": label(y_label)})
    figure.update_layout(showlegend=len(trends) > 1, margin={"t": 40 if len(trends) > 1 else 12})
    return styled(figure)
