"""`ValidationReport`: everything that is known about a reward model, as numbers, lines and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.align.pairs import PreferencePair
from alignlab.align.reward.examples import RewardPair
from alignlab.align.reward.measures import RewardMeasures, measure_margins
from alignlab.align.reward_validation.agreement import (
    AgreementRow,
    annotator_rows,
    margin_calibration,
    model_rows,
    ranking_by_margin,
)
from alignlab.align.reward_validation.figures import by_margin_figure, edits_figure, slices_figure
from alignlab.align.reward_validation.overoptimisation import Overoptimisation
from alignlab.align.reward_validation.robustness import Robustness
from alignlab.align.reward_validation.slices import SliceGroup, slice_accuracy
from alignlab.core.errors import DataError
from alignlab.stats.calibration import CalibrationError
from alignlab.stats.interval import Interval
from alignlab.viz.calibration_figures import reliability_diagram
from alignlab.viz.page import KeyNumber, Page


@dataclass(frozen=True)
class ValidationReport:
    """What validation found; parts that were not asked for are None."""

    name: str
    """Of the reward model."""
    measures: RewardMeasures
    """Accuracy, loss, calibration error and length probe."""
    groups: tuple[SliceGroup, ...]
    """Accuracy by every description of the comparisons."""
    calibration: CalibrationError | None
    """Of s(|margin|), with the reliability table; None for fewer than 20 comparisons."""
    by_model: tuple[AgreementRow, ...]
    """Agreement by the model's margin."""
    by_annotators: tuple[AgreementRow, ...]
    """Agreement by how sure the annotators were; one row where all labels are hard."""
    ranking: Interval | None
    """Probability that a right comparison has the larger margin than a wrong one."""
    robustness: Robustness | None = None
    """Effects of edits."""
    overoptimisation: Overoptimisation | None = None
    """Curves against a gold reward."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: the measures with everything else beside them."""
        calibration = self.calibration
        return {
            "model": self.name,
            **self.measures.as_dict(),
            "groups": [group.as_dict() for group in self.groups],
            "reliability": None if calibration is None else [_bin(row) for row in calibration.table],
            "by_model_margin": [row.as_dict() for row in self.by_model],
            "by_annotators_margin": [row.as_dict() for row in self.by_annotators],
            "ranking": None if self.ranking is None else self.ranking.as_dict(),
            "robustness": None if self.robustness is None else self.robustness.as_dict(),
            "overoptimisation": None if self.overoptimisation is None else self.overoptimisation.as_dict(),
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [*self.measures.lines()]
        if self.ranking is not None:
            found.append(f"a right comparison has the larger margin  {self.ranking}")
        for group in self.groups:
            found += group.lines()
        for part in (self.robustness, self.overoptimisation):
            found += [] if part is None else part.lines()
        return found

    def page(self) -> Page:
        """The report as a self-contained page."""
        m = self.measures
        page = Page(
            f"Reward model {self.name}",
            f"Measured on {m.pairs:,} comparisons of {m.dialogues:,} dialogues that it has not seen; intervals are by "
            "dialogue.",
        )
        numbers: list[KeyNumber] = [
            ("accuracy", m.accuracy.estimate, m.accuracy, None),
            ("loss (nats)", m.loss.estimate, m.loss, None),
        ]
        if m.calibration is not None:
            numbers.append(("calibration error", m.calibration.estimate, m.calibration, None))
        if m.length is not None:
            numbers.append(("prefers the longer side", m.length.prefers_longer.estimate, m.length.prefers_longer, None))
        page.key_numbers(numbers)
        self._slices(page)
        self._agreement(page)
        if self.robustness is not None:
            _robustness(page, self.robustness)
        if self.overoptimisation is not None:
            self.overoptimisation.add_to(page)
        return page.footer("Written by alignlab reward validate.")

    def _slices(self, page: Page) -> None:
        page.heading("Accuracy by slice")
        if self.groups:
            drawn = {group.name: group.slices for group in self.groups}
            page.figure(slices_figure(drawn, self.measures.accuracy), "The line is the accuracy on all comparisons")
        for group in self.groups:
            rows: list[list[object]] = [[part, value.n, value] for part, value in group.slices.items()]
            rows.append(["mean of these", None, group.macro])
            page.details(f"By {group.name}", Page("").table([group.name, "comparisons", "accuracy"], rows))

    def _agreement(self, page: Page) -> None:
        page.heading("Agreement by margin")
        lines = {
            "agreement": [(r.middle, r.agreement.estimate, r.agreement.low, r.agreement.high) for r in self.by_model],
            "what the margins state": [(r.middle, r.attainable, r.attainable, r.attainable) for r in self.by_model],
        }
        page.figure(by_margin_figure(lines, x="size of the model's margin (nats)"), "Agreement by the model's margin")
        if len(self.by_annotators) > 1:
            lines = {
                "agreement": [
                    (r.middle, r.agreement.estimate, r.agreement.low, r.agreement.high) for r in self.by_annotators
                ],
                "most that can be reached": [
                    (r.middle, r.attainable, r.attainable, r.attainable) for r in self.by_annotators
                ],
            }
            caption = "Agreement by how far the label lies from one half"
            page.figure(by_margin_figure(lines, x="|probability of the label - 1/2|"), caption)
        if self.calibration is not None:
            page.heading("Calibration")
            page.text(f"Expected calibration error {self.calibration.error} (plug-in {self.calibration.plug_in:.3f}).")
            page.figure(reliability_diagram({self.name: self.calibration.table}), "Share right by stated probability")


def validate_margins(
    name: str,
    margins: NDArray[np.float64],
    pairs: Sequence[PreferencePair],
    *,
    columns: Mapping[str, Sequence[object]] | None = None,
    robustness: Robustness | None = None,
    overoptimisation: Overoptimisation | None = None,
) -> ValidationReport:
    """The report from margins (reward of the chosen less that of the rejected side, nats) of pairs.

    Ties say nothing about right and wrong: leave them out (`decided`). Raises DataError where there is nothing left.
    """
    if not pairs:
        raise DataError("the list of preference pairs is empty, at least one pair is needed")
    return ValidationReport(
        name,
        measure_margins(margins, pairs),
        tuple(slice_accuracy(margins, pairs, columns=columns)),
        margin_calibration(margins, pairs),
        tuple(model_rows(margins, pairs)),
        tuple(annotator_rows(margins, pairs)),
        ranking_by_margin(margins, pairs),
        robustness,
        overoptimisation,
    )


def decided(pairs: Sequence[PreferencePair]) -> list[int]:
    """Indices of the pairs that are no ties."""
    return [i for i, pair in enumerate(pairs) if not (isinstance(pair, RewardPair) and pair.tie)]


def _bin(row: Any) -> dict[str, Any]:
    return {**vars(row), "correct": row.correct.as_dict()}


def _robustness(page: Page, found: Robustness) -> None:
    page.heading("Robustness")
    page.text(
        f"{found.pairs:,} comparisons were edited in ways that should not matter. The reward moves in units of "
        f"{found.deviation:.3g} nats, the deviation within a pair. An edit steals where it makes the other side win by "
        "being given to that side alone."
    )
    page.figure(edits_figure(found), "Share of comparisons in which the other side is preferred after the edit")
    head = ["edit", "flips", "movement", "shift", "steals", "accuracy before", "after", "texts changed"]
    page.table(
        head,
        [
            [e.name, e.flips, e.movement, e.shift, e.steals, e.accuracy_before, e.accuracy_after, f"{e.changed:.0%}"]
            for e in found.effects
        ],
    )
