"""Figures of training dynamics carry the numbers they are given, and say no to what cannot be drawn."""

from __future__ import annotations

import math

import pytest

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.viz.dynamics_figures import (
    MAX_COLUMNS,
    batch_trade,
    gradient_norms,
    layer_heat,
    loss_and_rate,
    noise_scale_band,
    range_ramp,
    thinned,
)


def test_thinning_keeps_the_ends() -> None:
    points = [(float(i), float(i)) for i in range(10_001)]
    kept = thinned(points, 100)
    assert len(kept) <= 102
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(points[:5], 100) == points[:5]


def test_loss_above_rate() -> None:
    figure = loss_and_rate([(1, 2.0), (2, math.nan)], [(1, 2.0), (2, 2.0)], [(1, 1e-3)], [(2, 1.9)])
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["loss"].y) == [2.0, None]
    assert by_name["validation"].y[0] == 1.9
    assert by_name["learning rate"].yaxis == "y2"


def test_the_band_has_both_limits_and_an_open_top() -> None:
    scales = [(1, Interval(math.inf, 0.0, math.inf, 1)), (2, Interval(100.0, 50.0, 400.0, 2))]
    figure = noise_scale_band(scales, [(1, 64.0), (2, 64.0)])
    band, estimate, batch = figure.data
    top = 10 ** figure.layout.yaxis.range[1]
    assert list(band.x) == [1, 2, 2, 1]
    assert list(band.y) == pytest.approx([top, 400.0, 50.0, 10 ** figure.layout.yaxis.range[0]])
    assert list(estimate.y) == [None, 100.0]
    assert list(batch.y) == [64.0, 64.0]


def test_the_trade_crosses_at_the_noise_scale() -> None:
    figure = batch_trade([10.0, 100.0, 1000.0], Interval(100.0, 50.0, math.inf, 9), 32.0)
    lines = {trace.name: list(trace.y) for trace in figure.data if trace.showlegend is not False}
    assert lines["progress per update"] == pytest.approx([10 / 110, 0.5, 1000 / 1100])
    assert lines["progress per token"] == pytest.approx([100 / 110, 0.5, 100 / 1100])
    assert "batch of the run" in lines


def test_heat_is_logarithmic_with_gaps_and_thinned() -> None:
    figure = layer_heat([1, 2], ["embed", "<b>"], [[1e-3, 0.0], [math.nan, 10.0]], name="ratio")
    (heat,) = figure.data
    assert [list(row) for row in heat.z] == [[-3.0, None], [None, 1.0]]
    assert list(heat.y) == ["embed", "&lt;b&gt;"]
    assert figure.layout.yaxis.autorange == "reversed"
    many = layer_heat(list(range(1000)), ["a"], [[1.0 + i for i in range(1000)]], name="x")
    assert len(many.data[0].x) == MAX_COLUMNS
    assert (many.data[0].x[0], many.data[0].x[-1]) == (0, 999)


def test_spikes_are_marked() -> None:
    figure = gradient_norms([(1, 1.0), (2, 9.0)], [(2, 9.0)], clip=1.0)
    by_name = {trace.name: trace for trace in figure.data}
    assert (list(by_name["spike"].x), list(by_name["spike"].y)) == ([2], [9.0])
    assert list(by_name["clipped above"].y) == [1.0, 1.0]


def test_the_ramp_is_not_flattened_by_its_end() -> None:
    figure = range_ramp([1e-4, 1e-3, 1e-2], [2.0, 1.0, 1e9], [2.0, 1.5, 1e8], {"suggested": 1e-4})
    assert figure.layout.yaxis.range[1] < 10
    assert figure.data[2].name == "suggested (1.0e-04)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_and_rate([], [], []), "loss is empty"),
        (lambda: noise_scale_band([(1, Interval(math.inf, 0.0, math.inf, 1))], []), "no finite noise scale"),
        (lambda: batch_trade([1.0], Interval(math.inf, 0.0, math.inf, 1), None), "noise scale of inf"),
        (lambda: layer_heat([1], ["a"], [[1.0, 2.0]], name="x"), r"values has shape \(1, 2\)"),
        (lambda: layer_heat([1], ["a"], [[0.0]], name="x"), "no value of 'x'"),
        (lambda: gradient_norms([], []), "norms is empty"),
        (lambda: range_ramp([], [], [], {}), "rates is empty"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
