"""Figures of a training against a reward: its curves under each other, alarms marked; a text coloured by what it
earned."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.viz.dynamics_figures import thinned
from alignlab.viz.theme import COLOURWAY, label, styled

Points = Sequence[tuple[float, float]]
PANEL = 150
_GREY, _BLUE, _GREEN, _ORANGE, _PURPLE, _RED = COLOURWAY
_RGB = {True: "42, 157, 143", False: "192, 86, 106"}


def training_curves(panels: Sequence[tuple[str, Points]], marks: Sequence[tuple[float, str]] = ()) -> go.Figure:
    """One panel a curve over the same steps; a dotted line at the step of each mark, named on the first panel.

    Raises DataError without a single point.
    """
    shown = [(name, thinned(points)) for name, points in panels if points]
    if not shown:
        raise DataError("panels holds no points; training_curves has nothing to draw")
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(shown))
    colours = (_BLUE, _GREEN, _ORANGE, _PURPLE, _GREY)
    for row, (name, points) in enumerate(shown, start=1):
        colour = colours[(row - 1) % len(colours)]
        figure.add_scatter(
            name=label(name), x=[x for x, _ in points], y=[y if math.isfinite(y) else None for _, y in points],
            mode="lines+markers" if len(points) <= 30 else "lines", line={"width": 2, "color": colour},
            hovertemplate=f"{label(name)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>", row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title={"text": label(name), "font": {"size": 11}}, row=row, col=1)
    for step, words in marks:
        figure.add_vline(x=step, line={"width": 1, "dash": "dot", "color": _RED}, row="all", col=1)
        figure.add_annotation(
            x=step, y=1, xref="x", yref="y domain", text=label(words), showarrow=False, yanchor="bottom",
            font={"size": 11, "color": _RED},
        )  # fmt: skip
    figure.update_xaxes(title={"text": "step"}, row=len(shown), col=1)
    figure.update_layout(showlegend=False, margin={"t": 28}, uirevision="training")
    return styled(figure, height=60 + PANEL * len(shown))


def learning_curves(
    curves: Mapping[str, Sequence[Points]], levels: Mapping[str, Interval], *, x_label: str, y_label: str
) -> go.Figure:
    """One colour a name and one line a training; beside them levels that nothing changes, dashed, with their intervals.

    Raises DataError without a single point.
    """
    ends = [x for lines in curves.values() for points in lines for x, _ in points]
    if not ends:
        raise DataError("curves holds no points; learning_curves needs at least one")
    figure = go.Figure()
    colours = (_BLUE, _GREEN, _ORANGE, _PURPLE, _RED, _GREY)
    for i, (name, lines) in enumerate(curves.items()):
        for seed, points in enumerate(lines):
            figure.add_scatter(
                name=label(name), legendgroup=name, showlegend=seed == 0, x=[x for x, _ in points],
                y=[y if math.isfinite(y) else None for _, y in points], mode="lines+markers",
                line={"width": 2, "color": colours[i % len(colours)]},
                hovertemplate=f"{label(name)}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
    for i, (name, cell) in enumerate(levels.items(), start=len(curves)):
        colour = colours[i % len(colours)]
        figure.add_scatter(
            name=label(name), x=[min(ends), max(ends)], y=[cell.estimate] * 2, mode="lines",
            line={"width": 2, "dash": "dash", "color": colour},
            hovertemplate=f"{label(name)}<br>{cell.estimate:.4g} [{cell.low:.4g}, {cell.high:.4g}]<extra></extra>",
        )  # fmt: skip
        if math.isfinite(cell.low) and math.isfinite(cell.high):
            figure.add_hrect(y0=cell.low, y1=cell.high, fillcolor=colour, opacity=0.14, line_width=0)
    figure.update_xaxes(title={"text": label(x_label)}, showgrid=False)
    figure.update_yaxes(title={"text": label(y_label)})
    return styled(figure)


def coloured_spans(spans: Sequence[tuple[str, float]], escape: Callable[[str], str] = html.escape) -> str:
    """A text as HTML whose parts are green where they raise the reward and red where they lower it.

    The strongest part has the strongest colour; parts are underlined too (solid raises, dotted lowers), and their
    numbers stand in the tooltip. `escape` makes the text safe for where it goes.
    """
    most = max((abs(value) for _, value in spans if math.isfinite(value)), default=0.0)
    parts = []
    for text, value in spans:
        weight = abs(value) / most if most > 0 and math.isfinite(value) else 0.0
        line = "solid" if value >= 0 else "dotted"
        style = f"background: rgba({_RGB[value >= 0]}, {0.42 * weight:.2f})"
        if weight >= 0.1:
            style += f"; text-decoration: underline {line} 1px; text-underline-offset: 3px"
        parts.append(f'<span style="{style}" title="{value:+.3g}">{escape(text)}</span>')
    return "".join(parts)
