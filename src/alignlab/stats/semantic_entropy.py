"""Does a model say the same thing each time? Entropy over meanings rather than over wordings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from alignlab.core.errors import DataError
from alignlab.stats.validation import FloatArray, as_codes, as_values


def cluster_by_meaning(answers: Sequence[str], entails: Callable[[str, str], bool]) -> list[int]:
    """Cluster number of each answer: it joins the first cluster whose first answer it entails and is entailed by.

    `entails(premise, hypothesis)` is any judge: an entailment model, a language model asked, string rules. Greedy, at
    most two calls for each answer and cluster, as in Farquhar et al. 2024 (Nature 630:625). Entailment of a judge is
    not always transitive, so the order of answers can matter. Put the question in front of the answers if they mean
    little without it.
    """
    if not answers:
        raise DataError("answers is empty; clustering needs at least one answer")
    leaders: list[str] = []
    clusters: list[int] = []
    for answer in answers:
        for number, leader in enumerate(leaders):
            if answer == leader or (entails(leader, answer) and entails(answer, leader)):
                clusters.append(number)
                break
        else:
            clusters.append(len(leaders))
            leaders.append(answer)
    return clusters


def meaning_probabilities(
    clusters: Sequence[Hashable], log_probs: ArrayLike | None = None, lengths: ArrayLike | None = None
) -> FloatArray:
    """Probability of each cluster of sampled answers, (C,), in order of first appearance; sums to 1.

    Without `log_probs`, the shares of the samples. With them, (n,) log-probabilities of whole answers in nats, clusters
    weigh the sum of their answers' probabilities, normalised over the samples (Farquhar et al. 2024, Eq. 5). `lengths`,
    (n,) tokens, divides each log-probability first (Kuhn et al. 2023, arXiv:2302.09664): long answers are otherwise
    improbable for their length alone.
    """
    n = len(clusters)
    if n == 0:
        raise DataError("clusters is empty; semantic entropy needs at least one answer")
    codes = as_codes(clusters, n)
    assert codes is not None
    if log_probs is None:
        if lengths is not None:
            raise DataError("lengths are given without log_probs; shares of samples have no use for them")
        return np.asarray(np.bincount(codes) / n, dtype=np.float64)
    weights = _aligned(log_probs, "log_probs", n)
    if (weights > 1e-6).any():
        first = int(np.argmax(weights > 1e-6))
        raise DataError(f"log_probs[{first}] is {weights[first]:g}; a log-probability is not above 0")
    if lengths is not None:
        tokens = _aligned(lengths, "lengths", n)
        if (tokens < 1).any():
            first = int(np.argmax(tokens < 1))
            raise DataError(f"lengths[{first}] is {tokens[first]:g}; an answer has at least one token")
        weights = weights / tokens
    mass = np.array([logsumexp(weights[codes == code]) for code in range(int(codes.max()) + 1)])
    return np.asarray(np.exp(mass - logsumexp(mass)), dtype=np.float64)


def semantic_entropy(
    clusters: Sequence[Hashable], log_probs: ArrayLike | None = None, lengths: ArrayLike | None = None
) -> float:
    """Entropy over meanings, nats: 0 when all samples mean the same, log n when each means something else.

    - sum_c p(c) log p(c) with p of `meaning_probabilities`: discrete without `log_probs`, Rao-Blackwellised with them
    (Farquhar et al. 2024, Nature 630:625). High values flag made-up answers; minus this is a certainty for
    `risk_coverage`. Meanings that were not sampled are missing, so few samples give too low an entropy, at most log n.
    """
    probabilities = meaning_probabilities(clusters, log_probs, lengths)
    positive = probabilities[probabilities > 0]
    return max(0.0, float(-(positive * np.log(positive)).sum()))


def _aligned(x: ArrayLike, name: str, n: int) -> FloatArray:
    values = as_values(x, name)
    if values.size != n:
        raise DataError(f"{name} has {values.size} values for {n} answers; give one an answer")
    return values
