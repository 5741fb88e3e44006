"""Figures carry the numbers they are given, escape names and read on both grounds."""

from __future__ import annotations

import json
import math

import plotly.graph_objects as go
import pytest

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval, wilson
from alignlab.viz.figures import cost_bars, difference_plot, kl_reward, line, stage_bars
from alignlab.viz.theme import COLOURWAY, INK
from alignlab.viz.training_figures import learning_curves


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted([luminance(a), luminance(b)], reverse=True)
    return (high + 0.05) / (low + 0.05)


METRICS = {
    "harmless": {"base": wilson(60, 120), "RL": wilson(90, 120)},
    "helpful": {"base": Interval(0.5, -math.inf, 0.7, 9), "RL": None},
}


def test_stage_bars_carry_estimates_and_intervals() -> None:
    figure = stage_bars(METRICS)
    base, rl = figure.data
    assert (base.name, list(base.x), list(base.y)) == ("base", ["harmless", "helpful"], [0.5, 0.5])
    expected = wilson(60, 120)
    assert base.error_y.array[0] == pytest.approx(expected.high - 0.5)
    assert base.error_y.arrayminus[0] == pytest.approx(0.5 - expected.low)
    assert base.error_y.arrayminus[1] == 0.0  # an unbounded limit has no whisker, and no infinite one
    assert list(rl.x) == ["harmless"]  # what was not measured is not drawn as zero
    assert figure.layout.yaxis.rangemode == "tozero"


def test_differences_are_coloured_by_direction() -> None:
    up, down, across = Interval(0.2, 0.1, 0.3, 9), Interval(-0.2, -0.3, -0.1, 9), Interval(0.1, -0.1, 0.3, 9)
    figure = difference_plot({"a": up, "b": down, "c": across, "refusal": up}, lower_is_better=["refusal"])
    good, bad, even = COLOURWAY[2], COLOURWAY[5], COLOURWAY[0]
    assert list(figure.data[0].marker.color) == [good, bad, even, bad]


def test_kl_reward_drops_steps_that_are_not_finite() -> None:
    rows = [{"step": 1, "kl": 0.1, "reward": 0.2}, {"step": 2, "kl": math.nan, "reward": 1.0}, {"kl": 0.3}]
    figure = kl_reward([*rows, {"step": 4, "kl": 0.4, "reward": 0.5}])
    assert list(figure.data[0].x) == [0.1, 0.4]
    assert list(figure.data[0].marker.color) == [1, 4]
    with pytest.raises(DataError, match="'reward'"):
        kl_reward(rows[1:])


def test_line_leaves_gaps() -> None:
    figure = line({"loss": [(0, 1.0), (1, math.inf), (2, 0.5)]}, x_label="step", y_label="loss", log_y=True)
    assert list(figure.data[0].y) == [1.0, None, 0.5]
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.showlegend is False


def test_learning_curves_share_a_colour_and_one_entry_of_the_legend() -> None:
    lines = {"ours": [[(0, 1.0), (4, 2.0)], [(0, math.nan), (6, 3.0)]], "other": [[(2, 0.0)]]}
    levels = {"base": Interval(0.5, 0.25, 0.75, 9), "one seed": Interval(0.1, -math.inf, math.inf, 1)}
    figure = learning_curves(lines, levels, x_label="steps", y_label="score")
    one, two, other, base, single = figure.data
    assert [trace.showlegend for trace in (one, two, other)] == [True, False, True]
    assert one.line.color == two.line.color != other.line.color
    assert list(two.y) == [None, 3.0]
    assert (list(base.x), list(base.y)) == ([0, 6], [0.5, 0.5])
    assert list(single.y) == [0.1, 0.1]
    assert [(band.y0, band.y1) for band in figure.layout.shapes] == [(0.25, 0.75)]  # none where it is unbounded


def test_cost_bars_name_time_and_share() -> None:
    figure = cost_bars({"sft": 30.0, "rl": 90.0})
    assert list(figure.data[0].text) == ["30 s · 25%", "1.5 min · 75%"]
    assert list(cost_bars({"x": 0.0}).data[0].text) == ["0 s · 0%"]


@pytest.mark.parametrize(
    "figure",
    [
        stage_bars({"<b>m": {"<i>s": wilson(1, 2)}}),
        difference_plot({"<i>s": Interval(0.1, 0.0, 0.2, 3)}),
        line({"<i>s": [(0, 1.0)]}, x_label="<b>m", y_label="y"),
        cost_bars({"<i>s": 1.0}, unit="<b>"),
        learning_curves({"<i>s": [[(0, 1.0)]]}, {"<b>": Interval(0.1, 0.0, 0.2, 3)}, x_label="<b>m", y_label="y"),
    ],
)
def test_names_are_escaped_and_ground_is_transparent(figure: go.Figure) -> None:
    spec = json.loads(figure.to_json())
    words = [*spec["data"][0].get("y", []), *spec["data"][0].get("x", []), spec["data"][0].get("name", "")]
    words += [axis.get("title", {}).get("text", "") for axis in (spec["layout"]["xaxis"], spec["layout"]["yaxis"])]
    words += spec["data"][0].get("text", [])
    assert any("&lt;i&gt;s" in str(word) for word in words)
    assert not any("<" in str(word) for word in words)
    layout = figure.layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.autosize is True


@pytest.mark.parametrize("ground", ["#ffffff", "#1a1f26"])
def test_colours_read_on_both_grounds(ground: str) -> None:
    assert contrast(INK, ground) >= 3.0
    assert min(contrast(colour, ground) for colour in COLOURWAY) >= 2.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stage_bars({}), "metrics is empty"),
        (lambda: difference_plot({}), "differences is empty"),
        (lambda: line({"a": []}, x_label="x", y_label="y"), "series is empty"),
        (lambda: learning_curves({"a": [[]]}, {}, x_label="x", y_label="y"), "curves holds no points"),
        (lambda: cost_bars({}), "costs is empty"),
        (lambda: cost_bars({"rl": -1.0}), "cost of 'rl' is -1.0"),
        (lambda: cost_bars({"rl": math.nan}), "cost of 'rl' is nan"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
