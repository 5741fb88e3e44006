"""From the likelihoods of choices to beliefs, and from beliefs to accuracy, Brier score and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignlab.stats.calibration import expected_calibration_error
from alignlab.stats.interval import Interval
from alignlab.tasks.choice import ChoiceItem

Normalise = Literal["none", "characters"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Beliefs:
    """What a model thought of each item of one task; NaN where an item is unscorable."""

    confidence: FloatArray
    """Probability of the chosen answer, (items,)."""
    correct: FloatArray
    """Whether it is right, 0 or 1, (items,)."""
    brier: FloatArray
    """Sum over choices of (probability - truth)^2, 0 to 2 (Brier 1950, Mon. Weather Rev. 78:1), (items,)."""

    @property
    def gap(self) -> FloatArray:
        """Confidence minus correctness; its mean is the overconfidence, (items,)."""
        return np.asarray(self.confidence - self.correct)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Items that have a value."""
        return np.asarray(np.isfinite(self.confidence))

    def of(self, measure: str) -> FloatArray:
        """`correct`, `brier`, `confidence` or `gap`."""
        return np.asarray(getattr(self, measure))


def beliefs(record: dict[str, Any], items: Sequence[ChoiceItem], normalise: Normalise = "none") -> Beliefs:
    """Softmax over the choices' log-likelihoods: the model's probability of each, given that it is one of them.

    `characters` divides log-likelihoods by the choices' lengths first. That often answers better, but what comes out of
    the softmax is then no probability of the model: nearly flat, whatever it knows. An item whose likelihoods are
    missing or not finite is unscorable, and so is one whose best choices are equally likely.
    """
    rows: list[tuple[float, float, float]] = []
    for item, logprobs in zip(items, record["logprobs"], strict=True):
        rows.append(_belief(item, logprobs, normalise))
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
    return Beliefs(table[:, 0], table[:, 1], table[:, 2])


def _belief(item: ChoiceItem, logprobs: list[float] | None, normalise: Normalise) -> tuple[float, float, float]:
    missing = (np.nan, np.nan, np.nan)
    if logprobs is None or len(logprobs) != len(item.choices):
        return missing
    scores = np.asarray([np.nan if x is None else float(x) for x in logprobs])
    if normalise == "characters":
        scores = scores / [len(choice.strip()) for choice in item.choices]
    if not np.isfinite(scores).all() or int((scores == scores.max()).sum()) > 1:
        return missing
    likely = np.exp(scores - scores.max())
    likely /= likely.sum()
    truth = np.zeros_like(likely)
    truth[item.answer] = 1.0
    chosen = int(scores.argmax())
    return float(likely[chosen]), float(chosen == item.answer), float(np.sum((likely - truth) ** 2))


def plug_in_ece(confidence: FloatArray, correct: FloatArray, n_bins: int = 10) -> float:
    """Expected calibration error over bins of (nearly) equal mass, ties in order; biased upwards, but equally so for
    two models on as many items."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(n_bins, order.size))
    return float(sum(abs(float((correct[p] - confidence[p]).sum())) for p in parts) / order.size)


def ece_difference(
    before: Beliefs, after: Beliefs, *, n_bins: int = 10, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Calibration error after minus before on the items that both score, with a paired bootstrap interval.

    Items are drawn again as pairs. Drawing makes every calibration error larger, so the spread of the bootstrap is put
    around the observed difference, less its own mean: this assumes that the bias is about the same on both sides. Where
    200 items are answered alike but for a shift, an interval of 95 % covers 0.914 to 0.917 of simulated changes.
    """
    both = before.scored & after.scored
    a, b = (np.stack([one.confidence[both], one.correct[both]]) for one in (before, after))
    n = int(both.sum())
    observed = plug_in_ece(b[0], b[1], n_bins) - plug_in_ece(a[0], a[1], n_bins)
    if n < 2:
        return Interval(observed, -np.inf, np.inf, n, 0.95, "paired bootstrap")
    rng, drawn = np.random.default_rng(seed), np.empty(n_resamples)
    for i in range(n_resamples):
        rows = rng.integers(0, n, n)
        drawn[i] = plug_in_ece(b[0, rows], b[1, rows], n_bins) - plug_in_ece(a[0, rows], a[1, rows], n_bins)
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
    return Interval(observed, observed - float(high), observed - float(low), n, 0.95, "paired bootstrap")


def calibration_error(parts: Sequence[Beliefs], seed: int = 0) -> Interval | None:
    """Expected calibration error with its interval over several draws of examples, clustered by item; None for fewer
    than 2 scored items."""
    stated = np.concatenate([one.confidence[one.scored] for one in parts])
    correct = np.concatenate([one.correct[one.scored] for one in parts])
    ids = np.concatenate([np.flatnonzero(one.scored) for one in parts])
    if len(set(ids.tolist())) < 2:
        return None
    clusters = ids.tolist() if len(parts) > 1 else None
    return expected_calibration_error(stated, correct, clusters=clusters, n_resamples=2000, seed=seed).error
