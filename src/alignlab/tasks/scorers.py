"""Built-in scorers for answers that text alone decides. A sample without a target is unscorable, not wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alignlab.core.errors import ConfigError
from alignlab.lm.types import Completion
from alignlab.tasks.task import Sample, Score, Scorer


def _plain(text: str, ignore_case: bool) -> str:
    joined = " ".join(text.split())
    return joined.casefold() if ignore_case else joined


@dataclass(frozen=True)
class ExactMatch:
    """1 when the whole answer is the target."""

    ignore_case: bool = True

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1; unscorable without a target."""
        if sample.target is None:
            return Score.unscorable("the sample has no target")
        same = _plain(completion.text, self.ignore_case) == _plain(sample.target, self.ignore_case)
        return Score(float(same))


@dataclass(frozen=True)
class Includes:
    """1 when the answer contains the target."""

    ignore_case: bool = True

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1; unscorable without a target, or with an empty one that every answer contains."""
        if sample.target is None:
            return Score.unscorable("the sample has no target")
        target = _plain(sample.target, self.ignore_case)
        if not target:
            return Score.unscorable("the target is empty, and every answer contains it")
        return Score(float(target in _plain(completion.text, self.ignore_case)))


@dataclass(frozen=True)
class RegexMatch:
    """1 when the pattern is found and, with a group, the group is the target."""

    pattern: str
    ignore_case: bool = True

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"pattern is {self.pattern!r}, allowed: a regular expression ({error})") from error

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1, the extracted text as explanation; with a group, unscorable without a target."""
        expression = re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0)
        if expression.groups and sample.target is None:
            return Score.unscorable("the sample has no target")
        found = expression.search(completion.text)
        if found is None:
            return Score(0.0, explanation="pattern not found")
        if not expression.groups or sample.target is None:
            return Score(1.0, explanation=found.group())
        extracted = next((group for group in found.groups() if group is not None), "")
        same = _plain(extracted, self.ignore_case) == _plain(sample.target, self.ignore_case)
        return Score(float(same), explanation=extracted)


def exact_match(*, ignore_case: bool = True) -> Scorer:
    """1 when the answer equals the target, white space collapsed."""
    return ExactMatch(ignore_case)


def includes(*, ignore_case: bool = True) -> Scorer:
    """1 when the answer contains the target, white space collapsed."""
    return Includes(ignore_case)


def regex_match(pattern: str, *, ignore_case: bool = True) -> Scorer:
    """1 when `pattern` is found; if it has a group, the first that matched must equal the target.

    No match is a wrong answer (0), not an unscorable one: the format was asked for. ConfigError for a broken pattern.
    """
    return RegexMatch(pattern, ignore_case)
