"""Power over items, clusters and seeds: the t test as special case, simulation, inverses, mean squares by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.crossed import crossed_interval, estimate_noise, intraclass_correlation
from alignlab.stats.design import (
    Design,
    Noise,
    binary_difference_sd,
    design_power,
    design_standard_error,
    detectable_effect,
    kish_design_effect,
    required_items,
    required_seeds,
)
from alignlab.stats.power import minimum_detectable_effect, paired_power, required_n


def draw(rng: np.random.Generator, noise: Noise, design: Design, shift: float = 0.0) -> np.ndarray:
    """Differences (items, seeds) with the given noise; whole clusters."""
    n, size = design.n_items, int(design.cluster_size)

    def clustered(sd: float, columns: int) -> np.ndarray:
        shared = np.repeat(rng.normal(size=(n // size, columns)), size, axis=0)
        own = rng.normal(size=(n, columns))
        return sd * (math.sqrt(noise.cluster_correlation) * shared + math.sqrt(1 - noise.cluster_correlation) * own)

    seeds = noise.seed * rng.normal(size=(1, design.n_seeds))
    return shift + clustered(noise.item, 1) + seeds + clustered(noise.residual, design.n_seeds)


def test_one_seed_and_no_clusters_is_the_paired_t_test() -> None:
    noise, design = Noise(0.3, residual=0.4), Design(80)  # standard deviation 0.5
    assert design_power(0.1, noise, design) == pytest.approx(paired_power(0.1, 0.5, 80))
    assert detectable_effect(noise, design) == pytest.approx(minimum_detectable_effect(0.5, 80))
    assert required_items(0.1, noise, design) == required_n(0.1, 0.5)


def test_standard_error_by_hand() -> None:
    # 4 items a cluster, correlation 0.5: design effect 2.5.
    noise, design = Noise(0.6, 0.1, 0.9, cluster_correlation=0.5), Design(100, 5, 4)
    assert kish_design_effect(4, 0.5) == 2.5
    expected = 2.5 * 0.36 / 100 + 0.01 / 5 + 2.5 * 0.81 / 500
    assert design_standard_error(noise, design) == pytest.approx(math.sqrt(expected))


def test_binary_difference_sd_equals_enumeration() -> None:
    b_minus_a = np.r_[np.full(12, -1), np.full(18, 1), np.zeros(70)]
    assert binary_difference_sd(0.12, 0.18) == pytest.approx(b_minus_a.std())


CASES = [
    (Noise(0.5, 0.1, 0.5), Design(50, 5)),
    (Noise(0.4, 0.1, 0.3), Design(200, 3)),
    (Noise(0.5, 0.1, 0.5, cluster_correlation=0.4), Design(60, 5, 4)),
]


def rejection_rate(noise: Noise, design: Design, shift: float, n_sets: int) -> float:
    rng = np.random.default_rng([design.n_items, design.n_seeds, n_sets])
    size = int(design.cluster_size)
    clusters = None if size == 1 else np.repeat(np.arange(design.n_items // size), size).tolist()
    return float(
        np.mean([crossed_interval(draw(rng, noise, design, shift), clusters).excludes(0.0) for _ in range(n_sets)])
    )


@pytest.mark.parametrize(("noise", "design"), CASES)
def test_power_equals_simulation(noise: Noise, design: Design) -> None:
    """500 studies at the detectable effect: 0.8 within 0.08 (4.5 standard errors: false alarm 1e-5)."""
    effect = detectable_effect(noise, design)
    assert design_power(effect, noise, design) == pytest.approx(0.8, abs=1e-6)
    assert rejection_rate(noise, design, effect, 500) == pytest.approx(0.8, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "design"), CASES)
def test_power_equals_a_longer_simulation(noise: Noise, design: Design) -> None:
    """4000 studies: 0.8 within 0.03 (4.5 standard errors: false alarm 1e-5)."""
    effect = detectable_effect(noise, design)
    assert rejection_rate(noise, design, effect, 4000) == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "design"), CASES)
def test_crossed_interval_covers(noise: Noise, design: Design) -> None:
    """2000 studies, nominal 95 %: coverage 93 to 97 % (false alarm 4e-5 at a true 95 %, 0.2 % at 96 %)."""
    assert 0.03 <= rejection_rate(noise, design, 0.0, 2000) <= 0.07


def test_ignoring_seeds_rejects_too_often() -> None:
    """What the crossed interval is for: a t test of item means calls seed noise a finding."""
    rng = np.random.default_rng(0)
    noise, design = Noise(0.4, 0.1, 0.3), Design(200, 3)
    wrong = 0
    for _ in range(300):
        means = draw(rng, noise, design).mean(axis=1)
        wrong += abs(means.mean()) > 1.97 * means.std(ddof=1) / math.sqrt(200)
    assert wrong / 300 > 0.2


def test_required_counts_are_the_smallest() -> None:
    noise, design = Noise(0.5, 0.05, 0.5), Design(200, 4)
    items = required_items(0.12, noise, design)
    assert design_power(0.12, noise, Design(items, 4)) >= 0.8 > design_power(0.12, noise, Design(items - 1, 4))
    seeds = required_seeds(0.12, noise, design)
    assert design_power(0.12, noise, Design(200, seeds)) >= 0.8
    assert seeds == 3 or design_power(0.12, noise, Design(200, seeds - 1)) < 0.8


def test_whole_clusters_are_asked_for() -> None:
    noise = Noise(0.5, cluster_correlation=0.3)
    items = required_items(0.1, noise, Design(10, cluster_size=5))
    assert items % 5 == 0
    alone = required_items(0.1, noise, Design(10))
    assert items == pytest.approx(alone * kish_design_effect(5, 0.3), rel=0.03)


def test_what_no_number_of_items_can_show() -> None:
    with pytest.raises(ConfigError, match="more seeds"):
        required_items(0.1, Noise(0.5, seed=0.2), Design(100, 3))
    with pytest.raises(ConfigError, match="more items"):
        required_seeds(0.01, Noise(0.5, residual=1.0), Design(100, 3))


def test_noise_is_recovered() -> None:
    """Planted 0.5, 0.2, 0.7 over 400 items and 40 seeds: each within 20 % (seed fixed)."""
    found = estimate_noise(draw(np.random.default_rng(2), Noise(0.5, 0.2, 0.7), Design(400, 40)))
    assert (found.item, found.seed, found.residual) == pytest.approx((0.5, 0.2, 0.7), rel=0.2)


def test_mean_squares_by_hand() -> None:
    # Rows differ by 2, columns by 1, no interaction: residual 0, MS_items 6, MS_seeds 4 over a table of 2 x 3.
    found = estimate_noise([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    assert (found.item, found.seed, found.residual) == pytest.approx((math.sqrt(2.0), 1.0, 0.0), abs=1e-9)


def test_intraclass_correlation() -> None:
    assert intraclass_correlation([1.0, 1.0, 5.0, 5.0], [0, 0, 1, 1]) == pytest.approx(1.0)
    assert intraclass_correlation([0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1]) == pytest.approx(-1.0)
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(2000), 3)
    x = math.sqrt(0.3) * rng.normal(size=2000)[clusters] + math.sqrt(0.7) * rng.normal(size=6000)
    assert intraclass_correlation(x, clusters.tolist()) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Noise(0.0), "all 0"),
        (lambda: Noise(-1.0), "item is -1"),
        (lambda: Noise(1.0, cluster_correlation=1.5), "cluster_correlation is 1.5"),
        (lambda: Design(0), "n_items is 0"),
        (lambda: Design(5, cluster_size=9), "cluster_size is 9"),
        (lambda: design_power(0.1, Noise(1.0, seed=0.1), Design(50, 2)), "n_seeds is 2"),
        (lambda: design_power(0.1, Noise(1.0), Design(6, cluster_size=4)), "fewer than 2 clusters"),
        (lambda: design_power(0.1, Noise(1.0), Design(6), alpha=2.0), "alpha is 2"),
        (lambda: required_items(0.0, Noise(1.0), Design(6)), "effect is 0"),
        (lambda: detectable_effect(Noise(1.0), Design(6), power=0.01), "power is 0.01"),
        (lambda: binary_difference_sd(0.6, 0.6), "at most 1"),
    ],
)
def test_bad_plans(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crossed_interval([[1.0, 2.0], [3.0, 4.0]]), "2 seeds"),
        (lambda: crossed_interval([1.0, 2.0, 3.0]), r"\(items, seeds\)"),
        (lambda: crossed_interval([[1.0, 2.0, math.nan], [3.0, 4.0, 5.0]]), r"differences\[0, 2\]"),
        (lambda: crossed_interval(np.ones((4, 3)), ["a"] * 4), "one cluster"),
        (lambda: intraclass_correlation([1.0, 2.0], [0, 1]), "at least 2 items"),
    ],
)
def test_bad_tables(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
