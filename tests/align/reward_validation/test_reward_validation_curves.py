"""Best-of-n and over-optimisation curves on policies whose every expectation is known."""

from __future__ import annotations

import json
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from alignlab.align.reward_validation.best_of_n import (
    best_of_n,
    best_of_n_kl,
    best_of_n_kl_discrete,
    best_of_n_policy,
    doubling_sizes,
    kl_divergence,
    rank_weights,
)
from alignlab.align.reward_validation.curves import (
    Curve,
    best_of_n_curve,
    fall_after_peak,
    fit_curve,
    turning_point,
)
from alignlab.align.reward_validation.figures import overoptimisation_figure
from alignlab.align.reward_validation.tilted import (
    tilted_from_samples,
    tilted_point,
    tilted_policy,
    turn_of_gold,
)
from alignlab.core.errors import ConfigError, DataError

RNG = np.random.default_rng(7)


# Best of n


def test_the_estimator_is_the_mean_over_all_subsets() -> None:
    proxy, gold = RNG.normal(size=7), RNG.normal(size=7)
    for n in range(1, 8):
        picks = [max(subset, key=lambda i: proxy[i]) for subset in combinations(range(7), n)]
        assert len(picks) == comb(7, n)
        assert best_of_n([proxy], [gold], [n])[0, 0] == pytest.approx(np.mean(gold[picks]), abs=1e-12)


def test_ties_are_picked_alike() -> None:
    proxy, gold = np.array([1.0, 0, 1, 1, 0, 2]), RNG.normal(size=6)
    for n in range(1, 7):
        expected = []
        for subset in combinations(range(6), n):
            best = [i for i in subset if proxy[i] == max(proxy[j] for j in subset)]
            expected.append(gold[best].mean())
        assert best_of_n([proxy], [gold], [n])[0, 0] == pytest.approx(np.mean(expected), abs=1e-12)


def test_it_is_unbiased_for_a_categorical_policy() -> None:
    """20,000 prompts of 8 answers each; five standard errors of the mean (1 in 1.7 million, twelve times)."""
    reference = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    proxy, gold = np.array([0.0, 1.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.5, 1.5, 2.0, -4.0])
    drawn = RNG.choice(5, size=(20_000, 8), p=reference)
    for values in (gold, proxy, np.ones(5)):
        found = best_of_n(proxy[drawn], values[drawn], [1, 2, 4, 8])
        for column, n in enumerate([1, 2, 4, 8]):
            exact = best_of_n_policy(reference, proxy, n) @ values
            error = found[:, column].std() / sqrt(20_000)
            assert found[:, column].mean() == pytest.approx(exact, abs=5 * error + 1e-12)


def test_the_kl_is_exact_without_ties_and_a_bound_with_them() -> None:
    assert best_of_n_kl([1, 2]).tolist() == pytest.approx([0, np.log(2) - 0.5])
    fine = np.full(20_000, 1 / 20_000)
    coarse = np.array([0.5, 0.3, 0.2])
    for n in (2, 16, 64):
        assert best_of_n_kl_discrete(fine, np.arange(20_000), n) == pytest.approx(float(best_of_n_kl(n)), abs=2e-3)
        exact = best_of_n_kl_discrete(coarse, [0.0, 1, 2], n)
        assert 0 < exact < float(best_of_n_kl(n))
        assert exact <= -np.log(0.2) + 1e-12  # no policy over the best answer alone is further away
        policy = best_of_n_policy(coarse, [0.0, 1, 2], n)
        assert policy.sum() == pytest.approx(1)
        assert policy[0] == pytest.approx(0.5**n)
    assert best_of_n_kl_discrete(coarse, [1.0, 1, 1], 9) == pytest.approx(0, abs=1e-12)  # nothing to choose by


def test_weights_and_sizes() -> None:
    weights = rank_weights(1000, [1, 2, 500, 1000])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(weights[0], 1e-3, rtol=1e-9)
    assert weights[3, -1] == pytest.approx(1)
    assert doubling_sizes(1) == [1]
    assert doubling_sizes(24) == [1, 2, 4, 8, 16, 24]
    with pytest.raises(DataError, match="n is 3, allowed: 1 to the 2 samples"):
        best_of_n([[1.0, 2.0]], [[1.0, 2.0]], [3])
    with pytest.raises(DataError, match="prompt 0, sample 1 is nan"):
        best_of_n([[1.0, np.nan]], [[1.0, 2.0]], [1])
    with pytest.raises(DataError, match=r"shape \(1, 2\) and values \(1, 1\)"):
        best_of_n([[1.0, 2.0]], [[1.0]], [1])
    with pytest.raises(DataError, match="n is 0"):
        best_of_n_kl(0)
    with pytest.raises(DataError, match="sums to 2"):
        best_of_n_policy([1.0, 1.0], [0.0, 1.0], 2)


# The policy that RL aims at


