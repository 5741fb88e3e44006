"""How small a difference can n paired items show, and how many items does a difference need?"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr
from scipy.stats import t as student_t

from alignlab.core.errors import ConfigError

_LEGENDRE_NODES, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(200)
_T = (_LEGENDRE_NODES + 1) / 2
# Quantile levels and weights on (0, 1); the step u = t^3 (10 - 15 t + 6 t^2) takes the infinite slope of a quantile
# function out of the ends.
_LEVELS = _T**3 * (10 - 15 * _T + 6 * _T**2)
_WEIGHTS = _LEGENDRE_WEIGHTS / 2 * 30 * _T**2 * (1 - _T) ** 2


def paired_sd(sd_a: float, sd_b: float, correlation: float) -> float:
    """Standard deviation of b - a from those of a and b and their correlation over items.

    The positive correlation of two models on the same questions is what pairing gains (Miller 2024, arXiv:2411.00640,
    section 4.2).
    """
    if sd_a < 0 or sd_b < 0:
        raise ConfigError(f"sd_a and sd_b are {sd_a!r} and {sd_b!r}, allowed: numbers >= 0")
    if not -1.0 <= correlation <= 1.0:
        raise ConfigError(f"correlation is {correlation!r}, allowed: a number between -1 and 1")
    return math.sqrt(max(0.0, sd_a**2 + sd_b**2 - 2 * correlation * sd_a * sd_b))


def paired_power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t test at `alpha` over `n` items rejects a true mean difference `effect`.

    `sd` is the standard deviation of the per-item differences. Noncentral t with n - 1 degrees of freedom and
    noncentrality effect * sqrt(n) / sd. With clusters, give n / design_effect.
    """
    _check(sd, alpha)
    if n < 2:
        raise ConfigError(f"n is {n!r}, allowed: an integer of at least 2")
    return t_power(abs(effect) * math.sqrt(n) / sd, n - 1, alpha)


def t_power(shift: float, df: float, alpha: float = 0.05) -> float:
    """Probability that |T| exceeds its two-sided `alpha` limit; T noncentral t, `df` > 0, noncentrality `shift`."""
    critical = float(student_t.ppf(1 - alpha / 2, df))
    # |Z + shift| > critical * S with S^2 ~ chi^2_df / df: average the normal tails over the quantiles of S.
    # Library routines for the noncentral t return NaN in the far tail, which a root search does reach.
    spread = np.sqrt(gammaincinv(df / 2, _LEVELS) * 2 / df)
    tails = ndtr(shift - critical * spread) + ndtr(-shift - critical * spread)
    return float(_WEIGHTS @ tails)


def minimum_detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest true mean difference that `n` paired items detect with probability `power`, in units of `sd`'s data.

    For large n: (z_{1-alpha/2} + z_power) sd / sqrt(n) (Miller 2024, arXiv:2411.00640, section 5); for small n the
    exact t.
    """
    _check(sd, alpha)
    _check_power(power, alpha)
    upper = 4.0 * sd / math.sqrt(n) if n >= 2 else sd
    while paired_power(upper, sd, n, alpha) < power:
        upper *= 2
    return float(brentq(lambda effect: paired_power(effect, sd, n, alpha) - power, 0.0, upper, xtol=1e-12 * upper))


def required_n(effect: float, sd: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Fewest paired items that detect a true mean difference `effect` with probability `power`."""
    _check(sd, alpha)
    _check_power(power, alpha)
    if not math.isfinite(effect) or effect == 0:
        raise ConfigError(f"effect is {effect!r}, allowed: a finite number other than 0")
    high = 2
    while paired_power(effect, sd, high, alpha) < power:
        high *= 2
    low = max(2, high // 2)
    while low < high:  # power grows with n, so bisection finds the first n that reaches it
        middle = (low + high) // 2
        if paired_power(effect, sd, middle, alpha) < power:
            low = middle + 1
        else:
            high = middle
    return high


def _check(sd: float, alpha: float) -> None:
    if not (math.isfinite(sd) and sd > 0):
        raise ConfigError(f"sd is {sd!r}, allowed: a finite number above 0")
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is {alpha!r}, allowed: a number between 0 and 1, such as 0.05")


def _check_power(power: float, alpha: float) -> None:
    if not alpha < power < 1.0:
        raise ConfigError(f"power is {power!r}, allowed: a number between alpha = {alpha} and 1, such as 0.8")
