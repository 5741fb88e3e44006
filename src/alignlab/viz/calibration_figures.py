"""Figures of calibration: reliability diagram, where the stated probabilities lie, and risk against coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from alignlab.core.errors import DataError
from alignlab.stats.calibration import ReliabilityBin
from alignlab.stats.selective import RiskCoverage
from alignlab.viz.theme import COLOURWAY, INK, label, styled, whiskers


def reliability_diagram(
    series: Mapping[str, Sequence[ReliabilityBin]], *, intervals: bool = True, height: int = 380
) -> go.Figure:
    """Share right against stated probability, one marker a bin with its interval; the dotted diagonal is perfect.

    Under the diagonal a model says more than is true. Markers grow with their bin's number of items. DataError when
    there is no bin.
    """
    if not any(series.values()):
        raise DataError("series is empty; reliability_diagram needs at least one bin")
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip
    largest = max(row.correct.n for rows in series.values() for row in rows)
    for i, (name, rows) in enumerate(series.items()):
        figure.add_scatter(
            name=label(name),
            x=[row.stated for row in rows],
            y=[row.correct.estimate for row in rows],
            error_y=whiskers([row.correct for row in rows]) | {"visible": intervals},
            mode="lines+markers",
            line={"width": 1.5, "color": COLOURWAY[(i + 1) % len(COLOURWAY)]},
            marker={"size": [6 + 8 * (row.correct.n / largest) ** 0.5 for row in rows]},
            customdata=[[row.correct.low, row.correct.high, row.correct.n, row.low, row.high] for row in rows],
            hovertemplate=f"{label(name)}<br>stated %{{x:.3f}} (%{{customdata[3]:.3f}} to %{{customdata[4]:.3f}})"
            "<br>right %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]<br>n = %{customdata[2]}<extra></extra>",
        )
    figure.update_xaxes(title={"text": "stated probability of being right"}, range=[-0.02, 1.02])
    figure.update_yaxes(title={"text": "share right"}, range=[-0.02, 1.02])
    figure.update_layout(showlegend=len(series) > 1, margin={"t": 40 if len(series) > 1 else 12})
    return styled(figure, height=height)


def stated_histogram(stated: ArrayLike, correct: ArrayLike, *, bins: int = 20) -> go.Figure:
    """How many answers were given with which stated probability, right ones and wrong ones stacked.

    stated: (n,) in [0, 1]; correct: (n,) 0/1. DataError when they are empty or differ in length.
    """
    values, right = np.asarray(stated, dtype=np.float64), np.asarray(correct, dtype=bool)
    if values.size == 0 or values.shape != right.shape:
        raise DataError(f"stated has {values.size} values and correct has {right.size}; give one of each an item")
    edges = np.linspace(0.0, 1.0, bins + 1)
    figure = go.Figure()
    for name, chosen, colour in (("right", right, COLOURWAY[2]), ("wrong", ~right, COLOURWAY[5])):
        counts, _ = np.histogram(values[chosen], edges)
        figure.add_bar(
            name=name,
            x=((edges[:-1] + edges[1:]) / 2).tolist(),
            y=counts.tolist(),
            width=1 / bins * 0.92,
            marker={"color": colour},
            hovertemplate=f"{name}, stated about %{{x:.2f}}: %{{y}}<extra></extra>",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title={"text": "stated probability of being right"}, range=[0, 1], showgrid=False)
    figure.update_yaxes(title={"text": "answers"})
    return styled(figure, height=260)


def risk_coverage_curve(series: Mapping[str, tuple[RiskCoverage, float]]) -> go.Figure:
    """Share wrong among the answers given, as less and less sure answers are given too.

    series: name -> (curve, error rate when everything is answered, drawn dotted). DataError when it is empty.
    """
    if not series:
        raise DataError("series is empty; risk_coverage_curve needs at least one curve")
    figure = go.Figure()
    for i, (name, (curve, rate)) in enumerate(series.items()):
        colour = COLOURWAY[(i + 1) % len(COLOURWAY)]
        figure.add_scatter(
            name=label(name),
            x=curve.coverage.tolist(),
            y=curve.risk.tolist(),
            mode="lines+markers" if curve.risk.size <= 40 else "lines",
            line={"width": 2, "color": colour, "shape": "hv"},
            customdata=curve.threshold.tolist(),
            hovertemplate=f"{label(name)}<br>answers %{{x:.1%}}, wrong %{{y:.1%}}<br>certainty from "
            "%{customdata:.3f}<extra></extra>",
        )
        figure.add_scatter(
            x=[0, 1], y=[rate, rate], mode="lines", line={"color": colour, "width": 1, "dash": "dot"},
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(title={"text": "share of questions answered"}, range=[0, 1.02], tickformat=".0%")
    figure.update_yaxes(title={"text": "wrong among the answered"}, rangemode="tozero", tickformat=".0%")
    figure.update_layout(showlegend=len(series) > 1, margin={"t": 40 if len(series) > 1 else 12})
    return styled(figure)
