"""Holm's correction: worked example, naive definition, family-wise error, verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.interval import Interval
from alignlab.stats.multiplicity import holm, holm_correct
from alignlab.stats.paired import Comparison


def naive_rejections(p: list[float], alpha: float) -> list[bool]:
    """Step down by hand: test the smallest at alpha/m, the next at alpha/(m-1), ..., stop at the first failure."""
    rejected = [False] * len(p)
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] > alpha / (len(p) - step):
            break
        rejected[index] = True
    return rejected


def test_worked_example() -> None:
    # By hand: sorted 0.01, 0.015, 0.02, 0.04 times 4, 3, 2, 1 = 0.04, 0.045, 0.04, 0.04; running maximum 0.04, 0.045.
    assert holm([0.04, 0.01, 0.02, 0.015]) == pytest.approx([0.045, 0.04, 0.045, 0.045])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        p = (rng.random(6) ** 3).tolist()
        assert [adjusted <= 0.05 for adjusted in holm(p)] == naive_rejections(p, 0.05)


def test_family_wise_error_is_held() -> None:
    """2000 families of 8 true nulls: at most 6.5 % have any rejection (expected 4.9 %, false alarm about 1e-3)."""
    rng = np.random.default_rng(1)
    wrong = sum(min(holm(rng.random(8).tolist())) <= 0.05 for _ in range(2000))
    assert wrong / 2000 <= 0.065


def test_verdicts_follow_the_correction() -> None:
    gain = Interval(0.2, 0.05, 0.35, 100)
    corrected = holm_correct(
        {
            "strong": Comparison(gain, 0.001, "better"),
            "weak": Comparison(gain, 0.04, "better"),
            "none": Comparison(Interval(0.0, -0.1, 0.1, 100), 0.9, "tied"),
        }
    )
    assert [c.verdict for c in corrected.values()] == ["better", "tied", "tied"]
    assert corrected["weak"].adjusted_p == pytest.approx(0.08)
    assert corrected["weak"].difference == gain


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"p_values\[1\] is 1.2"):
        holm([0.1, 1.2])
    with pytest.raises(DataError, match="nan"):
        holm([float("nan")])
    with pytest.raises(ConfigError, match="alpha is 5"):
        holm_correct({}, alpha=5)
