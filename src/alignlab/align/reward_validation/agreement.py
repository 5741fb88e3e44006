"""Agreement with the annotators by how sure they were, and by how sure the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from alignlab.align.pairs import PreferencePair
from alignlab.align.reward.examples import dialogues
from alignlab.align.reward_validation.slices import right_shares
from alignlab.core.errors import DataError
from alignlab.stats.calibration import CalibrationError, expected_calibration_error
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval
from alignlab.stats.selective import certainty_auroc

FEWEST = 20
"""Fewer comparisons say nothing about calibration."""


@dataclass(frozen=True)
class AgreementRow:
    """Comparisons of about the same margin."""

    low: float
    """Smallest margin in the row."""
    high: float
    """Largest margin in the row."""
    middle: float
    """Mean margin."""
    agreement: Interval
    """Share of annotators' judgements that the model agrees with, with its interval by dialogue."""
    attainable: float
    """The most that any model can reach: a soft label p is agreed with by max(p, 1 - p) at best. For rows by the
    model's margin: what its margins state, the mean of s(|margin|)."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**vars(self), "agreement": self.agreement.as_dict()}


def annotator_rows(
    margins: NDArray[np.float64], pairs: Sequence[PreferencePair], *, bins: int = 5
) -> list[AgreementRow]:
    """Agreement by the annotators' margin, how far the probability of the label lies from one half (0 to 0.5).

    A pair with label p counts p where the model prefers the chosen side and 1 - p where it prefers the other: the share
    of a crowd of such annotators that it agrees with. One row where all labels are hard.
    """
    _check(margins, pairs)
    p = np.array([pair.probability for pair in pairs])
    right = right_shares(margins)
    agreed = right * p + (1 - right) * (1 - p)
    return _rows(np.abs(p - 0.5), agreed, np.maximum(p, 1 - p), pairs, bins)


def model_rows(margins: NDArray[np.float64], pairs: Sequence[PreferencePair], *, bins: int = 8) -> list[AgreementRow]:
    """Agreement by the size of the model's margin, in nats; equal to what the margins state where it is calibrated."""
    _check(margins, pairs)
    size = np.abs(margins)
    return _rows(size, right_shares(margins), expit(size), pairs, bins)


def ranking_by_margin(margins: NDArray[np.float64], pairs: Sequence[PreferencePair]) -> Interval | None:
    """Probability that a comparison it gets right has a larger margin than one it gets wrong.

    None where fewer than two are right, or wrong.
    """
    _check(margins, pairs)
    decided = margins != 0
    right = margins[decided] > 0
    if min(int(right.sum()), int((~right).sum())) < 2:
        return None
    clusters = np.array(dialogues(pairs))[decided].tolist()
    if len(set(clusters)) < 2:
        return None
    return certainty_auroc(np.abs(margins[decided]), right, clusters=clusters)


def margin_calibration(margins: NDArray[np.float64], pairs: Sequence[PreferencePair]) -> CalibrationError | None:
    """Calibration of s(|margin|) as the probability of being right, with its reliability table; None for fewer than 20
    comparisons or a single dialogue."""
    _check(margins, pairs)
    decided = margins != 0
    clusters = np.array(dialogues(pairs))[decided].tolist()
    if int(decided.sum()) < FEWEST or len(set(clusters)) < 2:
        return None
    return expected_calibration_error(expit(np.abs(margins[decided])), margins[decided] > 0, clusters=clusters)


def _rows(
    by: NDArray[np.float64],
    agreed: NDArray[np.float64],
    attainable: NDArray[np.float64],
    pairs: Sequence[PreferencePair],
    bins: int,
) -> list[AgreementRow]:
    groups = np.array(dialogues(pairs))
    edges = np.unique(np.quantile(by, np.arange(1, bins) / bins, method="inverted_cdf"))
    codes = np.searchsorted(edges, by, side="left")
    rows = []
    for code in np.unique(codes):
        inside = codes == code
        rows.append(
            AgreementRow(
                float(by[inside].min()),
                float(by[inside].max()),
                float(by[inside].mean()),
                mean_interval(agreed[inside], clusters=groups[inside].tolist(), n_resamples=2000),
                float(attainable[inside].mean()),
            )
        )
    return rows


def _check(margins: NDArray[np.float64], pairs: Sequence[PreferencePair]) -> None:
    if len(margins) != len(pairs) or not len(pairs):
        raise DataError(f"got {len(margins)} margins and {len(pairs)} pairs, right is one each, at least one")
