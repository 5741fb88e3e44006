"""Figures of training dynamics: loss and rate, noise scale with its band, layers by step, gradients with spikes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.viz.theme import COLOURWAY, GRID, HEIGHT, INK, label, styled

Points = Sequence[tuple[float, float]]
MAX_POINTS = 2000
MAX_COLUMNS = 200
_GREY, _BLUE, _GREEN, _ORANGE, _PURPLE, _RED = COLOURWAY
_HEAT = [[0, "#2b4a6f"], [0.35, "#3b82b8"], [0.65, "#d9c27a"], [1, "#c0566a"]]


def thinned(points: Points, limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points, evenly spaced and with the last one: a browser draws no more in a figure's width."""
    stride = max(1, math.ceil(len(points) / limit))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def loss_and_rate(loss: Points, smoothed: Points, rate: Points, validation: Points = ()) -> go.Figure:
    """Loss (grey, its moving average blue, validation orange) above the learning rate, over steps."""
    if not loss:
        raise DataError("loss is empty; loss_and_rate needs at least one step")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    _line(figure, "loss", loss, _GREY, width=1, row=1)
    _line(figure, "smoothed", smoothed, _BLUE, row=1)
    if validation:
        _line(figure, "validation", validation, _ORANGE, row=1)
    _line(figure, "learning rate", rate, _GREEN, row=2)
    figure.update_yaxes(title={"text": "loss"}, row=1, col=1)
    figure.update_yaxes(title={"text": "learning rate"}, tickformat=".1e", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title={"text": "step"}, row=2, col=1)
    return styled(figure, height=HEIGHT + 120)


def noise_scale_band(scales: Sequence[tuple[float, Interval]], batch: Points, *, unit: str = "tokens") -> go.Figure:
    """The noise scale over steps on a logarithmic axis, with its interval as a band, and the batch size of the run.

    Where the data give no upper limit the band reaches the top of the figure, and an infinite estimate leaves a gap.
    """
    finite = [v for _, s in scales for v in (s.estimate, s.low, s.high) if math.isfinite(v) and v > 0]
    if not finite:
        raise DataError("scales holds no finite noise scale; noise_scale_band has nothing to draw")
    sizes = [y for _, y in batch if y > 0]
    # An axis of its own, so that an early lower limit near 0 does not flatten everything else.
    middle = sorted(s.estimate for _, s in scales if math.isfinite(s.estimate) and s.estimate > 0) or finite
    bottom, top = min([middle[0], *sizes]) / 10, max([middle[-1], *sizes]) * 10
    stride = max(1, math.ceil(len(scales) / MAX_POINTS))
    shown = [*scales[::stride]]
    steps = [step for step, _ in shown]

    def clipped(value: float) -> float:
        return min(max(value, bottom), top)

    figure = go.Figure()
    edges = [*(clipped(s.high) for _, s in shown), *(clipped(s.low) for _, s in reversed(shown))]
    figure.add_scatter(
        name=f"{shown[0][1].confidence:.0%} interval", x=[*steps, *reversed(steps)], y=edges, fill="toself",
        fillcolor="rgba(59, 130, 184, 0.20)", line={"width": 0}, hoverinfo="skip",
    )  # fmt: skip
    estimates = [(step, s.estimate if math.isfinite(s.estimate) else math.nan) for step, s in shown]
    _line(figure, "noise scale", estimates, _BLUE)
    if sizes:
        _line(figure, "batch of the run", batch, _ORANGE, dash="dash")
    figure.update_yaxes(type="log", title={"text": label(unit)}, range=[math.log10(bottom), math.log10(top)])
    figure.update_xaxes(title={"text": "step"}, showgrid=False)
    return styled(figure)


