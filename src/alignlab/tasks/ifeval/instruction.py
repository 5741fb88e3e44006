"""What an instruction is: an identifier, its arguments with their rules, and a check of a response."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alignlab.core.errors import DataError
from alignlab.tasks.ifeval.language import CODES
from alignlab.tasks.ifeval.sentences import SentenceModel

RELATIONS = ("less than", "at least")

Check = Callable[[str, Mapping[str, Any], SentenceModel], bool]
"""(response, arguments, model of sentences) -> followed. The response is never blank: that one follows nothing."""


@dataclass(frozen=True)
class Kind:
    """The rule of one argument: a test, and in words what passes it."""

    allows: Callable[[Any], bool]
    words: str


def _is_count(value: Any) -> bool:
    # Some copies of the data hold whole numbers as floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value % 1 == 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_pattern(value: Any) -> bool:
    if not _is_text(value):
        return False
    try:
        re.compile(value)
    except re.error:
        return False
    return True


COUNT = Kind(_is_count, "a whole number of at least 0")
POSITION = Kind(lambda value: _is_count(value) and value >= 1, "a whole number of at least 1")
RELATION = Kind(lambda value: value in RELATIONS, '"less than" or "at least"')
TEXT = Kind(_is_text, "a text that is not blank")
PATTERN = Kind(_is_pattern, "a text that is not blank and is a valid regular expression, as which it is searched")
PATTERNS = Kind(
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_pattern, value)),
    "a non-empty list of texts, each a valid regular expression, as which it is searched",
)
CHARACTER = Kind(lambda value: _is_text(value) and len(value) == 1, "one character that is not blank")
LANGUAGE = Kind(lambda value: isinstance(value, str) and value in CODES, f"one of {', '.join(sorted(CODES))}")


@dataclass(frozen=True)
class Instruction:
    """One of the benchmark's instructions."""

    id: str
    """Group and name, such as "punctuation:no_comma"."""
    arguments: Mapping[str, Kind]
    """All of them are needed."""
    check: Check
    needs_langdetect: bool = False

    @property
    def group(self) -> str:
        """The part of the identifier before the colon."""
        return self.id.partition(":")[0]

    def validated(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` without its nulls, which some copies of the data hold for all arguments of others.

        Raises DataError naming an argument that is missing, unknown or not allowed.
        """
        found = {name: value for name, value in given.items() if value is not None}
        for name in found:
            if name not in self.arguments:
                known = ", ".join(self.arguments) or "none"
                raise DataError(f"{self.id} has the unknown argument {name!r}, allowed: {known}")
        for name, kind in self.arguments.items():
            if name not in found:
                raise DataError(f"{self.id} lacks the argument {name!r}, allowed: {kind.words}")
            if not kind.allows(found[name]):
                raise DataError(f"{name} of {self.id} is {found[name]!r}, allowed: {kind.words}")
        if "nth_paragraph" in found and found["nth_paragraph"] > found["num_paragraphs"]:
            raise DataError(
                f"nth_paragraph of {self.id} is {found['nth_paragraph']}, allowed: at most num_paragraphs, "
                f"{found['num_paragraphs']}"
            )
        return {name: int(value) if isinstance(value, float) else value for name, value in found.items()}


def holds(count: int, relation: str, threshold: int) -> bool:
    """Whether `count` is "less than" or "at least" `threshold`."""
    return count < threshold if relation == "less than" else count >= threshold