def gaussian(n: int = 4001) -> tuple[np.ndarray, np.ndarray]:
    """A standard normal proxy reward on a fine grid: its tilt is the same normal, moved."""
    x = np.linspace(-10, 14, n)
    p = np.exp(-(x**2) / 2)
    return p / p.sum(), x


def test_the_tilted_normal_is_known_in_closed_form() -> None:
    """Proxy x ~ N(0, 1) and gold u x - v x^2: at strength t the policy is N(t, 1), KL = t^2 / 2, so with d = sqrt(KL)
    the gold reward gains d (sqrt(2) u - 2 v d), best-of-n's form, and turns at t = u / (2 v)."""
    p, x = gaussian()
    u, v = 1.0, 0.2
    gold = u * x - v * x**2
    strengths = np.linspace(0, 4, 9)
    points = [tilted_point(p, x, gold, t) for t in strengths]
    for t, point in zip(strengths, points, strict=True):
        assert point.kl == pytest.approx(t**2 / 2, abs=1e-9)
        assert point.proxy == pytest.approx(t, abs=1e-9)
        assert point.gold == pytest.approx(u * t - v * (t**2 + 1), abs=1e-9)
        assert point.covariance == pytest.approx(u - 2 * v * t, abs=1e-9)
    turn = turn_of_gold(p, x, gold, most=5)
    assert turn is not None
    assert turn.inverse_beta == pytest.approx(u / (2 * v), abs=1e-6)
    table = {name: np.tile([getattr(point, name) for point in points], (2, 1)) for name in ("kl", "proxy", "gold")}
    fit = fit_curve(Curve("best-of-n", strengths, **table), n_resamples=100)
    assert (fit.a.estimate, fit.b.estimate) == pytest.approx((sqrt(2) * u, 2 * v), abs=1e-6)
    assert fit.turn.estimate == pytest.approx(sqrt(turn.kl), abs=1e-6)
    assert fit.error < 1e-8
    assert turn_of_gold(p, x, x, most=5) is None


def test_no_policy_of_the_same_kl_has_a_higher_proxy_reward() -> None:
    reference, proxy = RNG.dirichlet(np.ones(6)), RNG.normal(size=6)
    tilted = tilted_point(reference, proxy, proxy, 1.5)
    for _ in range(200):
        other = RNG.dirichlet(np.ones(6))
        low, high = 0.0, 1.0  # mix with the reference until the KL is the same
        for _ in range(50):
            middle = (low + high) / 2
            mixed = middle * other + (1 - middle) * reference
            low, high = (middle, high) if kl_divergence(mixed, reference) < tilted.kl else (low, middle)
        assert (low * other + (1 - low) * reference) @ proxy <= tilted.proxy + 1e-9


def test_samples_give_the_tilted_policy() -> None:
    """4,000 prompts of 400 answers: the bias of normalised weights is below 0.01, errors of the mean below 0.002."""
    reference = np.array([0.4, 0.3, 0.2, 0.1])
    proxy, gold = np.array([0.0, 0.5, 1.0, 2.0]), np.array([0.0, 1.0, 1.5, -1.0])
    drawn = RNG.choice(4, size=(4000, 400), p=reference)
    kl, got_proxy, got_gold, effective = tilted_from_samples(proxy[drawn], gold[drawn], [0.0, 1.0])
    point = tilted_point(reference, proxy, gold, 1.0)
    assert kl[:, 0] == pytest.approx(0, abs=1e-9)
    assert effective[:, 0] == pytest.approx(400)
    assert kl[:, 1].mean() == pytest.approx(point.kl, abs=0.015)
    assert got_proxy[:, 1].mean() == pytest.approx(point.proxy, abs=0.015)
    assert got_gold[:, 1].mean() == pytest.approx(point.gold, abs=0.015)
    assert tilted_policy(reference, proxy, 0).tolist() == pytest.approx(reference.tolist())


# Fits


def planted_curve(
    kind: str, a: float, b: float, prompts: int, seed: int, spread: float = 0.5, noise: float = 0.3
) -> Curve:
    """Every prompt follows the form with an a and b of its own around the planted ones, and noise."""
    rng = np.random.default_rng(seed)
    d = np.sqrt(best_of_n_kl(2.0 ** np.arange(9))) if kind == "best-of-n" else np.linspace(0, 6, 13)
    own_a, own_b = a + spread * rng.normal(size=(prompts, 1)), b + 0.3 * spread * rng.normal(size=(prompts, 1))
    worn = d if kind == "best-of-n" else np.log(np.where(d > 0, d, 1))
    gold = d * (own_a - own_b * worn) + noise * rng.normal(size=(prompts, len(d))) * (d > 0)
    return Curve(kind, np.arange(len(d)), d**2, np.tile(d, (prompts, 1)), gold + 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "a", "b"), [("best-of-n", 1.2, 0.4), ("rl", 0.8, 0.5)])
