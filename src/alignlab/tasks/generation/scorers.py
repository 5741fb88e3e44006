"""Scorers of written-out answers: the final answer is found, then compared by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from alignlab.core.config import require
from alignlab.lm.types import Completion
from alignlab.tasks.generation.equivalence import equivalent
from alignlab.tasks.generation.extraction import (
    bare_number,
    chosen_letter,
    final_formula,
    final_number,
    last_boxed,
    marked_number,
    number_value,
)
from alignlab.tasks.task import Sample, Score

Outcome = Literal["wrong", "unscorable"]
NumberForm = Literal["marked", "bare", "any"]
FIND = {"marked": marked_number, "bare": bare_number, "any": final_number}
CUT_OFF = "the answer was cut off at the token limit"
EMPTY = "the answer is empty"


@dataclass(frozen=True)
class Silence:
    """What becomes of texts without a final answer. A text that ended by itself without one is wrong: the form was
    asked for. Neither of these is ever right."""

    cut_off: Outcome = "wrong"
    """Stopped by the token limit before an answer: the limit is part of the task, so by default it was not solved."""
    empty: Outcome = "unscorable"
    """No text at all, more often a fault of an endpoint than an answer."""

    def __post_init__(self) -> None:
        for name in ("cut_off", "empty"):
            got = getattr(self, name)
            require(got in ("wrong", "unscorable"), name, got, '"wrong" or "unscorable"')

    def score(self, completion: Completion) -> Score:
        """The score of a completion in which no final answer was found."""
        if not completion.text.strip():
            outcome, reason = self.empty, EMPTY
        elif completion.finish_reason == "length":
            outcome, reason = self.cut_off, CUT_OFF
        else:
            outcome, reason = "wrong", "no final answer was found"
        return Score.unscorable(reason) if outcome == "unscorable" else Score(0.0, explanation=reason)


def _judged(
    sample: Sample, completion: Completion, found: str | None, same: Callable[[str, str], bool], silence: Silence
) -> Score:
    if sample.target is None:
        return Score.unscorable("the sample has no target")
    if found is None:
        return silence.score(completion)
    return Score(float(same(found, sample.target)), explanation=found)


@dataclass(frozen=True)
class FinalNumber:
    """1 when the final number equals the target, as numbers: `$1,800.00` is 1800.

    `marked` takes the number after `####` only, as GSM8K's own examples end (Cobbe et al. 2021); `bare` an answer that
    is nothing but a number; `any` looks for `\\boxed{}`, "the answer is" and at last the last number as well, for
    models that were shown no form.
    """

    form: NumberForm = "marked"
    silence: Silence = Silence()

    def __post_init__(self) -> None:
        require(self.form in get_args(NumberForm), "form", self.form, '"marked", "bare" or "any"')

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1, the number as explanation; unscorable without a target that is a number."""
        if sample.target is not None and number_value(sample.target) is None:
            return Score.unscorable(f"the target {sample.target!r} is not a number")
        found = FIND[self.form](completion.text, cut=completion.finish_reason == "length")
        return _judged(sample, completion, found, _same_number, self.silence)


def _same_number(first: str, second: str) -> bool:
    one, other = number_value(first), number_value(second)
    return one is not None and one == other


@dataclass(frozen=True)
class FinalFormula:
    """1 when the final formula means what the target means; see `equivalent`.

    `boxed` takes the last `\\boxed{}` only; `any` also what follows "the answer is" where nothing is boxed.
    """

    form: Literal["boxed", "any"] = "any"
    silence: Silence = Silence()

    def __post_init__(self) -> None:
        require(self.form in ("boxed", "any"), "form", self.form, '"boxed" or "any"')

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1, the formula as explanation."""
        if self.form == "boxed":
            found = last_boxed(completion.text)
        else:
            found = final_formula(completion.text, cut=completion.finish_reason == "length")
        return _judged(sample, completion, found or None, equivalent, self.silence)


@dataclass(frozen=True)
class ChosenLetter:
    """1 when the letter after "the answer is" is the target; see `chosen_letter`.

    A letter that the item does not offer is a wrong answer.
    """

    lone: bool = True
    """Also take an answer that is nothing but a letter, or begins with one in brackets."""
    silence: Silence = Silence()

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1, the letter as explanation."""
        found = chosen_letter(completion.text, cut=completion.finish_reason == "length", lone=self.lone)
        return _judged(sample, completion, found, str.__eq__, self.silence)
