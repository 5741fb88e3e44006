"""The look of every figure: one Plotly template that reads on a light and on a dark ground."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from alignlab.stats.interval import Interval

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
INK = "#7c8796"
"""Text of figures: contrast of at least 3.6 on white and 4.6 on the dark ground. The page's style sheet sharpens it."""
GRID = "rgba(124, 135, 150, 0.22)"
COLOURWAY = ("#8c98a8", "#3b82b8", "#2a9d8f", "#d9822b", "#8f6bb3", "#c0566a")
"""First grey for the baseline, then one hue a stage; they differ in lightness, for readers who do not see hues."""
HEIGHT = 340
"""Default height of a figure in pixels; the width follows the page."""

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "title": {"x": 0, "xanchor": "left", "font": {"size": 15}},
        "colorway": list(COLOURWAY),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 12, "t": 40, "b": 8},
        "xaxis": {"automargin": True, "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID},
        "yaxis": {"automargin": True, "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "title": {"text": ""},
        },
        "bargap": 0.28,
        "bargroupgap": 0.08,
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
        "hovermode": "closest",
    }
)


def label(text: object) -> str:
    """Text for a figure. Plotly reads a small HTML in labels, so `<` in a model's or user's name must be escaped."""
    return html.escape(str(text), quote=False)


def styled(figure: go.Figure, *, height: int = HEIGHT) -> go.Figure:
    """`figure` with the template, a fixed height and a width that follows its container; changed in place."""
    figure.update_layout(template=TEMPLATE, height=height, autosize=True)
    return figure


def whiskers(
    cells: Sequence[Interval], *, colour: str | None = INK, thickness: float = 1.4, width: float = 4
) -> dict[str, Any]:
    """Error bars for intervals, upwards and downwards each as far as it goes; none where it is unbounded.

    Without a `colour` they have that of their line.
    """

    def reach(distance: float) -> float:
        return distance if math.isfinite(distance) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(cell.high - cell.estimate) for cell in cells],
        "arrayminus": [reach(cell.estimate - cell.low) for cell in cells],
        "thickness": thickness,
        "width": width,
    } | ({} if colour is None else {"color": colour})
