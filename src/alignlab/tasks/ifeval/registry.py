"""The 25 instructions of Zhou et al. (2023, arXiv:2311.07911) by their identifiers, and the judgement of a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.core.errors import DataError
from alignlab.tasks.ifeval.content import CONTENT
from alignlab.tasks.ifeval.english import sentence_model
from alignlab.tasks.ifeval.instruction import Instruction
from alignlab.tasks.ifeval.layout import LAYOUT
from alignlab.tasks.ifeval.length import LENGTH
from alignlab.tasks.ifeval.sentences import SentenceModel

INSTRUCTIONS: dict[str, Instruction] = {one.id: one for one in (*CONTENT, *LENGTH, *LAYOUT)}


def find(identifier: Any) -> Instruction:
    """The instruction of that identifier; DataError when there is none."""
    known = INSTRUCTIONS.get(identifier) if isinstance(identifier, str) else None
    if known is None:
        raise DataError(f"the instruction {identifier!r} is unknown, allowed: {', '.join(sorted(INSTRUCTIONS))}")
    return known


@dataclass(frozen=True)
class Verdict:
    """Whether a response follows each of a prompt's instructions, in their order."""

    instructions: tuple[str, ...]
    """Their identifiers."""
    strict: tuple[bool, ...]
    """On the response as it is."""
    loose: tuple[bool, ...]
    """On the best of eight variants: without its first line, its last line, both or neither, with asterisks or not."""

    @property
    def all_strict(self) -> bool:
        """Prompt-level strict verdict."""
        return all(self.strict)

    @property
    def all_loose(self) -> bool:
        """Prompt-level loose verdict."""
        return all(self.loose)


def follows(identifier: str, arguments: Mapping[str, Any], response: str, model: SentenceModel | None = None) -> bool:
    """Whether `response` follows one instruction, strictly. A blank response follows none.

    `model` counts sentences (`sentence_model()` by default). Raises DataError for an unknown instruction or wrong
    arguments, MissingExtraError when a language must be told and langdetect is not installed.
    """
    instruction = find(identifier)
    return _follows(instruction, instruction.validated(arguments), response, model or sentence_model())


def _follows(instruction: Instruction, given: Mapping[str, Any], response: str, model: SentenceModel) -> bool:
    return bool(response.strip()) and instruction.check(response, given, model)


def variants(response: str) -> list[str]:
    """The eight texts of the loose verdict, the response itself first.

    They forgive an opening such as "Sure, here it is:", a closing remark, and the marks of bold and italic type.
    """
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


def judge(
    response: str, instructions: Sequence[tuple[str, Mapping[str, Any]]], model: SentenceModel | None = None
) -> Verdict:
    """Strict and loose verdicts on `response` for (identifier, arguments) pairs; errors as in `follows`."""
    model = model or sentence_model()
    texts = variants(response)
    strict, loose = [], []
    for identifier, arguments in instructions:
        instruction = find(identifier)
        given = instruction.validated(arguments)
        first = _follows(instruction, given, texts[0], model)
        strict.append(first)
        loose.append(first or any(_follows(instruction, given, text, model) for text in texts[1:]))
    return Verdict(tuple(identifier for identifier, _ in instructions), tuple(strict), tuple(loose))
