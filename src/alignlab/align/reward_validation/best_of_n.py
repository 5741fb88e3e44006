"""Best-of-n: the reward of the answer that a proxy picks among n, estimated without bias, and how far that goes.

From N answers to a prompt every n up to N is estimated at once: the answer of rank i (by the proxy, from the worst) is
the best of n drawn without replacement with probability C(i - 1, n - 1) / C(N, n) (Nakano et al. 2021, "WebGPT",
appendix I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from alignlab.core.errors import DataError

FloatArray = NDArray[np.float64]


def best_of_n_kl(n: ArrayLike) -> FloatArray:
    """KL(best of n || reference) in nats, `log n - (n - 1) / n` (Stiennon et al. 2020, appendix G.3).

    Exact where no two answers have the same proxy reward; an upper bound where some have (`best_of_n_kl_discrete`;
    Beirami et al. 2024).
    """
    number = np.asarray(n, dtype=np.float64)
    if bool((number < 1).any()):
        raise DataError(f"n is {n!r}, allowed: numbers of at least 1")
    return np.asarray(np.log(number) - (number - 1) / number)


def best_of_n_policy(reference: ArrayLike, proxy: ArrayLike, n: int) -> FloatArray:
    """Probability of each answer under best-of-n, exactly: (n_answers,).

    reference, proxy: (n_answers,), probability and proxy reward of every answer there is. Answers with equal proxy
    reward share their mass as the reference does.
    """
    p, r = as_policy(reference, proxy)
    levels, codes = np.unique(r, return_inverse=True)
    mass = np.bincount(codes, weights=p, minlength=len(levels))
    below = np.concatenate([[0.0], np.cumsum(mass)])
    below = below / below[-1]
    taken = below[1:] ** n - below[:-1] ** n
    inside = np.divide(p, mass[codes], out=np.zeros_like(p), where=mass[codes] > 0)
    return np.asarray(taken[codes] * inside)


def best_of_n_kl_discrete(reference: ArrayLike, proxy: ArrayLike, n: int) -> float:
    """KL(best of n || reference) in nats, exactly, for a policy over countable answers."""
    p, _ = as_policy(reference, proxy)
    return kl_divergence(best_of_n_policy(reference, proxy, n), p)


def kl_divergence(policy: FloatArray, reference: FloatArray) -> float:
    """KL(policy || reference) of two distributions over the same answers, in nats."""
    there = policy > 0
    return float(np.sum(policy[there] * np.log(policy[there] / reference[there])))


def doubling_sizes(n_samples: int) -> list[int]:
    """1, 2, 4, ... and `n_samples` itself."""
    if n_samples < 1:
        raise DataError(f"n_samples is {n_samples}, allowed: a whole number of at least 1")
    sizes = [2**i for i in range(int(math.log2(n_samples)) + 1)]
    return sizes if sizes[-1] == n_samples else [*sizes, n_samples]


def rank_weights(n_samples: int, sizes: Sequence[int]) -> FloatArray:
    """Probability that the answer of each rank (worst first) is the best of n: (sizes, n_samples), rows sum to 1."""
    for n in sizes:
        if not 1 <= n <= n_samples:
            raise DataError(f"n is {n}, allowed: 1 to the {n_samples} samples there are of a prompt")
    rank, size = np.arange(1, n_samples + 1)[None, :], np.asarray(sizes, dtype=np.int64)[:, None]
    # log C(i - 1, n - 1) - log C(N, n)
    below = np.maximum(rank, size)
    ways = gammaln(below) - gammaln(size) - gammaln(below - size + 1)
    every = gammaln(n_samples + 1) - gammaln(size + 1) - gammaln(n_samples - size + 1)
    return np.where(rank >= size, np.exp(ways - every), 0.0)


def best_of_n(proxy: ArrayLike, values: ArrayLike, sizes: Sequence[int]) -> FloatArray:
    """Expected value of the answer with the highest proxy reward among n, by prompt: (prompts, sizes).

    proxy, values: (prompts, samples), of the same answers. Unbiased for every n up to the number of samples; answers
    with equal proxy rewards are taken as equally likely to be picked. Raises DataError where shapes differ, a number is
    not finite, or n exceeds the samples.
    """
    p, v = sample_table(proxy, "proxy"), sample_table(values, "values")
    if p.shape != v.shape:
        raise DataError(f"proxy has shape {p.shape} and values {v.shape}, both need (prompts, samples)")
    weights = rank_weights(p.shape[1], sizes)
    order = np.argsort(p, axis=1, kind="stable")
    ranked = np.take_along_axis(v, order, axis=1)
    ties = np.take_along_axis(p, order, axis=1)
    # Equal proxy rewards stand in a row: each gets the mean of their values.
    begins = np.concatenate([np.ones((len(p), 1), dtype=bool), np.diff(ties, axis=1) != 0], axis=1)
    codes = np.cumsum(begins) - 1
    ranked = (np.bincount(codes, weights=ranked.ravel()) / np.bincount(codes))[codes].reshape(p.shape)
    return np.asarray(ranked @ weights.T)


def sample_table(x: ArrayLike, name: str) -> FloatArray:
    """`x` as (prompts, samples), both at least 1 and all finite; DataError otherwise."""
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(f"{name} has shape {values.shape}, right is (prompts, samples) with at least one of each")
    if not bool(np.isfinite(values).all()):
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"{name} of prompt {row}, sample {column} is {values[row, column]}, rewards must be finite")
    return values


def as_policy(reference: ArrayLike, rewards: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Probabilities and rewards of all answers there are, (n_answers,) each; DataError where they are not that."""
    p, r = np.asarray(reference, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if p.ndim != 1 or p.shape != r.shape or not p.size:
        raise DataError(f"reference has shape {p.shape} and rewards {r.shape}, both need one number an answer")
    if bool((p < 0).any()) or not math.isclose(float(p.sum()), 1.0, abs_tol=1e-9) or not bool(np.isfinite(r).all()):
        raise DataError(f"reference sums to {float(p.sum()):g}; right are probabilities that sum to 1, finite rewards")
    return p, r
