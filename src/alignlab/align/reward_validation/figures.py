"""Figures of a validation: over-optimisation curves, agreement by margin, accuracy by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from alignlab.align.reward_validation.curves import Curve, CurveFit
from alignlab.align.reward_validation.robustness import Robustness
from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.viz.theme import COLOURWAY, INK, label, styled

GOLD, PROXY = COLOURWAY[3], COLOURWAY[1]


def overoptimisation_figure(
    curves: Sequence[Curve], fits: Sequence[CurveFit | None] = (), *, names: Sequence[str] = ()
) -> go.Figure:
    """Gain of proxy (blue) and gold (orange) against sqrt(KL), with intervals over prompts; lines are fits of the gold
    reward, and a dotted line stands where the first fit turns. Further curves are drawn with other marks."""
    if not curves:
        raise DataError("there are no curves; overoptimisation_figure needs at least one")
    figure = go.Figure()
    for i, curve in enumerate(curves):
        name = names[i] if i < len(names) else curve.kind
        _points(figure, curve, curve.gains("proxy"), PROXY, f"{name}, proxy", i)
        _points(figure, curve, curve.gains("gold"), GOLD, f"{name}, gold", i)
        fit = fits[i] if i < len(fits) else None
        if fit is not None:
            d = np.linspace(0, float(curve.distance.max()), 200)
            dash = ("solid", "dash", "dot", "dashdot")[i % 4]
            figure.add_scatter(
                name=label(f"{name}, fit"), x=d.tolist(), y=fit.gain(d).tolist(), mode="lines",
                line={"color": GOLD, "width": 1.5, "dash": dash}, hoverinfo="skip",
            )  # fmt: skip
            if fit.turn.estimate < curve.distance.max():
                figure.add_vline(x=fit.turn.estimate, line={"color": INK, "width": 1, "dash": "dot"})
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title={"text": "sqrt(KL) to the reference (nats^½)"}, rangemode="tozero")
    figure.update_yaxes(title={"text": "reward above the reference's"})
    figure.update_layout(margin={"t": 70})
    return styled(figure, height=440)


def _points(figure: go.Figure, curve: Curve, cells: Sequence[Interval], colour: str, name: str, i: int) -> None:
    word = "n" if curve.kind == "best-of-n" else "step"
    figure.add_scatter(
        name=label(name),
        x=curve.distance.tolist(),
        y=[cell.estimate for cell in cells],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [min(cell.high - cell.estimate, 1e6) for cell in cells],
            "arrayminus": [min(cell.estimate - cell.low, 1e6) for cell in cells],
            "color": colour,
            "thickness": 1,
            "width": 3,
        },
        mode="markers",
        marker={"color": colour, "size": 8, "symbol": ("circle", "diamond", "square", "triangle-up")[i % 4]},
        customdata=curve.at.tolist(),
        hovertemplate=f"{label(name)}<br>{word} = %{{customdata:g}}, d = %{{x:.2f}}<br>%{{y:+.3f}}<extra></extra>",
    )


def by_margin_figure(rows: Mapping[str, Sequence[tuple[float, float, float, float]]], *, x: str) -> go.Figure:
    """Lines of (x, share, low, high) by name, such as agreement against the size of a margin; dotted is chance."""
    if not any(rows.values()):
        raise DataError("rows is empty; by_margin_figure needs at least one point")
    figure = go.Figure()
    for i, (name, points) in enumerate(rows.items()):
        figure.add_scatter(
            name=label(name),
            x=[p[0] for p in points],
            y=[p[1] for p in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [p[3] - p[1] for p in points],
                "arrayminus": [p[1] - p[2] for p in points],
                "color": INK,
                "thickness": 1.2,
            },
            mode="lines+markers",
            line={"color": COLOURWAY[(i + 1) % len(COLOURWAY)], "width": 2},
            hovertemplate=f"{label(name)}<br>%{{x:.2f}}: %{{y:.1%}}<extra></extra>",
        )
    figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title={"text": x})
    figure.update_yaxes(title={"text": "agreement"}, tickformat=".0%")
    return styled(figure)


def slices_figure(groups: Mapping[str, Mapping[str, Interval]], overall: Interval) -> go.Figure:
    """Accuracy of each slice as a dot with its interval, under the name of its group; the line is the overall one."""
    if not any(groups.values()):
        raise DataError("groups is empty; slices_figure needs at least one slice")
    figure, names = go.Figure(), list[str]()
    figure.add_vline(x=overall.estimate, line={"color": INK, "width": 1, "dash": "dot"})
    for i, (group, slices) in enumerate(groups.items()):
        rows = range(len(names) + 1, len(names) + 1 + len(slices))
        names += [f"<b>{label(group)}</b>", *map(label, slices)]
        colour = COLOURWAY[1 + i % (len(COLOURWAY) - 1)]
        figure.add_scatter(
            **{**_dots(slices, colour, group), "y": list(rows), "text": [label(part) for part in slices]}
        )
    figure.update_traces(hovertemplate="<b>%{text}</b><br>%{x:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]"
        "<br>n = %{customdata[2]}<extra></extra>")  # fmt: skip
    _rows_of_dots(figure, len(names))
    return figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, dtick=None)


def edits_figure(robustness: Robustness) -> go.Figure:
    """Flips by edit, paraphrases blue and changes of length orange, where both sides are edited."""
    figure = go.Figure()
    for kind, colour in (("paraphrase", PROXY), ("length", GOLD)):
        effects = {effect.name: effect.flips for effect in robustness.effects if effect.kind == kind}
        if effects:
            figure.add_scatter(**_dots(effects, colour, kind))
    if not figure.data:
        raise DataError("no edit changed a text; edits_figure has nothing to draw")
    return _rows_of_dots(figure, len(robustness.effects)).update_layout(showlegend=True, margin={"t": 40})


def _dots(cells: Mapping[str, Interval], colour: str, name: str) -> dict[str, object]:
    return {
        "name": label(name),
        "x": [cell.estimate for cell in cells.values()],
        "y": [label(row) for row in cells],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [min(cell.high, 1.0) - cell.estimate for cell in cells.values()],
            "arrayminus": [cell.estimate - max(cell.low, 0.0) for cell in cells.values()],
            "color": INK,
            "thickness": 1.4,
            "width": 4,
        },
        "mode": "markers",
        "marker": {"size": 9, "color": colour},
        "customdata": [[cell.low, cell.high, cell.n] for cell in cells.values()],
        "hovertemplate": "<b>%{y}</b><br>%{x:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]"
        "<br>n = %{customdata[2]}<extra></extra>",
    }


def _rows_of_dots(figure: go.Figure, rows: int) -> go.Figure:
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 11}, dtick=1)
    figure.update_xaxes(tickformat=".0%")
    figure.update_layout(showlegend=False, margin={"t": 12})
    return styled(figure, height=max(150, 70 + 24 * rows))
