"""The dynamics report: what is read back, what is found in it, and what it says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from alignlab.core.errors import RunError
from alignlab.core.runs import Run
from alignlab.stats.interval import Interval
from alignlab.train.dynamics_reading import (
    count,
    limits,
    read_activations,
    read_agreement,
    read_gradients,
    read_loss,
    read_noise_scale,
    read_updates,
)
from alignlab.train.dynamics_records import Dynamics, LayerTable, gradient_spikes, smoothed
from alignlab.train.dynamics_report import Measured, build_report
from alignlab.train.noise_scale import NoiseScale
from alignlab.train.range_test import RangeTest

LAYERS = ("embed", "blocks.0.attn", "blocks.0", "blocks.1")


def write_run(path: Path, *, noise: bool = True, layers: bool = True, steps: int = 60, name: str = "pretrain") -> Run:
    """A run as the trainer and the observers write it, with a planted noise scale of 3000 and a spike at step 40."""
    rng = np.random.default_rng(0)
    with Run.create({"train": {"grad_clip": 1.0}}, name="tiny", path=path) as run:
        for step in range(1, steps + 1):
            row = {
                "loss": 2 + math.exp(-step / 20),
                "learning_rate": 1e-3,
                "grad_norm": 0.5 * math.exp(rng.normal() / 9),
            }
            if step == 40:
                row["grad_norm"] = 8.0
            if noise:
                row |= {
                    "noise_scale/gradient_square": 0.1 + rng.normal() * 0.02,
                    "noise_scale/variance": 300 + rng.normal() * 9,
                    "noise_scale/batch": 512.0,
                }
            if layers and step % 5 == 0:
                for i, layer in enumerate(LAYERS):
                    row |= {f"layers/{layer}/gradient_norm": 0.1 + i, f"layers/{layer}/update_ratio": 1e-3 * (1 + i)}
                    if layer.startswith("blocks"):
                        row |= {f"layers/{layer}/activation_rms": 1.0 + i, f"layers/{layer}/activation_max": 20.0 * i}
            run.log(step, {f"{name}/{key}": value for key, value in row.items()})
    return Run.read(path)


def test_what_is_read_back(tmp_path: Path) -> None:
    dynamics = Dynamics(write_run(tmp_path / "run"))
    assert dynamics.name == "pretrain"
    assert dynamics.series("loss")[0] == (1, pytest.approx(2 + math.exp(-1 / 20)))
    table = dynamics.table("update_ratio")
    assert table is not None
    assert (table.layers, table.steps[:2]) == (list(LAYERS), [5, 10])
    assert table.values[:, 0].tolist() == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])
    assert dynamics.table("no_such") is None
    step, scale = dynamics.noise_scales()[-1]
    assert step == 60
    assert scale.low < 3000 < scale.high
    assert dynamics.setting("grad_clip") == 1.0


def test_spikes_are_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal(size=2000) * 0.2 - np.arange(2000) / 1000)  # heavy noise on a falling norm
    for step, factor in ((500, 8.0), (1500, 20.0)):
        values[step] *= factor
    found = gradient_spikes([(i, float(v)) for i, v in enumerate(values)])
    assert [step for step, _ in found] == [500, 1500]
    assert gradient_spikes([(i, 1.0) for i in range(100)]) == []
    assert gradient_spikes([(i, 1.0) for i in range(50)] + [(50, 1.9), (51, 2.1)]) == [(51, 2.1)]
    assert gradient_spikes([(0, 1.0), (1, math.inf)]) == [(1, math.inf)]


def test_smoothing_is_corrected_for_its_start() -> None:
    assert [value for _, value in smoothed([(1, 4.0), (2, math.nan), (3, 4.0)], 0.9)] == pytest.approx([4.0] * 3)


def test_the_page_has_every_part_and_no_address(tmp_path: Path) -> None:
    page = build_report(Dynamics(write_run(tmp_path / "run"))).html()
    for heading in (
        "Loss and learning rate", "Gradient noise scale and critical batch size", "Updates, layer by layer",
        "Activations, layer by layer", "Gradients and their spikes",
    ):  # fmt: skip
        assert f">{heading}</h2>" in page
    assert page.count('<script type="application/json"') == 7
    assert "1 spike</strong>, at step 40" in page
    assert "is <strong>below</strong> that" in page
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly.js names addresses it never loads
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", body)


def test_parts_without_data_say_what_to_switch_on(tmp_path: Path) -> None:
    for noise in (True, False):
        page = build_report(Dynamics(write_run(tmp_path / f"run-{noise}", noise=noise, layers=not noise))).html()
        assert page.count("Not recorded. To record") == (2 if noise else 1)
        assert "--noise-scale-every" in page


def test_a_run_without_observers_is_refused(tmp_path: Path) -> None:
    dynamics = Dynamics(write_run(tmp_path / "run", noise=False, layers=False))
    with pytest.raises(RunError, match=r"neither noise scale nor layer statistics; .* --noise-scale-every"):
        build_report(dynamics)


def test_which_training_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Run.create({}, name="many", path=path) as run:
        for name in ("sl", "rl"):
            run.log(1, {f"{name}/loss": 1.0, f"{name}/learning_rate": 0.1})
    with pytest.raises(RunError, match="several trainings, name one of: sl, rl"):
        Dynamics(Run.read(path))
    with pytest.raises(RunError, match="no training 'pretrain', it has: sl, rl"):
        Dynamics(Run.read(path), "pretrain")
    assert Dynamics(Run.read(path), "rl").name == "rl"
    with Run.open(path) as run:
        run.log(2, {"rl/layers/a/update_ratio": 1.0})
    assert Dynamics(Run.read(path)).name == "rl"  # the only one that was observed
    with Run.create({}, name="none", path=tmp_path / "empty"):
        pass
    with pytest.raises(RunError, match="has logged no training"):
        Dynamics(Run.read(tmp_path / "empty"))


def test_measured_parts_join_the_page(tmp_path: Path) -> None:
    noise = NoiseScale(0.1, 310.0, Interval(3100.0, 2500.0, 4000.0, 64))
    rates = (1e-4, 1e-3, 1e-2)
    ramp = RangeTest(rates, (2.0, 1.0, 9.0), (2.0, 1.5, 4.0), 1e-2, 1e-3, True)
    page = build_report(
        Dynamics(write_run(tmp_path / "run")), measured=Measured("64 rows of 32 tokens", noise, ramp)
    ).html()
    assert "agree within their intervals" in page
    assert "<strong>1.0e-03</strong>, is a peak" in page
    alone = build_report(
        Dynamics(write_run(tmp_path / "bare", noise=False, layers=False)), measured=Measured("64 rows", noise)
    ).html()
    assert "Single examples give <strong>3,100 tokens</strong>" in alone


# Sentences


def test_numbers_in_words() -> None:
    assert [count(v) for v in (0.123456, 42.0, 18_345.0, 1.23456e6, math.inf)] == [
        "0.123", "42", "18,300", "1,230,000", "unbounded",
    ]  # fmt: skip
    assert limits(Interval(5, 1.0, math.inf, 3)) == "95 %: at least 1"
    assert limits(Interval(5, 0.0, math.inf, 3)) == "95 %: no bound"


@pytest.mark.parametrize(("slope", "word"), [(-0.01, "still falling"), (0.0, "flat"), (0.02, "rising")])
def test_the_loss_at_the_end(slope: float, word: str) -> None:
    assert f"**{word}**" in read_loss([(i, 3.0 + slope * i) for i in range(100)])


def test_the_batch_against_the_noise_scale() -> None:
    scale = Interval(1000.0, 800.0, 1300.0, 50)
    assert "is **below**" in read_noise_scale([(9, scale)], 100.0)
    assert "lies **within**" in read_noise_scale([(9, scale)], 1000.0)
    assert "An update makes 50 % of the progress" in read_noise_scale([(9, scale)], 1000.0)
    assert "is **above**" in read_noise_scale([(9, scale)], 10_000.0)
    assert "It **grew**" in read_noise_scale([(i, Interval(9.0, 8.0, 11.0, 5)) for i in range(9)] + [(9, scale)], None)
    assert "lost in the noise" in read_noise_scale([(9, Interval(math.inf, 70.0, math.inf, 50))], 100.0)
    apart = NoiseScale(1.0, 1.0, Interval(5000.0, 4000.0, 6000.0, 50))
    assert "**disagree**" in read_agreement(scale, apart)


def test_layers_that_stand_out() -> None:
    values = np.array([[1e-3] * 8, [1e-3] * 8, [5e-2] * 8, [1e-6] * 8])
    text = read_updates(LayerTable(list(range(8)), ["a", "b", "fast", "slow"], values))
    assert "within the usual range" in text
    assert "ten times as fast: fast." in text
    assert "ten times as slow: slow." in text
    assert "**large**" in read_updates(LayerTable([1], ["a"], np.array([[0.1]])))
    assert "**small**" in read_updates(LayerTable([1], ["a"], np.array([[1e-6]])))


def test_activations_that_grow() -> None:
    rms = np.array([np.ones(8), np.linspace(2.0, 40.0, 8)])
    largest = LayerTable(list(range(8)), ["blocks.0", "blocks.1"], rms * 1000)
    text = read_activations(LayerTable(list(range(8)), ["blocks.0", "blocks.1"], rms), largest)
    assert "strong growth with depth" in text
    assert "during the training" in text
    assert "in blocks.1. **That is close to what float16 can hold" in text


def test_gradients_in_words() -> None:
    assert read_gradients([(1, 0.5), (2, 2.0)], [], 1.0) == (
        "There was **no spike**: no norm stands out from the 50 logged steps before it. "
        "In 50 % of the logged updates the gradient was clipped to 1."
    )
    assert "**2 spikes**, at steps 3, 9." in read_gradients([(3, 1.0)], [(3, 1.0), (9, 1.0)], None)
