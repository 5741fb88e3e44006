"""Several comparisons at once: Holm's correction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.paired import Comparison

ComparisonT = TypeVar("ComparisonT", bound=Comparison)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the order given; rejecting those <= alpha keeps the family-wise error at alpha.

    adjusted_(k) = max_{j <= k} min(1, (m - j + 1) p_(j)) over the sorted p-values (Holm 1979, Scand. J. Stat. 6:65);
    valid under any dependence. An empty list gives an empty list; DataError for a value outside [0, 1].
    """
    for i, p in enumerate(p_values):
        if not 0.0 <= p <= 1.0:
            raise DataError(f"p_values[{i}] is {p}, which is not between 0 and 1")
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.minimum(1.0, raw[order] * np.arange(raw.size, 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in adjusted]


def holm_correct(comparisons: Mapping[str, ComparisonT], alpha: float = 0.05) -> dict[str, ComparisonT]:
    """The same comparisons with `adjusted_p` set, and "tied" where the adjusted p no longer rejects at `alpha`."""
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is {alpha!r}, allowed: a number between 0 and 1, such as 0.05")
    adjusted = holm([comparison.p_value for comparison in comparisons.values()])
    return {
        name: dataclasses.replace(
            comparison, adjusted_p=p, verdict=comparison.verdict if p <= alpha + 1e-12 else "tied"
        )
        for (name, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }
