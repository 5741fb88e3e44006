"""The figures of `alignment_and_calibration`."""

from __future__ import annotations

import plotly.graph_objects as go

from alignlab.stats.calibration import reliability_table
from alignlab.studies.calibration_answers import MODELS, Answers
from alignlab.studies.calibration_plan import Condition
from alignlab.viz.theme import COLOURWAY, INK, styled, whiskers

_COLOURS = {"before": COLOURWAY[0], "after": COLOURWAY[1]}


def curves(known: Answers, measure: str, y_label: str) -> go.Figure:
    """A measure over examples in the prompt, one line a model, with intervals."""
    figure = go.Figure()
    for model in MODELS:
        points = [(k, known.interval(Condition(model, k), measure)) for k in known.plan.shots]
        drawn = [(k, cell) for k, cell in points if cell is not None]
        figure.add_scatter(
            name=f"{model} alignment", x=[str(k) for k, _ in drawn], y=[c.estimate for _, c in drawn],
            error_y=whiskers([c for _, c in drawn]),
            mode="lines+markers", line={"width": 2, "color": _COLOURS[model]},
        )  # fmt: skip
    figure.update_xaxes(title={"text": "examples in the prompt"}, type="category", showgrid=False)
    figure.update_yaxes(title={"text": y_label})
    return styled(figure)


def reliability(known: Answers, shots: int) -> go.Figure:
    """Share right against confidence, bins of equal mass; the first draw of examples."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "dash": "dot", "width": 1}, showlegend=False
    )
    for model in MODELS:
        one = known.by[Condition(model, shots), 0]
        if not one.scored.any():
            continue
        bins = reliability_table(one.confidence[one.scored], one.correct[one.scored])
        figure.add_scatter(
            name=f"{model} alignment", x=[b.stated for b in bins], y=[b.correct.estimate for b in bins],
            error_y=whiskers([b.correct for b in bins]),
            mode="lines+markers", line={"width": 1.5, "color": _COLOURS[model]},
        )  # fmt: skip
    figure.update_xaxes(title={"text": "confidence"}, range=[0, 1])
    figure.update_yaxes(title={"text": "share right"}, range=[0, 1])
    return styled(figure, height=420)
