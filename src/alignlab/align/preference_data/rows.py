"""One row of somebody's preference data, whatever the format: a prompt, answers, and what was said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignlab.align.preference_data.judgement import Kind, Verdict, check_prompt, check_responses, pairwise
from alignlab.core.errors import DataError, FeedbackError
from alignlab.lm.types import Prompt

if TYPE_CHECKING:
    from alignlab.align.pairs import PreferencePair


@dataclass(frozen=True)
class PreferenceRow:
    """A question and one judgement of it. Answers are named by their place in `responses`, as text from "0" on."""

    prompt: Prompt
    responses: tuple[str, ...]
    verdict: Verdict | None
    """None of a question that nobody has judged."""
    models: tuple[str | None, ...] = ()
    annotator: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the row says: ids, scores, how sure the annotator was."""
    stored: Mapping[str, Any] = field(default_factory=dict)
    """Of rows that were exported from a store: token, kind, shown, reason, seconds, created, withdrawn."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "prompt", check_prompt(self.prompt))
            object.__setattr__(self, "responses", check_responses(self.responses, self.kind))
        except FeedbackError as error:
            raise DataError(str(error)) from None

    @property
    def kind(self) -> Kind:
        """How it was asked."""
        if "kind" in self.stored:
            known: Kind = self.stored["kind"]
            return known
        outcome = None if self.verdict is None else self.verdict.outcome
        return "rating" if outcome == "rating" else "ranking" if outcome == "ranking" else "pair"

    def pairs(self, *, ties: bool = False) -> list[PreferencePair]:
        """Each two answers of which one is preferred; with `ties` also equal ones, with probability 0.5."""
        from alignlab.align.pairs import PreferencePair  # it imports torch, which reading does not need

        if self.verdict is None or self.stored.get("withdrawn") is not None:
            return []
        found = []
        for one, other, value in pairwise(self.verdict, [str(i) for i in range(len(self.responses))]):
            better, worse = (one, other) if value >= 0.5 else (other, one)
            if value != 0.5 or ties:
                texts = self.responses[int(better)], self.responses[int(worse)]
                found.append(PreferencePair(self.prompt, *texts, max(value, 1 - value)))
        return found


def chosen_row(
    prompt: Prompt,
    chosen: str,
    rejected: str,
    *,
    models: Sequence[str | None] = (),
    annotator: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> PreferenceRow:
    """The row of a pair of which the first was chosen."""
    verdict = Verdict("choice", choice="0")
    return PreferenceRow(prompt, (chosen, rejected), verdict, tuple(models), annotator, dict(about or {}))


def number_of(row: Mapping[str, Any], name: str) -> float:
    """A field that is a number. Raises DataError for another."""
    value = row.get(name)
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)  # type: ignore[arg-type]  # UltraFeedback has some numbers as text
    except (TypeError, ValueError):
        raise DataError(f"field {name!r} is {value!r:.60}, allowed: a number") from None
