"""How many items, clusters and seeds does a difference need? Power of paired designs with several kinds of noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr
from scipy.stats import t as student_t

from alignlab.core.errors import ConfigError
from alignlab.stats.power import t_power
from alignlab.stats.validation import FloatArray

MOST = 10**9
"""No design of more items or seeds than this is looked for."""
LEAST_SEEDS = 3
"""Two seeds leave one degree of freedom: no interval of them both covers at its level and says anything."""
_DRAWS = 4096
# Levels at which the three mean squares are drawn together: each evenly spread, their pairing random but fixed.
_UNIFORM = (np.stack([np.random.default_rng(k).permutation(_DRAWS) for k in range(3)]) + 0.5) / _DRAWS


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the difference b - a of one item under one seed, by origin.

    "Seed" is whatever is drawn anew for all items at once: a training run, a shuffle of few-shot examples. Noise drawn
    for each item and seed afresh, such as sampling at a temperature, belongs to `residual`.
    """

    item: float
    """Of the items' true differences: what more items average out."""
    seed: float = 0.0
    """Of the seeds' mean differences: only more seeds average it out."""
    residual: float = 0.0
    """Of what is left for one item under one seed."""
    cluster_correlation: float = 0.0
    """Correlation of two items of one cluster, for `item` and `residual` alike (the intraclass correlation)."""

    def __post_init__(self) -> None:
        for name in ("item", "seed", "residual"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value!r}, allowed: a finite number >= 0")
        if self.item == 0 and self.seed == 0 and self.residual == 0:
            raise ConfigError("item, seed and residual are all 0: without noise one item is enough")
        if not 0.0 <= self.cluster_correlation <= 1.0:
            raise ConfigError(f"cluster_correlation is {self.cluster_correlation!r}, allowed: a number from 0 to 1")


