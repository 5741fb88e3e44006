"""What every function of this room accepts: one clear error for anything else."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignlab.core.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def as_values(x: ArrayLike, name: str) -> FloatArray:
    """`x` as a float64 array, (n,), n >= 1, all finite; or a DataError naming `name` and the first bad position."""
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers only: {error}") from error
    if values.ndim != 1:
        raise DataError(f"{name} must have one dimension, got shape {values.shape}")
    if values.size == 0:
        raise DataError(f"{name} is empty; at least one value is needed")
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise DataError(f"{name}[{first}] is {values[first]}; every value must be finite (leave unscorable items out)")
    return values


def as_pair(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Two aligned samples of equal length; DataError when they are not."""
    first, second = as_values(a, "a"), as_values(b, "b")
    if first.size != second.size:
        raise DataError(f"a has {first.size} values and b has {second.size}; paired values must be of equal length")
    return first, second


def as_binary(x: ArrayLike, name: str) -> FloatArray:
    """0/1 (or bool) values as float64, (n,), n >= 1; DataError naming the first value that is something else."""
    values = as_values(x, name)
    wrong = ~np.isin(values, (0.0, 1.0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(f"{name}[{first}] is {values[first]:g}; verdicts must be 0 or 1")
    return values


def as_probabilities(x: ArrayLike, name: str) -> FloatArray:
    """Values between 0 and 1 as float64, (n,), n >= 1; DataError naming the first value outside."""
    values = as_values(x, name)
    outside = (values < 0) | (values > 1)
    if outside.any():
        first = int(np.argmax(outside))
        raise DataError(f"{name}[{first}] is {values[first]:g}; a probability lies between 0 and 1 (not in percent)")
    return values


def as_stated(stated: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Stated probabilities of being right and whether it was, (n,) each; DataError when they do not fit."""
    probabilities, outcomes = as_probabilities(stated, "stated"), as_binary(correct, "correct")
    if probabilities.size != outcomes.size:
        raise DataError(
            f"stated has {probabilities.size} values and correct has {outcomes.size}; give one of each an item"
        )
    return probabilities, outcomes


def as_codes(clusters: Sequence[Hashable] | NDArray[np.generic] | None, n: int) -> IntArray | None:
    """Cluster labels as codes 0..G-1 in order of first appearance, (n,); None stays None."""
    if clusters is None:
        return None
    if len(clusters) != n:
        raise DataError(f"clusters has {len(clusters)} labels for {n} values; give one label per value")
    seen: dict[Hashable, int] = {}
    codes = np.empty(n, dtype=np.int64)
    for i, label in enumerate(clusters):
        if label is None or label != label:  # NaN is the one value that is not equal to itself
            raise DataError(f"clusters[{i}] is {label!r}; every value needs a cluster label")
        codes[i] = seen.setdefault(label, len(seen))
    return codes


def check_confidence(confidence: float) -> None:
    """ConfigError unless 0 < confidence < 1."""
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence!r}, allowed: a number between 0 and 1, such as 0.95")


def check_resamples(n_resamples: int) -> None:
    """ConfigError for fewer than 100 resamples, where a 95 % limit would rest on two or three of them."""
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int) or n_resamples < 100:
        raise ConfigError(f"n_resamples is {n_resamples!r}, allowed: an integer of at least 100")
