"""The figures of the lab: pure functions from numbers to a Plotly figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import plotly.graph_objects as go

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.viz.theme import COLOURWAY, GRID, HEIGHT, INK, label, styled, whiskers


def stage_bars(metrics: Mapping[str, Mapping[str, Interval | None]], *, percent: bool = True) -> go.Figure:
    """Grouped bars, one group a metric and one colour a stage, with confidence intervals as whiskers.

    metrics: metric name -> stage name -> interval (None: not measured). `percent` shows rates of 0..1 as percentages.
    A whisker that is not bounded is left out. DataError when nothing is given.
    """
    stages = list(dict.fromkeys(stage for by_stage in metrics.values() for stage in by_stage))
    if not stages:
        raise DataError("metrics is empty; stage_bars needs at least one metric with one stage")
    figure = go.Figure()
    for i, stage in enumerate(stages):
        cells = [(metric, by_stage.get(stage)) for metric, by_stage in metrics.items()]
        known = [(metric, cell) for metric, cell in cells if cell is not None]
        figure.add_bar(
            name=label(stage),
            x=[label(metric) for metric, _ in known],
            y=[cell.estimate for _, cell in known],
            error_y=whiskers([cell for _, cell in known], thickness=1.6, width=5),
            marker={"color": COLOURWAY[i % len(COLOURWAY)], "cornerradius": 3},
            customdata=[[*_limits(cell, percent), cell.n] for _, cell in known],
            hovertemplate=f"<b>%{{x}}</b>, {label(stage)}<br>%{{y}} [%{{customdata[0]}}, %{{customdata[1]}}]"
            "<br>n = %{customdata[2]}<extra></extra>",
        )
    figure.update_layout(barmode="group")
    # Not set to 0..1: a small rate should fill the height, but every bar starts at zero.
    figure.update_yaxes(rangemode="tozero", tickformat=".0%" if percent else None)
    figure.update_xaxes(showgrid=False, categoryorder="array", categoryarray=[label(metric) for metric in metrics])
    return styled(figure)


def difference_plot(
    differences: Mapping[str, Interval], *, percent: bool = True, lower_is_better: Collection[str] = ()
) -> go.Figure:
    """Paired differences as dots with intervals and a line at zero: green better, red worse, grey tied.

    `lower_is_better` names those where a fall is the improvement, such as over-refusal.
    """
    if not differences:
        raise DataError("differences is empty; difference_plot needs at least one interval")
    names = list(differences)
    cells = list(differences.values())
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"})
    figure.add_scatter(
        x=[cell.estimate for cell in cells],
        y=[label(name) for name in names],
        error_x=whiskers(cells, thickness=1.6, width=5),
        mode="markers",
        marker={
            "size": 10,
            "color": [_side_colour(cell, name not in lower_is_better) for name, cell in differences.items()],
        },
        customdata=[[*_limits(cell, percent), cell.n] for cell in cells],
        hovertemplate="<b>%{y}</b><br>%{x} [%{customdata[0]}, %{customdata[1]}]<br>n = %{customdata[2]}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickformat=".0%" if percent else None)
    figure.update_layout(margin={"t": 12})
    return styled(figure, height=max(150, 70 + 46 * len(names)))


def kl_reward(rows: Sequence[Mapping[str, float]], *, kl: str = "kl", reward: str = "reward") -> go.Figure:
    """Reward against divergence from the reference model, in the order of training; later steps are bluer.

    rows: one a step, with the keys `kl` (nats per answer or token, as logged), `reward` and optionally `step`.
    """
    points = [row for row in rows if math.isfinite(_number(row, kl)) and math.isfinite(_number(row, reward))]
    if not points:
        raise DataError(f"rows holds no step with finite {kl!r} and {reward!r}; kl_reward has nothing to draw")
    steps = [row.get("step", i) for i, row in enumerate(points)]
    figure = go.Figure()
    figure.add_scatter(
        x=[row[kl] for row in points],
        y=[row[reward] for row in points],
        mode="lines+markers",
        line={"color": GRID, "width": 1.5},
        marker={
            "size": 8,
            "color": steps,
            "colorscale": [[0, "#c3cbd5"], [1, "#2b7bb9"]],
            "colorbar": {"title": {"text": "step"}, "thickness": 10, "outlinewidth": 0},
            "showscale": len(points) > 1,
            "line": {"width": 1, "color": INK},
        },
        customdata=steps,
        hovertemplate="step %{customdata}<br>KL %{x:.3f}<br>reward %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title={"text": "KL to the reference (nats)"}, rangemode="tozero")
    figure.update_yaxes(title={"text": "reward"})
    figure.update_layout(margin={"t": 12})
    return styled(figure)


def line(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str, log_y: bool = False
) -> go.Figure:
    """One line a series of (x, y) points; points that are not finite leave a gap."""
    if not any(series.values()):
        raise DataError("series is empty; line needs at least one point")
    figure = go.Figure()
    for name, points in series.items():
        figure.add_scatter(
            name=label(name),
            x=[x for x, _ in points],
            y=[y if math.isfinite(y) else None for _, y in points],
            mode="lines+markers" if len(points) <= 30 else "lines",
            line={"width": 2},
            hovertemplate=f"{label(name)}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
        )
    figure.update_xaxes(title={"text": label(x_label)}, showgrid=False)
    figure.update_yaxes(title={"text": label(y_label)}, type="log" if log_y else None)
    figure.update_layout(showlegend=len(series) > 1, margin={"t": 40 if len(series) > 1 else 12})
    return styled(figure)


def cost_bars(costs: Mapping[str, float], *, unit: str = "s") -> go.Figure:
    """Horizontal bars, one a stage in the order given, each with its value and share of the whole."""
    if not costs:
        raise DataError("costs is empty; cost_bars needs at least one stage")
    for name, cost in costs.items():
        if not (math.isfinite(cost) and cost >= 0):
            raise DataError(f"the cost of {name!r} is {cost}, allowed: a finite number >= 0")
    total = sum(costs.values())
    shares = [cost / total if total > 0 else 0.0 for cost in costs.values()]
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        x=list(costs.values()),
        y=[label(name) for name in costs],
        marker={"color": COLOURWAY[1], "cornerradius": 3},
        text=[f"{_cost(cost, unit)} · {share:.0%}" for cost, share in zip(costs.values(), shares, strict=True)],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="<b>%{y}</b><br>%{text}<extra></extra>",
    )
    # Room on the right for the text outside the longest bar, also at the width of a phone.
    figure.update_xaxes(visible=False, range=[0, max(max(costs.values()), 1e-12) * 2.0])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(margin={"t": 8})
    return styled(figure, height=max(140, 36 + 38 * len(costs)) if len(costs) < 30 else HEIGHT * 3)


def _cost(value: float, unit: str) -> str:
    if unit == "s" and value >= 90:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} {label(unit)}"


def _number(row: Mapping[str, float], key: str) -> float:
    value = row.get(key)
    return float(value) if value is not None else math.nan


def _limits(cell: Interval, percent: bool) -> tuple[str, str]:
    def shown(value: float) -> str:
        if not math.isfinite(value):
            return "unbounded"
        return f"{value:.1%}" if percent else f"{value:.4g}"

    return shown(cell.low), shown(cell.high)


def _side_colour(cell: Interval, higher_is_better: bool) -> str:
    if not cell.excludes(0.0):
        return COLOURWAY[0]
    return COLOURWAY[2] if (cell.estimate > 0) == higher_is_better else COLOURWAY[5]
