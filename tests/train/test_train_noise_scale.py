"""The two-batch noise scale: planted values recovered, formulas against naive ones, intervals that cover, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.train.checkpoint import read_checkpoint, write_checkpoint
from alignlab.train.config import TrainConfig
from alignlab.train.noise_scale import (
    GradientNoiseScale,
    MovingMoments,
    noise_moments,
    progress_per_token,
    progress_per_update,
    ratio_interval,
)
from alignlab.train.observer import Observer, load_observer_states, observer_states
from alignlab.train.trainer import Batch, Metrics, Trainer

DIM = 200
CURVATURE = torch.linspace(0.2, 3.0, DIM)
DEVIATION = torch.linspace(0.5, 2.0, DIM)


class Quadratic(nn.Module):
    """L(θ; x) = ½ θᵀHθ + θ·x with x ~ N(0, Σ): its gradient is Hθ plus noise of covariance Σ, everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((DIM,), 0.3))

    @property
    def truth(self) -> tuple[float, float]:
        """(|G|², tr Σ)."""
        return float((CURVATURE * self.theta.detach()).square().sum()), float(DEVIATION.square().sum())


def quadratic_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    theta = model.theta
    loss = 0.5 * (CURVATURE * theta.square()).sum() + (batch["noise"] @ theta).mean()
    return loss, {"tokens": float(len(batch["noise"]))}


def noise_batch(i: int, rows: int = 8) -> Batch:
    generator = torch_generator(derive_seed(5, "noise", i))
    return {"noise": DEVIATION * torch.randn(rows, DIM, generator=generator)}


def observed(observer: Observer, *, steps: int, accumulate: int, uneven: bool = False) -> list[Metrics]:
    """Train with a learning rate of 0: the gradient's distribution stays what it is."""
    config = TrainConfig(steps=steps, learning_rate=0.0, accumulate=accumulate, schedule="constant", grad_clip=0.1)
    trainer = Trainer(Quadratic(), quadratic_loss, config, observers=[observer])
    return trainer.fit(lambda i: noise_batch(i, 1 + i % 7 if uneven else 8)).history


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.no_cover
def test_the_planted_noise_scale_is_recovered(uneven: bool) -> None:
    observer = GradientNoiseScale(decay=0.999)
    history = observed(observer, steps=100, accumulate=4, uneven=uneven)
    square, variance = Quadratic().truth
    found = observer.moments.estimate()
    assert found.gradient_square == pytest.approx(square, rel=0.1)
    assert found.variance == pytest.approx(variance, rel=0.1)
    assert found.scale.estimate == pytest.approx(variance / square, rel=0.1)
    assert found.scale.low < variance / square < found.scale.high
    assert found.scale.high - found.scale.low < 0.2 * found.scale.estimate
    assert history[-1]["noise_scale"] == found.scale.estimate
    assert (history[-1]["noise_scale/low"], history[-1]["noise_scale/high"]) == (found.scale.low, found.scale.high)
    if not uneven:
        assert history[0]["noise_scale/batch"] == 32.0


def test_moments_are_those_of_the_paper_for_equal_batches() -> None:
    small, big, b_small, b_big = [5.0, 9.0, 7.0], 4.0, 16, 48
    square, variance = noise_moments(small, [b_small] * 3, big)
    mean_small = sum(small) / 3
    assert square == pytest.approx((b_big * big - b_small * mean_small) / (b_big - b_small))  # appendix A.1
    assert variance == pytest.approx((mean_small - big) / (1 / b_small - 1 / b_big))


def test_moments_are_unbiased_for_unequal_batches() -> None:
    rng = np.random.default_rng(0)
    truth, sizes = np.array([1.0, -2.0, 0.5]), np.array([1.0, 5.0, 2.0, 9.0])
    found = []
    for _ in range(20_000):
        gradients = truth + rng.normal(size=(4, 3)) * 3 / np.sqrt(sizes)[:, None]
        total = sizes @ gradients / sizes.sum()
        found.append(noise_moments((gradients**2).sum(1).tolist(), sizes.tolist(), float(total @ total)))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    assert np.all(np.abs(mean - [truth @ truth, 27.0]) < 4 * error)  # false alarm: 1 in 8,000
    assert np.all(error < 0.2)


