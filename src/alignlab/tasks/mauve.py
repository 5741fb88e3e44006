"""MAUVE: how far the distribution of generated text is from that of human text (Pillutla et al. 2021).

Texts become vectors, vectors become clusters (k-means over both sets together), and the two histograms over them are
compared by their divergence frontier: for every mixture R = λP + (1 - λ)Q, how costly it is to take R for Q (text
that the model cannot be excused for missing) and for P (text that nobody writes). The score is the area below the curve
(exp(-c KL(Q|R)), exp(-c KL(P|R))): 1 for equal distributions, near 0 for disjoint ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from alignlab.core.config import require
from alignlab.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]
SCALE = 5.0
"""c of the paper."""
MIXTURES = 25
"""Mixture weights strictly between 0 and 1, as many as the authors' implementation takes."""
KEPT_VARIANCE = 0.9
"""Share of the variance that the principal components before k-means keep."""


@dataclass(frozen=True)
class Mauve:
    """A MAUVE score and what it was computed from."""

    score: float
    """0 to 1; 1 for equal distributions."""
    p: Float[np.ndarray, " clusters"]
    """Share of the human texts in each cluster."""
    q: Float[np.ndarray, " clusters"]
    """Share of the generated texts in each cluster."""
    curve: Float[np.ndarray, "points 2"]
    """The divergence frontier, from (0, 1) to (1, 0)."""


def mauve(
    human: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], *, clusters: int = 0, seed: int = 0
) -> Mauve:
    """MAUVE of two sets of features, one row a text.

    `clusters` 0 means a tenth of the smaller set and at least 2, as in the authors' implementation. The score depends
    on it, on the features and on the number of texts: compare only scores with all three alike, and beside the score of
    human text against other human text. Raises DataError for sets that are empty, not finite or of different width.
    """
    first, second = _features(human, "human"), _features(generated, "generated")
    if first.shape[1] != second.shape[1]:
        raise DataError(f"human features have width {first.shape[1]}, generated {second.shape[1]}; they must agree")
    k = clusters or max(2, round(min(len(first), len(second)) / 10))
    total = len(first) + len(second)
    require(1 <= k <= total, "clusters", clusters, f"0, or 1 to the number of texts ({total})")
    labels = quantise(np.concatenate([first, second]), k, seed=seed)
    p = np.bincount(labels[: len(first)], minlength=k) / len(first)
    q = np.bincount(labels[len(first) :], minlength=k) / len(second)
    curve = divergence_curve(p, q)
    return Mauve(frontier_area(curve), p, q, curve)


def quantise(features: Float[np.ndarray, "n d"], clusters: int, *, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The k-means cluster of each row, after scaling rows to length 1 and keeping 90 % of the variance."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    different = len(np.unique(unit, axis=0))
    if different <= clusters:  # each distinct text its own cluster; k-means would only warn about empty ones
        labels: NDArray[np.int64] = np.unique(unit, axis=0, return_inverse=True)[1].reshape(-1)
        return labels
    pca = PCA(random_state=0, svd_solver="full").fit(unit)
    enough = int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), KEPT_VARIANCE)) + 1
    means = KMeans(clusters, n_init=5, max_iter=500, random_state=seed % 2**32)
    return means.fit_predict(pca.transform(unit)[:, :enough]).astype(np.int64)  # type: ignore[no-any-return]


def divergence_curve(
    p: ArrayLike, q: ArrayLike, *, scale: float = SCALE, mixtures: int = MIXTURES
) -> Float[np.ndarray, "points 2"]:
    """Points (exp(-c KL(q|r)), exp(-c KL(p|r))) with r = λp + (1 - λ)q, for λ from 1 to 0, and the ends (0, 1), (1, 0).

    At λ = 1, r = p: the curve ends at height 1, and its width there is exp(-c KL(q|p)), 0 where q has mass p lacks.
    """
    first, second = _distribution(p, "p"), _distribution(q, "q")
    if first.shape != second.shape:
        raise DataError(f"p has {first.size} outcomes and q {second.size}; they must be over the same ones")
    require(scale > 0, "scale", scale, "a positive number")
    require(mixtures >= 1, "mixtures", mixtures, "a positive whole number")
    weights = np.linspace(1 - 1e-6, 1e-6, mixtures)[:, None]  # (mixtures, 1)
    r = weights * first + (1 - weights) * second
    inner = np.exp(-scale * np.stack([_kl(second, r), _kl(first, r)], axis=1))
    return np.concatenate([[[0.0, 1.0]], inner, [[1.0, 0.0]]])


def frontier_area(curve: Float[np.ndarray, "points 2"]) -> float:
    """Area between the curve and the axes by the trapezoid rule, the mean of both orientations."""
    x, y = curve[:, 0], curve[:, 1]
    across = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
    up = np.sum(np.diff(y[::-1]) * (x[::-1][1:] + x[::-1][:-1]) / 2)
    return float(min(max((across + up) / 2, 0.0), 1.0))


def ngram_features(
    texts: Sequence[str], *, width: int = 512, orders: Sequence[int] = (1, 2, 3, 4)
) -> Float[np.ndarray, "texts width"]:
    """Features that need no model: square roots of the frequencies of character n-grams, hashed to `width` columns.

    They favour no family of language models, but see spelling, words and style rather than meaning. Scores on them
    cannot be compared with published ones, which use the hidden states of GPT-2.
    """
    require(width >= 1, "width", width, "a positive whole number")
    found = np.zeros((len(texts), width))
    for i, text in enumerate(texts):
        data = text.encode("utf-8", "replace")
        for n in orders:
            grams = [zlib.crc32(data[j : j + n], n) % width for j in range(len(data) - n + 1)]
            if grams:
                found[i] += np.bincount(grams, minlength=width) / (len(grams) * len(orders))
    return np.sqrt(found)


def hidden_features(model: Any, rows: Sequence[Tensor]) -> Float[np.ndarray, "texts d_model"]:
    """The model's final hidden state at the last token of each text, as the paper takes it from GPT-2.

    `model` has `hidden_states`, as GPTModel and LSTMModel do; rows are (pos,) token ids.
    """
    import torch

    found = []
    with torch.no_grad():
        for i, row in enumerate(rows):
            if not row.numel():
                raise DataError(f"text {i} has no tokens; features need at least one")
            found.append(model.hidden_states(row[None])[0, -1].double().cpu().numpy())
    return np.stack(found)


def _kl(p: FloatArray, r: FloatArray) -> FloatArray:
    """KL(p | r) in nats for each row of r; infinite where r lacks mass that p has."""
    with np.errstate(divide="ignore"):
        logs = np.where(p > 0, np.log(np.where(p > 0, p, 1.0)) - np.log(r), 0.0)
    return np.maximum((p * logs).sum(axis=1), 0.0)


def _features(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise DataError(f"{name} features have shape {array.shape}, allowed: (texts, width), not empty, all finite")
    return array


def _distribution(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or (array < 0).any() or abs(float(array.sum()) - 1) > 1e-6:
        raise DataError(f"{name} is not a distribution: it must be (n,), not negative, and sum to 1")
    return array
