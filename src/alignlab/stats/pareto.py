"""Several objectives at once: which points nothing beats, and how much of the space they cover. Larger is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignlab.core.errors import DataError
from alignlab.stats.validation import FloatArray


def as_points(points: ArrayLike, name: str = "points") -> FloatArray:
    """`points` as float64, (n, objectives), n >= 1, all finite; or a DataError naming the first bad place."""
    try:
        values = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers only, as many for each point: {error}") from error
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{name} have shape {values.shape}, right is (points, objectives), at least one of each")
    if not np.isfinite(values).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{name}[{row}, {column}] is {values[row, column]}; every value must be finite")
    return values


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point is on the front, (n,): no other is at least as good in every objective and better in one.

    Points that are equal do not beat each other, so all of them are on it or none.
    """
    values = as_points(points)
    at_least = (values[:, None, :] >= values[None, :, :]).all(axis=2)
    better = (values[:, None, :] > values[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume of what the points dominate above `reference`, exact in any number of objectives.

    The measure of the union of the boxes between the reference and each point (Zitzler & Thiele 1999, IEEE Trans.
    Evol. Comput. 3:257). A point that is not above the reference everywhere adds nothing.
    """
    values = as_points(points)
    corner = as_reference(reference, values.shape[1])
    front = values[non_dominated(values)]
    return float(hypervolumes(front[None], corner)[0])


def as_reference(reference: ArrayLike, objectives: int) -> FloatArray:
    """The reference point as float64; DataError unless it has one finite number for each objective."""
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (objectives,) or not np.isfinite(corner).all():
        raise DataError(f"reference is {corner.tolist()}, right is one finite number for each of {objectives}")
    return corner


def hypervolumes(points: FloatArray, reference: FloatArray) -> FloatArray:
    """`hypervolume` of many sets at once: points (sets, n, objectives) to (sets,).

    By slices: below the k-th best value of the last objective, the volume has the base that the k best points there
    cover in the others. Two objectives take a sort; each further one multiplies the work by n.
    """
    above = np.maximum(points - reference, 0.0)  # a box without height in one objective has no volume
    return _sliced(above)


def _sliced(boxes: FloatArray) -> FloatArray:
    """Volumes of unions of boxes from the origin, (sets, n, objectives) to (sets,)."""
    if boxes.shape[2] == 1:
        return boxes[:, :, 0].max(axis=1)
    order = np.argsort(-boxes[:, :, -1], axis=1, kind="stable")
    ordered = np.take_along_axis(boxes, order[:, :, None], axis=1)
    heights = ordered[:, :, -1]
    steps = heights - np.concatenate([heights[:, 1:], np.zeros_like(heights[:, :1])], axis=1)  # (sets, n), >= 0
    if boxes.shape[2] == 2:
        return np.asarray((np.maximum.accumulate(ordered[:, :, 0], axis=1) * steps).sum(axis=1))
    base = ordered[:, :, :-1]
    volume = np.zeros(len(boxes))
    for k in range(boxes.shape[1]):
        if steps[:, k].any():
            volume += _sliced(base[:, : k + 1]) * steps[:, k]
    return volume


def contributions(points: ArrayLike, reference: ArrayLike) -> FloatArray:
    """What the volume loses without each point, (n,): 0 for a dominated point, and for one that has an equal."""
    values = as_points(points)
    corner, whole = as_reference(reference, values.shape[1]), hypervolume(points, reference)
    if len(values) == 1:
        return np.array([whole])
    rest = np.stack([np.delete(values, i, axis=0) for i in range(len(values))])
    return np.maximum(whole - hypervolumes(rest, corner), 0.0)


def scalar_best(points: ArrayLike, weights: Sequence[float]) -> int:
    """The point with the largest weighted sum; the first of equals. Weights must not be negative, nor all zero."""
    values = as_points(points)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (values.shape[1],) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise DataError(
            f"weights are {list(weights)}, right are {values.shape[1]} numbers from 0 up, at least one of them above 0"
        )
    return int(np.argmax(values @ given))
