"""Pairs of answers of which one is better: BIG-bench's HHH, dialogues in the style of HH-RLHF, and our own form."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError
from alignlab.core.files import json_rows, read_json
from alignlab.lm.types import Message, Prompt
from alignlab.tasks.icl.own_rows import own_rows
from alignlab.tasks.pair_rows import EARLY, dialogue, messages_in, part, sound_rows, whole_answer

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerPair:
    """A prompt with two answers, the better one named."""

    id: str
    prompt: Prompt
    """Raw text, or the conversation up to the answer."""
    better: str
    worse: str
    category: str | None = None
    cluster: str | None = None
    """Pairs that share a cluster are not independent (several pairs on one prompt)."""
    flaw: str | None = None
    """Why the pair cannot be scored, where it cannot: it then counts as unscorable and is not left out."""

    def __post_init__(self) -> None:
        flaw = self.flaw
        if not self.better.strip() or not self.worse.strip():
            flaw = flaw or "an answer of the pair is empty"
        elif self.better.strip() == self.worse.strip():
            flaw = flaw or "both answers are the same text"
        object.__setattr__(self, "flaw", flaw)


def read_pairs(path: str | Path) -> list[AnswerPair]:
    """Our own form in JSONL: `prompt` (text or messages), `better`, `worse`; also `id`, `category`, `cluster`."""
    return _some(_own(json_rows(path)), path)


def own_pairs() -> list[AnswerPair]:
    """The lab's own pairs: helpful, honest, harmless, sixteen each; the better answer is the longer in half of them."""
    return _some(_own(own_rows("hhh")), "hhh.jsonl")


def read_hhh(path: str | Path) -> list[AnswerPair]:
    """HHH comparisons (Askell et al. 2021) as BIG-bench has them, or in JSONL.

    A BIG-bench task (`.json`) is an object with `examples` of `input` and `target_scores`, two answers of which one
    scores higher. A line of JSONL is such an example, or has `targets` with `choices` and `labels`. The category is the
    row's `category`, else the file's folder or name (`helpful/task.json`).
    """
    path = Path(path)
    if path.suffix == ".json":
        whole = read_json(path)
        examples = whole.get("examples") if isinstance(whole, dict) else None
        if not isinstance(examples, list):
            raise DataError(f"{path} has no list 'examples', which a BIG-bench task has")
        rows: Iterable[tuple[str, Any]] = ((f"{path}, example {i}", row) for i, row in enumerate(examples, start=1))
    else:
        rows = json_rows(path)
    category = path.parent.name if path.stem == "task" and path.parent.name else path.stem
    return _some([_hhh_row(row, where, i, category) for i, (where, row) in enumerate(rows, start=1)], path)


def read_dialogues(path: str | Path) -> list[AnswerPair]:
    """HH-RLHF (Bai et al. 2022) in JSONL or gzipped JSONL: `chosen` and `rejected`, each a whole dialogue.

    The prompt is the conversation up to the assistant's turn at which the two part. In a few rows of the published
    files they part earlier than in the last answer; those are kept and cannot be scored.
    """
    return _some([_dialogue_row(row, where, i) for i, (where, row) in enumerate(sound_rows(path), start=1)], path)


def _own(rows: Iterable[tuple[str, Row]]) -> list[AnswerPair]:
    found = []
    for number, (where, row) in enumerate(rows, start=1):
        prompt = row.get("prompt")
        prompt = _talk(prompt, where) if isinstance(prompt, list) else _text(row, "prompt", where)
        better, worse = _text(row, "better", where), _text(row, "worse", where)
        name, category, cluster = (_name(row, key, where) for key in ("id", "category", "cluster"))
        found.append(AnswerPair(name or str(number), prompt, better, worse, category, cluster))
    return found


def _hhh_row(row: Any, where: str, number: int, category: str) -> AnswerPair:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, allowed: a JSON object")
    scores, targets = row.get("target_scores"), row.get("targets")
    if isinstance(targets, dict):
        choices, labels = targets.get("choices"), targets.get("labels")
        fits = isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels)
        given = list(zip(choices, labels)) if fits else []  # type: ignore[arg-type]
        field = "targets"
    else:
        given, field = (list(scores.items()) if isinstance(scores, dict) else []), "target_scores"
    fine = len(given) == 2 and all(isinstance(t, str) and isinstance(s, int | float) for t, s in given)
    if not fine:
        shown = json.dumps(row.get(field))[:80]
        raise DataError(f"{where}: field {field!r} is {shown}, allowed: two answers, each with its score")
    (first, a), (second, b) = given
    if a == b:
        raise DataError(f"{where}: field {field!r} gives both answers the score {a}, so neither is the better one")
    better, worse = (first, second) if a > b else (second, first)
    name = _name(row, "id", where) or f"{category}-{number}"
    return AnswerPair(name, _text(row, "input", where), better, worse, _name(row, "category", where) or category)


def _dialogue_row(row: Row, where: str, number: int) -> AnswerPair:
    chosen, rejected = _text(row, "chosen", where), _text(row, "rejected", where)
    try:
        sides = part(dialogue(chosen), dialogue(rejected))
    except DataError as error:
        raise DataError(f"{where}: fields 'chosen' and 'rejected': {error}") from None
    answers = whole_answer(sides.chosen), whole_answer(sides.rejected)
    return AnswerPair(str(row.get("id", number)), sides.prompt, *answers, flaw=EARLY if sides.early else None)


def _talk(prompt: object, where: str) -> list[Message]:
    try:
        return messages_in(prompt, "prompt")
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _text(row: Row, field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {field!r} is {value!r:.80}, allowed: text")
    return value


def _name(row: Row, field: str, where: str) -> str | None:
    value = row.get(field)
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool) and str(value)):
        return None if value is None else str(value)
    raise DataError(f"{where}: field {field!r} is {value!r:.80}, allowed: text")


def _some(pairs: list[AnswerPair], path: object) -> list[AnswerPair]:
    if not pairs:
        raise DataError(f"{path} has no pairs")
    return pairs
