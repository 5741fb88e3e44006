"""Points in two objectives with their intervals, the front among them marked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import plotly.graph_objects as go

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.viz.theme import COLOURWAY, GRID, INK, label, styled, whiskers


def tradeoff(
    points: Mapping[str, tuple[Interval, Interval]],
    front: Collection[str],
    *,
    x_label: str,
    y_label: str,
    marked: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> go.Figure:
    """Every point with its intervals in both directions; those on the front in colour and joined, one ringed.

    points: name -> (interval in x, interval in y). `notes` are added to what hovering shows. DataError without points.
    """
    if not points:
        raise DataError("points is empty; a trade-off needs at least one point")
    figure = go.Figure()
    ahead = sorted((name for name in points if name in front), key=lambda name: points[name][0].estimate)
    figure.add_scatter(
        x=[points[name][0].estimate for name in ahead],
        y=[points[name][1].estimate for name in ahead],
        mode="lines",
        line={"color": GRID, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    groups = {"on the front": ahead, "behind it": [name for name in points if name not in front]}
    for (said, names), colour in zip(groups.items(), (COLOURWAY[1], COLOURWAY[0]), strict=True):
        if not names:
            continue
        x, y = ([points[name][k] for name in names] for k in (0, 1))
        figure.add_scatter(
            name=said,
            x=[cell.estimate for cell in x],
            y=[cell.estimate for cell in y],
            error_x=whiskers(x, colour=colour, thickness=1.2, width=3),
            error_y=whiskers(y, colour=colour, thickness=1.2, width=3),
            mode="markers+text",
            text=[label(name) for name in names],
            textposition="top center" if names is groups["on the front"] else "bottom center",
            marker={
                "size": [15 if name == marked else 9 for name in names],
                "color": colour,
                "line": {"width": [3 if name == marked else 1 for name in names], "color": INK},
            },
            customdata=[
                [label(_said(a)), label(_said(b)), label((notes or {}).get(name, ""))]
                for name, a, b in zip(names, x, y, strict=True)
            ],
            hovertemplate=f"<b>%{{text}}</b><br>{label(x_label)} %{{customdata[0]}}<br>{label(y_label)} "
            "%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        )
    figure.update_xaxes(title={"text": label(x_label)})
    figure.update_yaxes(title={"text": label(y_label)})
    return styled(figure, height=460)


def _said(cell: Interval) -> str:
    return f"{cell.estimate:.3g} [{cell.low:.3g}, {cell.high:.3g}]"
