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