def test_planted_parameters_come_back(kind: str, a: float, b: float) -> None:
    fit = fit_curve(planted_curve(kind, a, b, 400, seed=1, spread=0.1, noise=0.05))
    assert fit.a.estimate == pytest.approx(a, abs=0.03)
    assert fit.b.estimate == pytest.approx(b, abs=0.02)
    assert fit.turn.estimate == pytest.approx(float(turning_point(kind, a, b)), rel=0.03)  # type: ignore[arg-type]
    top = np.linspace(0, 8, 80_001)
    assert top[fit.gain(top).argmax()] == pytest.approx(fit.turn.estimate, abs=2e-3)
    json.dumps(fit.as_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "a", "b"), [("best-of-n", 1.0, 0.35), ("rl", 0.8, 0.5)])
def test_intervals_cover_the_planted_values(kind: str, a: float, b: float) -> None:
    """400 worlds of 30 prompts: coverage 95 % has a standard error of 1.1 points; between 91 and 99 % allowed (the
    bootstrap of 30 prompts is a point or so off, and the turn is a ratio)."""
    truth = {"a": a, "b": b, "turn": float(turning_point(kind, a, b))}  # type: ignore[arg-type]
    covered = dict.fromkeys(truth, 0)
    for seed in range(400):
        fit = fit_curve(planted_curve(kind, a, b, 30, seed=seed), n_resamples=800, seed=seed)
        for name, value in truth.items():
            covered[name] += not getattr(fit, name).excludes(value)
    for name, count in covered.items():
        assert 0.91 <= count / 400 <= 0.99, (name, count / 400)


def test_turns() -> None:
    assert turning_point("best-of-n", [1.0, 1.0, -1.0, -1.0], [0.5, -0.5, 0.5, -0.5]).tolist() == [1, np.inf, 0, np.inf]
    assert turning_point("rl", [1.0, 1.0, 0.0, 1e6], [1.0, 0.0, 1.0, 1.0]).tolist() == [
        1,
        np.inf,
        pytest.approx(np.exp(-1)),
        np.inf,
    ]
    turned = fit_curve(planted_curve("best-of-n", 1.0, 0.5, 100, seed=0, spread=0.05))
    assert turned.verdict == "turned"
    assert fit_curve(planted_curve("best-of-n", 1.0, -0.1, 100, seed=0, spread=0.05)).verdict == "not yet"
    rising = fit_curve(planted_curve("best-of-n", 1.0, -0.1, 100, seed=0, spread=0.05))
    assert rising.turn.estimate == np.inf
    assert rising.as_dict()["turn"]["estimate"] is None


def test_the_fall_without_a_form() -> None:
    falls = fall_after_peak(planted_curve("best-of-n", 1.0, 0.5, 100, seed=0, spread=0.05))
    assert falls.high < 0
    rises = fall_after_peak(planted_curve("best-of-n", 1.0, 0.0, 100, seed=0, spread=0.05))
    assert rises.high >= 0
    # Equal points everywhere: the best of them looks better than the last by its noise alone, which folds take out.
    flat = np.random.default_rng(0).normal(size=(400, 20))
    curve = Curve("rl", np.arange(20), np.arange(20.0), flat, flat)
    assert not fall_after_peak(curve).excludes(0)
    assert flat[:, -1].mean() - flat.mean(axis=0).max() < -0.05


def test_curves_from_samples_and_their_figure() -> None:
    proxy = RNG.normal(size=(40, 64))
    gold = proxy - 0.4 * np.maximum(proxy, 0) ** 2 + 0.1 * RNG.normal(size=(40, 64))
    curve = best_of_n_curve(proxy, gold)
    assert curve.at.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert curve.distance[0] == 0
    assert curve.gain("proxy").mean(axis=0).tolist() == sorted(curve.gain("proxy").mean(axis=0).tolist())
    fits = [fit_curve(curve, n_resamples=200)]
    names = [trace.name for trace in overoptimisation_figure([curve], fits, names=["<b>x</b>"]).data]
    assert names == [f"&lt;b&gt;x&lt;/b&gt;, {part}" for part in ("proxy", "gold", "fit")]
    record = json.loads(json.dumps(curve.as_dict()))
    assert record["points"][0]["gold"]["estimate"] == 0
    assert len(record["points"]) == 7


def test_bad_curves() -> None:
    ones = np.ones((2, 3))
    with pytest.raises(DataError, match="first point of a curve has KL 1"):
        Curve("rl", np.arange(3), ones, ones, ones)
    with pytest.raises(DataError, match="at least 3 points"):
        Curve("rl", np.arange(2), [0.0, 1.0], ones[:, :2], ones[:, :2])
    with pytest.raises(ConfigError, match="kind is 'ppo'"):
        Curve("ppo", np.arange(3), [0.0, 1, 2], ones, ones)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="too few different distances"):
        fit_curve(Curve("rl", np.arange(3), [0.0, 1, 1], ones, ones))
    with pytest.raises(DataError, match="at least 2 prompts"):
        fit_curve(Curve("rl", np.arange(3), [0.0, 1, 2], ones[:1], ones[:1]))
    with pytest.raises(DataError, match="no curves"):
        overoptimisation_figure([])