@dataclass(frozen=True)
class Design:
    """Every item under every seed, for both models."""

    n_items: int
    n_seeds: int = 1
    cluster_size: float = 1.0
    """Items in a cluster; for unequal sizes m give mean(m^2) / mean(m)."""

    def __post_init__(self) -> None:
        for name, value in (("n_items", self.n_items), ("n_seeds", self.n_seeds)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, allowed: an integer of at least 1")
        if not 1.0 <= self.cluster_size <= self.n_items:
            raise ConfigError(f"cluster_size is {self.cluster_size!r}, allowed: from 1 to the {self.n_items} items")


def kish_design_effect(cluster_size: float, correlation: float) -> float:
    """1 + (m - 1) rho: how many times more items a clustered sample needs (Kish 1965, "Survey Sampling")."""
    if cluster_size < 1:
        raise ConfigError(f"cluster_size is {cluster_size!r}, allowed: a number of at least 1")
    if not 0.0 <= correlation <= 1.0:
        raise ConfigError(f"correlation is {correlation!r}, allowed: a number from 0 to 1")
    return 1 + (cluster_size - 1) * correlation


def binary_difference_sd(only_a: float, only_b: float) -> float:
    """Standard deviation of b - a for 0/1 scores from the shares of items that only a and only b gets right.

    sqrt(only_a + only_b - (only_b - only_a)^2): two models of equal accuracy that disagree on a fifth have 0.447.
    """
    for name, share in (("only_a", only_a), ("only_b", only_b)):
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{name} is {share!r}, allowed: a share from 0 to 1")
    if only_a + only_b > 1 + 1e-12:
        raise ConfigError(f"only_a + only_b is {only_a + only_b:g}; shares of the same items add up to at most 1")
    return math.sqrt(max(0.0, only_a + only_b - (only_b - only_a) ** 2))


def design_standard_error(noise: Noise, design: Design) -> float:
    """Standard deviation of the mean difference over all items and seeds of the design.

    sqrt(deff item^2 / n + seed^2 / S + deff residual^2 / (n S)) with deff of `kish_design_effect`.
    """
    return math.sqrt(sum(_variances(noise, design)))


def design_power(effect: float, noise: Noise, design: Design, alpha: float = 0.05) -> float:
    """Probability that the two-sided test at `alpha` rejects, for a true mean difference `effect`.

    The test is the t test of the item means (cluster means) where `noise.seed` is 0, else that of `crossed_interval`,
    whose power is averaged over fixed draws of its mean squares (to about 0.01). ConfigError for fewer than two
    clusters, or fewer than three seeds where seeds matter: one run shows nothing about the next.
    """
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is {alpha!r}, allowed: a number between 0 and 1, such as 0.05")
    return _power_curve(noise, design, alpha)(abs(effect) / design_standard_error(noise, design))


def detectable_effect(noise: Noise, design: Design, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest true mean difference that the design shows with probability `power`."""
    _check_power(power, alpha)
    error = design_standard_error(noise, design)
    curve = _power_curve(noise, design, alpha)
    if curve(0.0) >= power:
        raise ConfigError(f"power {power:g} is reached without any effect; ask for more power or a smaller alpha")
    upper = 4.0
    while curve(upper) < power:
        upper *= 2
    return error * float(brentq(lambda shift: curve(shift) - power, 0.0, upper, xtol=1e-12 * upper))


def crossed_half_width(
    squares: tuple[FloatArray, FloatArray, FloatArray], n_items: float, n_seeds: int, alpha: float
) -> FloatArray:
    """Half the width of the crossed interval times sqrt(items * seeds), from mean squares of items, seeds, residual.

    The variance is (items + seeds - residual), not below either of the first two alone; its t quantile is the mean of
    those of items and of seeds, weighted by their parts (Cochran 1964, Biometrics 20:191). Satterthwaite's degrees of
    freedom would reject up to 7.5 % of true null hypotheses with three seeds at a nominal 5 %.
    """
    items, seeds, residual = squares
    total = np.maximum(items + seeds - residual, np.maximum(items, seeds))
    from_seeds = np.maximum(seeds - residual, 0.0)
    quantiles = [float(student_t.ppf(1 - alpha / 2, count - 1)) for count in (n_items, n_seeds)]
    weighted = quantiles[0] * (total - from_seeds) + quantiles[1] * from_seeds
    return np.asarray(weighted / np.sqrt(np.maximum(total, 1e-300)), dtype=np.float64)


def required_items(effect: float, noise: Noise, design: Design, alpha: float = 0.05, power: float = 0.8) -> int:
    """Fewest items that show `effect` with probability `power`, at the design's seeds and cluster size.

    Whole clusters. ConfigError when the noise between these few seeds alone hides the effect, however many items.
    """
    _check_search(effect, power, alpha)
    size = design.cluster_size

    def enough(clusters: int) -> bool:
        changed = replace(design, n_items=math.ceil(clusters * size))
        return design_power(effect, noise, changed, alpha) >= power

    clusters = _fewest(enough, 2, MOST)
    if clusters is None:
        raise ConfigError(
            f"an effect of {effect:g} cannot be shown with {design.n_seeds} seeds, however many items: the noise "
            "between seeds does not shrink with items; take more seeds (required_seeds)"
        )
    return math.ceil(clusters * size)


def required_seeds(effect: float, noise: Noise, design: Design, alpha: float = 0.05, power: float = 0.8) -> int:
    """Fewest seeds that show `effect` with probability `power`, at the design's items and cluster size.

    ConfigError when the spread of these few items alone hides the effect, however many seeds.
    """
    _check_search(effect, power, alpha)
    seeds = _fewest(
        lambda count: design_power(effect, noise, replace(design, n_seeds=count), alpha) >= power,
        LEAST_SEEDS if noise.seed > 0 else 1,
        MOST,
    )
    if seeds is None:
        raise ConfigError(
            f"an effect of {effect:g} cannot be shown with {design.n_items} items, however many seeds: the noise "
            "between items does not shrink with seeds; take more items (required_items)"
        )
    return seeds


def _variances(noise: Noise, design: Design) -> tuple[float, float, float]:
    """Parts of the variance of the mean that come from items, seeds and the rest."""
    factor = kish_design_effect(design.cluster_size, noise.cluster_correlation)
    n, n_seeds = design.n_items, design.n_seeds
    return factor * noise.item**2 / n, noise.seed**2 / n_seeds, factor * noise.residual**2 / (n * n_seeds)


def _power_curve(noise: Noise, design: Design, alpha: float) -> Callable[[float], float]:
    """Power as a function of the effect in standard errors."""
    clusters = design.n_items / design.cluster_size
    if clusters < 2:
        raise ConfigError(f"{design.n_items} items in clusters of {design.cluster_size:g} are fewer than 2 clusters")
    if noise.seed == 0:
        return lambda shift: t_power(shift, clusters - 1, alpha)
    if design.n_seeds < LEAST_SEEDS:
        raise ConfigError(
            f"n_seeds is {design.n_seeds}, but seeds differ (seed > 0): "
            f"at least {LEAST_SEEDS} are needed to see by how much"
        )
    item, seed, residual = _variances(noise, design)
    freedoms = clusters - 1, design.n_seeds - 1, (clusters - 1) * (design.n_seeds - 1)
    # In units of the variance of the mean: mean squares over items * seeds.
    expected = item + residual, seed + residual, residual
    items, seeds, rest = (
        mean * gammaincinv(freedom / 2, levels) * 2 / freedom
        for mean, freedom, levels in zip(expected, freedoms, _UNIFORM, strict=True)
    )
    limit = crossed_half_width((items, seeds, rest), clusters, design.n_seeds, alpha)
    limit = limit / math.sqrt(item + seed + residual)
    return lambda shift: float(np.mean(ndtr(shift - limit) + ndtr(-shift - limit)))


def _fewest(enough: Callable[[int], bool], low: int, most: int) -> int | None:
    """The smallest count that is enough, where more never hurts; None when `most` is not."""
    high = low
    while not enough(high):
        high *= 2
        if high > most:
            return None
    low = max(low, high // 2)
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _check_search(effect: float, power: float, alpha: float) -> None:
    if not math.isfinite(effect) or effect == 0:
        raise ConfigError(f"effect is {effect!r}, allowed: a finite number other than 0")
    _check_power(power, alpha)


def _check_power(power: float, alpha: float) -> None:
    if not 0.0 < alpha < power < 1.0:
        raise ConfigError(
            f"power is {power!r} and alpha {alpha!r}, allowed: 0 < alpha < power < 1, such as 0.05 and 0.8"
        )