def batch_trade(batches: Sequence[float], scale: Interval, batch: float | None, *, unit: str = "tokens") -> go.Figure:
    """What a batch size buys: progress per update and per token, as shares of their best, with the interval of both.

    batches: sizes to draw, above 0; batch: the size of the run, marked.
    """
    if not batches or not math.isfinite(scale.estimate) or scale.estimate <= 0:
        raise DataError(
            f"{len(batches)} batch sizes and a noise scale of {scale.estimate}; both must be there, above 0"
        )
    figure = go.Figure()
    for name, colour, share in (
        ("progress per update", _BLUE, lambda b, s: b / (b + s)),
        (f"progress per {unit.removesuffix('s')}", _GREEN, lambda b, s: s / (b + s)),
    ):
        low = [share(b, scale.low) for b in batches]
        high = [share(b, scale.high) if math.isfinite(scale.high) else share(b, scale.estimate * 1e6) for b in batches]
        figure.add_scatter(
            x=[*batches, *reversed(batches)], y=[*low, *reversed(high)], fill="toself", opacity=0.18, fillcolor=colour,
            line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            name=label(name), x=list(batches), y=[share(b, scale.estimate) for b in batches], mode="lines",
            line={"width": 2, "color": colour}, hovertemplate=f"{label(name)}<br>%{{x:.3s}}: %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
    if batch is not None and batch > 0:
        figure.add_vline(x=batch, line={"color": INK, "width": 1.5, "dash": "dot"})
        figure.add_scatter(
            name="batch of the run", x=[batch, batch], y=[0, 1], mode="lines",
            line={"color": INK, "width": 1.5, "dash": "dot"}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(type="log", title={"text": f"batch size ({label(unit)})"})
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return styled(figure)


def layer_heat(
    steps: Sequence[float], layers: Sequence[str], values: Sequence[Sequence[float]], *, name: str
) -> go.Figure:
    """One row a layer (the first of the network at the top), one column a step, colour by the logarithm of the value.

    values: [layer][step], positive; anything else leaves its cell empty. More than `MAX_COLUMNS` steps are thinned.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (len(layers), len(steps)) or not table.size:
        raise DataError(f"values has shape {table.shape} for {len(layers)} layers and {len(steps)} steps")
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_COLUMNS)).round().astype(int))
    table = table[:, chosen]
    good = np.isfinite(table) & (table > 0)
    logs = np.where(good, np.log10(np.where(good, table, 1.0)), np.nan)
    if not good.any():
        raise DataError(f"no value of {name!r} is finite and above 0; layer_heat has nothing to draw")
    ticks = _decades(float(np.nanmin(logs)), float(np.nanmax(logs)))
    figure = go.Figure()
    figure.add_heatmap(
        x=[steps[i] for i in chosen],
        y=[label(layer) for layer in layers],
        z=[[None if math.isnan(v) else round(v, 4) for v in row] for row in logs.tolist()],
        customdata=[[None if not ok else float(f"{v:.4g}") for v, ok in zip(r, g)] for r, g in zip(table, good)],
        colorscale=_HEAT,
        colorbar={"thickness": 10, "outlinewidth": 0, "tickvals": ticks, "ticktext": [f"{10**t:.3g}" for t in ticks]},
        hovertemplate=f"<b>%{{y}}</b>, step %{{x}}<br>{label(name)} %{{customdata:.3g}}<extra></extra>",
        hoverongaps=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category", tickfont={"size": 11}, dtick=1)
    figure.update_xaxes(title={"text": "step"}, showgrid=False)
    figure.update_layout(margin={"t": 12})
    return styled(figure, height=max(200, 90 + 17 * len(layers)))


def gradient_norms(norms: Points, spikes: Points, clip: float | None = None) -> go.Figure:
    """Gradient norm before clipping over steps, logarithmic; red marks are spikes, the dotted line is the clip."""
    if not norms:
        raise DataError("norms is empty; gradient_norms needs at least one step")
    figure = go.Figure()
    _line(figure, "gradient norm", norms, _BLUE, width=1.5)
    if spikes:
        figure.add_scatter(
            name="spike", x=[x for x, _ in spikes], y=[y for _, y in spikes], mode="markers",
            marker={"color": _RED, "size": 10, "symbol": "diamond", "line": {"width": 1, "color": INK}},
            hovertemplate="spike at step %{x}<br>%{y:.3g}<extra></extra>",
        )  # fmt: skip
    if clip:
        _line(figure, "clipped above", [(norms[0][0], clip), (norms[-1][0], clip)], _GREY, dash="dot")
    figure.update_yaxes(type="log", title={"text": "norm"})
    figure.update_xaxes(title={"text": "step"}, showgrid=False)
    return styled(figure)


def range_ramp(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float]
) -> go.Figure:
    """Loss against a rising learning rate (logarithmic), with named rates marked, such as the suggested one."""
    if not rates:
        raise DataError("rates is empty; range_ramp needs at least one update")
    figure = go.Figure()
    # What blew up would press everything else flat: the axis ends a little above where the ramp was when it left.
    _line(figure, "loss", list(zip(rates, losses)), _GREY, width=1)
    _line(figure, "smoothed", list(zip(rates, smoothed)), _BLUE)
    lowest, fall = min(smoothed), max(smoothed[0] - min(smoothed), 0.1 * abs(smoothed[0]))
    bottom, top = lowest - 0.2 * fall - 1e-12, min(max(smoothed), lowest + 4 * fall) + 0.2 * fall + 1e-12
    for (name, rate), colour in zip(marks.items(), (_GREEN, _ORANGE, _PURPLE)):
        figure.add_scatter(
            name=f"{label(name)} ({rate:.1e})", x=[rate, rate], y=[bottom, top], mode="lines",
            line={"color": colour, "width": 1.5, "dash": "dash"}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(type="log", title={"text": "learning rate"}, tickformat=".0e", gridcolor=GRID)
    figure.update_yaxes(title={"text": "loss"}, range=[bottom, top])
    return styled(figure)


def _line(
    figure: go.Figure, name: str, points: Points, colour: str, *, width: float = 2, dash: str | None = None,
    row: int | None = None,
) -> None:  # fmt: skip
    """One line; what is not finite leaves a gap."""
    kept = thinned(points)
    where = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        name=label(name),
        x=[x for x, _ in kept],
        y=[y if math.isfinite(y) else None for _, y in kept],
        mode="lines" if len(kept) > 1 else "markers",
        line={"width": width, "color": colour, "dash": dash},
        hovertemplate=f"{label(name)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>" if row or not dash else None,
        hoverinfo=None if row or not dash else "skip",
        **where,
    )


def _decades(low: float, high: float) -> list[float]:
    """Ticks at whole powers of ten, or at halves where there are fewer than two of them."""
    step = 1.0 if math.floor(high) - math.ceil(low) >= 1 else 0.5
    ticks = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return ticks or [round((low + high) / 2, 3)]