def test_moving_moments_are_weighted_means() -> None:
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(30, 2)) + np.array([2.0, 9.0])
    moments = MovingMoments(0.9)
    for square, variance in pairs:
        moments.add(square, variance)
    weights = 0.9 ** np.arange(30)[::-1]
    weights /= weights.sum()
    found = moments.estimate()
    assert [found.gradient_square, found.variance] == pytest.approx((weights @ pairs).tolist())
    centred = (pairs - weights @ pairs)[:, ::-1]
    share = float((weights**2).sum())
    covariance = (weights[:, None] * centred).T @ centred / (1 - share) * share
    expected = ratio_interval(found.variance, found.gradient_square, covariance, df=1 / share - 1, n=30)
    assert found.scale.low == pytest.approx(expected.low)
    assert found.scale.high == pytest.approx(expected.high)
    assert found.scale.n == 30


def test_one_update_has_no_interval_and_none_no_estimate() -> None:
    moments = MovingMoments(0.5)
    with pytest.raises(DataError, match="no update has been measured"):
        moments.estimate()
    moments.add(2.0, 6.0)
    scale = moments.estimate().scale
    assert (scale.estimate, scale.low, scale.high) == (pytest.approx(3.0), 0.0, math.inf)


def test_fieller_covers_and_bounds_what_it_can() -> None:
    rng = np.random.default_rng(2)
    true = np.array([12.0, 3.0])  # numerator, denominator
    spread = np.array([[9.0, 1.0], [1.0, 4.0]])
    hits = 0
    for _ in range(2000):
        pairs = rng.multivariate_normal(true, spread, size=20)
        mean = pairs.mean(0)
        found = ratio_interval(mean[0], mean[1], np.cov(pairs.T) / 20, df=19, n=20)
        assert found.low <= found.estimate <= found.high
        hits += found.low <= 4.0 <= found.high
    assert 0.935 <= hits / 2000 <= 0.965  # three standard errors around 95 %


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (10.0, 0.5, "low only"),  # the denominator may be 0
        (10.0, -0.5, "low only"),
        (0.1, 0.5, "nothing"),  # neither is told from 0
        (10.0, -50.0, "nothing"),
    ],
)
def test_what_the_data_do_not_bound_is_unbounded(numerator: float, denominator: float, expected: str) -> None:
    found = ratio_interval(numerator, denominator, np.eye(2), df=50, n=51)
    assert found.high == math.inf
    assert (found.estimate == math.inf) is (denominator <= 0)
    assert (found.low > 0) is (expected == "low only")
    if expected == "low only":
        t = 2.0086  # 97.5 % of Student's t with 50 degrees of freedom
        gap = abs(numerator - found.low * denominator) / math.sqrt(1 + found.low**2)
        assert gap == pytest.approx(t, abs=1e-3)  # at the limit the difference is t standard errors from 0


def test_a_gradient_lost_in_noise_logs_no_ratio() -> None:
    observer = GradientNoiseScale()
    model = Quadratic()
    with torch.no_grad():
        model.theta.zero_()  # at the minimum |G| = 0
    config = TrainConfig(steps=40, learning_rate=0.0, accumulate=2)
    history = Trainer(model, quadratic_loss, config, observers=[observer]).fit(noise_batch).history
    assert any("noise_scale" not in row for row in history) or any("noise_scale/high" not in row for row in history)
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert all("noise_scale/variance" in row for row in history)


def test_every_other_update() -> None:
    history = observed(GradientNoiseScale(every=3), steps=7, accumulate=2)
    assert [row["step"] for row in history if "noise_scale/variance" in row] == [3, 6]


def test_the_observer_changes_no_bit() -> None:
    def trained(observers: list[Observer]) -> Tensor:
        model = Quadratic()
        config = TrainConfig(steps=5, learning_rate=0.01, accumulate=3)
        Trainer(model, quadratic_loss, config, observers=observers).fit(noise_batch)
        return model.theta.detach()

    assert torch.equal(trained([]), trained([GradientNoiseScale()]))


def test_one_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 2 micro-batches an update are needed \(accumulate\)"):
        observed(GradientNoiseScale(), steps=1, accumulate=1)


