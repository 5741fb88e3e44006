"""Power, detectable effects and sample sizes against tables, the normal formula and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import nct, norm, ttest_1samp
from scipy.stats import t as student_t

from alignlab.core.errors import ConfigError
from alignlab.stats.power import minimum_detectable_effect, paired_power, paired_sd, required_n


def test_textbook_sample_sizes() -> None:
    # Cohen's d of 0.2, 0.5 and 0.8, two-sided 0.05, power 0.8: 199, 34 and 15 pairs (G*Power, paired t test).
    assert [required_n(d, 1.0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]


def test_large_n_equals_the_normal_formula() -> None:
    factor = norm.ppf(0.975) + norm.ppf(0.8)
    for n in (2_000, 5_000, 1_000_000):
        assert minimum_detectable_effect(0.7, n) == pytest.approx(factor * 0.7 / math.sqrt(n), rel=2e-3)


@pytest.mark.parametrize(("n", "shift"), [(2, 0.5), (3, 2.0), (10, 3.0), (34, 2.8), (400, 1.0)])
def test_power_equals_the_noncentral_t(n: int, shift: float) -> None:
    critical = student_t.ppf(0.975, n - 1)
    expected = nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift)
    assert paired_power(shift / math.sqrt(n), 1.0, n) == pytest.approx(expected, abs=1e-9)


def test_power_equals_simulation() -> None:
    """4000 t tests of 12 pairs: within 4 standard errors (false alarm 6e-5, seed fixed)."""
    rng = np.random.default_rng(0)
    p = ttest_1samp(rng.normal(0.9, 1.0, size=(4000, 12)), 0.0, axis=1).pvalue
    expected = paired_power(0.9, 1.0, 12)
    assert np.mean(p <= 0.05) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


def test_the_three_are_inverse_to_each_other() -> None:
    for n in (2, 5, 40, 300, 8000):
        effect = minimum_detectable_effect(1.3, n, alpha=0.01, power=0.9)
        assert paired_power(effect, 1.3, n, alpha=0.01) == pytest.approx(0.9, abs=1e-6)
        assert required_n(effect * (1 + 1e-6), 1.3, alpha=0.01, power=0.9) == n
    assert paired_power(0.0, 1.0, 25) == pytest.approx(0.05)
    assert paired_power(-0.5, 1.0, 25) == pytest.approx(paired_power(0.5, 1.0, 25))
    assert paired_power(100.0, 1.0, 25) == pytest.approx(1.0)


def test_paired_sd() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=500)
    b = 0.8 * a + rng.normal(size=500)
    expected = np.std(b - a)
    assert paired_sd(float(np.std(a)), float(np.std(b)), float(np.corrcoef(a, b)[0, 1])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minimum_detectable_effect(0.0, 10), "sd is 0.0"),
        (lambda: minimum_detectable_effect(1.0, 1), "n is 1"),
        (lambda: minimum_detectable_effect(1.0, 10, alpha=1.5), "alpha is 1.5"),
        (lambda: minimum_detectable_effect(1.0, 10, power=0.01), "power is 0.01"),
        (lambda: required_n(0.0, 1.0), "effect is 0.0"),
        (lambda: required_n(math.nan, 1.0), "effect is nan"),
        (lambda: paired_sd(1.0, 1.0, 2.0), "correlation is 2.0"),
        (lambda: paired_sd(-1.0, 1.0, 0.0), "sd_a and sd_b"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
