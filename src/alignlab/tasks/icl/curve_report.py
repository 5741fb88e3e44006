"""A curve as a table in the terminal and as a page with its figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignlab.stats.interval import Interval
from alignlab.tasks.icl.curve import Curve, CurvePoint
from alignlab.tasks.task import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from alignlab.viz.page import Page

AXES = {"shots": "examples in the prompt", "flipped": "share of wrong labels among the examples"}
SLOPES = {"shots": "per doubling of 1 + shots", "flipped": "from no wrong label to all wrong"}


def curve_lines(curve: Curve) -> list[str]:
    """The table of the terminal: place, score, bounds of the unscorable, difference to the first, verdict."""
    rows = [["" if curve.axis == "flipped" else "shots", "score", "n", "unscorable", "to the first", "p (Holm)", ""]]
    if curve.axis == "flipped":
        rows[0][0] = "flipped"
    for point in curve.points:
        found, versus = point.evaluation.aggregate, point.against_first
        rows.append([
            f"{point.at:g}", _shown(found.mean), str(found.n), _unscorable(point),
            _shown(versus.difference) if versus else "–",
            f"{versus.adjusted_p:.3g}" if versus and versus.adjusted_p is not None else "–",
            verdict(point) or "",
        ])  # fmt: skip
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if curve.slope is not None:
        lines.append(f"slope {_shown(curve.slope)} {SLOPES[curve.axis]} (n={curve.slope.n})")
    return lines


def verdict(point: CurvePoint) -> str | None:
    """The verdict in words, with a warning where unscorable samples could change it."""
    versus = point.against_first
    if versus is None:
        return None
    return versus.verdict if versus.robust else f"{versus.verdict}, not robust: unscorable"


def curve_figure(curves: Sequence[Curve], *, chance: float | None = None) -> go.Figure:
    """Score with interval over the axis, one line a curve; a dotted line at `chance`."""
    import plotly.graph_objects as go

    from alignlab.viz.theme import COLOURWAY, INK, label, styled, whiskers

    figure = go.Figure()
    if chance is not None:
        figure.add_hline(y=chance, line={"color": INK, "width": 1, "dash": "dot"})
    for i, curve in enumerate(curves):
        known = [(p.at, p.evaluation.aggregate.mean) for p in curve.points]
        cells = [(at, cell) for at, cell in known if cell is not None]
        figure.add_scatter(
            name=label(curve.model),
            x=[at for at, _ in cells],
            y=[cell.estimate for _, cell in cells],
            error_y=whiskers([cell for _, cell in cells], colour=None),
            mode="lines+markers",
            line={"width": 2, "color": COLOURWAY[(i + 1) % len(COLOURWAY)]},
            customdata=[[cell.low, cell.high, cell.n] for _, cell in cells],
            hovertemplate="%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}"
            "<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title={"text": AXES[curves[0].axis]}, tickvals=sorted({p.at for c in curves for p in c.points}))
    figure.update_yaxes(title={"text": "mean score"})
    figure.update_layout(showlegend=len(curves) > 1)
    return styled(figure)


def curve_page(curves: Sequence[Curve], *, chance: float | None = None, command: str = "") -> Page:
    """The report: figure, table of each curve, how it was done."""
    from alignlab.viz.markup import Badge
    from alignlab.viz.page import Page

    main = curves[0]
    page = Page(f"{main.task}: {main.model}", f"Mean score over {AXES[main.axis]}, on the same items throughout.")
    caption = "Mean score with its 95 % interval."
    if chance is not None:
        caption += f" Dotted: chance, {chance:.3g}."
    page.figure(curve_figure(curves, chance=chance), caption)
    for curve in curves:
        page.heading(curve.model)
        rows = []
        for point in curve.points:
            found, versus = point.evaluation.aggregate, point.against_first
            rows.append([
                f"{point.at:g}", found.mean, found.n, _unscorable(point), versus.difference if versus else None,
                versus.adjusted_p if versus else None, Badge(verdict(point) or "") if versus else None,
            ])  # fmt: skip
        columns = [curve.axis, "score", "items", "unscorable", "difference to the first", "p (Holm)", "verdict"]
        page.table(columns, rows)
        if curve.slope is not None:
            page.text(f"Slope {SLOPES[curve.axis]}: {_shown(curve.slope)}, over {curve.slope.n} items.")
    page.heading("How").text(
        "Every place asks the same items. Differences are paired by item, with whole clusters resampled where items "
        "have them, and p-values are corrected by Holm over the places of one curve. Unscorable samples leave the mean "
        "and are counted; in brackets, where the mean would lie if all of them had gone the worst and the best way."
    )
    if command:
        page.text(f"Command: {command}")
    return page


def _unscorable(point: CurvePoint) -> str:
    found = point.evaluation.aggregate
    if not found.n_unscorable:
        return "0"
    if found.worst is None or found.best is None:
        return f"{found.n_unscorable} (unbounded)"
    low, high = sorted((found.worst.estimate, found.best.estimate))
    return f"{found.n_unscorable} ({low:.3g} to {high:.3g})"


def _shown(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def chance_level(task: Task) -> float | None:
    """The score of guessing among the choices; None for a task without choices."""
    counts = [len(sample.metadata.get("choices") or ()) for sample in task.dataset]
    return sum(1 / n for n in counts) / len(counts) if all(counts) else None