def test_shares_of_progress() -> None:
    assert progress_per_update(100.0, 100.0) == progress_per_token(100.0, 100.0) == 0.5
    for batch in (3.0, 100.0, 5e4):
        updates, tokens = 1 / progress_per_update(batch, 100.0), 1 / progress_per_token(batch, 100.0)
        assert (updates - 1) * (tokens - 1) == pytest.approx(1.0)  # McCandlish et al. 2018, section 2.3
    assert (progress_per_update(5.0, math.inf), progress_per_token(5.0, math.inf)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: noise_moments([1.0], [2.0], 1.0), ConfigError, "here there is only 1"),
        (lambda: noise_moments([1.0, 2.0], [2.0], 1.0), DataError, "2 gradient norms came with batch sizes"),
        (lambda: noise_moments([1.0, 2.0], [2.0, 0.0], 1.0), DataError, "allowed: 2 numbers above 0"),
        (lambda: GradientNoiseScale(every=0), ConfigError, "every is 0"),
        (lambda: GradientNoiseScale(decay=1.0), ConfigError, "decay is 1.0"),
        (lambda: GradientNoiseScale(confidence=95), ConfigError, "confidence is 95"),
        (lambda: progress_per_update(0.0, 1.0), DataError, "batch is 0.0"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("stop", [1, 2, 7, 12, 13, 19])
def test_a_resumed_training_logs_the_same_numbers(stop: int, tmp_path: Path) -> None:
    config = TrainConfig(steps=20, learning_rate=0.05, accumulate=3, checkpoint_every=6)

    def train(place: Path, last: int) -> list[Metrics]:
        def batch_at(i: int) -> Batch:
            if i >= last * config.accumulate:
                raise InterruptedError
            return noise_batch(i)

        observers = [GradientNoiseScale(every=2, decay=0.9)]
        trainer = Trainer(Quadratic(), quadratic_loss, config, observers=observers, checkpoint_dir=place)
        return trainer.fit(batch_at).history

    straight = train(tmp_path / "straight", 20)
    with pytest.raises(InterruptedError):
        train(tmp_path / "torn", stop)
    assert train(tmp_path / "torn", 20) == straight  # to the last bit
    assert sum("noise_scale" in row for row in straight) >= 9


def test_a_checkpoint_from_before_observers_had_a_state_still_loads(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, learning_rate=0.05, accumulate=2)
    Trainer(Quadratic(), quadratic_loss, config, checkpoint_dir=tmp_path).fit(noise_batch)
    saved = read_checkpoint(tmp_path / "step_00000004")
    del saved.state["observers"]
    write_checkpoint(tmp_path, saved)
    watcher = GradientNoiseScale()
    assert Trainer(Quadratic(), quadratic_loss, config, observers=[watcher], checkpoint_dir=tmp_path).fit(noise_batch)
    assert watcher.moments.count == 0


def test_the_state_survives_json_and_overflow() -> None:
    moments, other = MovingMoments(0.9), MovingMoments(0.9)
    moments.add(1 / 3, 1e-30)
    moments.add(0.1, 7.0)
    other.load_state(json.loads(json.dumps(moments.state(), allow_nan=False)))
    for each in (moments, other):
        each.add(2.0, 3.0)
    assert moments.estimate() == other.estimate()
    with np.errstate(over="ignore"):
        moments.add(1e200, 1e200)
    other.load_state(json.loads(json.dumps(moments.state(), allow_nan=False)))
    assert other.state() == moments.state()
    assert "inf" in moments.state()["sums"]


def test_two_observers_of_a_class_keep_their_own_states_and_foreign_ones_are_refused() -> None:
    one, two = GradientNoiseScale(decay=0.5), GradientNoiseScale(decay=0.9)
    two.moments.add(1.0, 2.0)
    states = observer_states([one, two])
    assert list(states) == ["GradientNoiseScale", "GradientNoiseScale 2"]
    again = [GradientNoiseScale(decay=0.5), GradientNoiseScale(decay=0.9)]
    load_observer_states(again, states)
    assert [each.moments.count for each in again] == [0, 1]
    with pytest.raises(TrainingError, match=r"state of observer GradientNoiseScale in here does not fit it \(KeyError"):
        load_observer_states(again, {"GradientNoiseScale": {"listening": True}}, "here")
