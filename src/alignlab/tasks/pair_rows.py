"""Files that say which of two answers is better, read in one way for every use: rows, dialogues, where sides part.

What a reader takes of what is read here is its own: a task keeps a pair that parts early as one that cannot be scored,
a store of judgements refuses it, a reward model learns from it whole.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError
from alignlab.core.files import read_json
from alignlab.lm.types import Message, Prompt

Row = Mapping[str, Any]
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant):")
EARLY = "the dialogues part before their last answer"


# Files ----------------------------------------------------------------------------------------------------------------


def every_row(path: str | Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """Where each row of a file stands (`line 7`) and what it holds, or why it holds nothing.

    JSON lines (also gzipped), a JSON list (`.json`) or Parquet. Raises DataError for a file that cannot be read to its
    end; rows before that place have been given then.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise DataError(
                f"{path} is {type(rows).__name__}, allowed: a list of objects, or JSON lines in a .jsonl file"
            )
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", _object(row)
    else:
        yield from _lines(path)


def sound_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same where nothing may be broken: each row after the words for its file and place, or DataError."""
    for place, row in every_row(path):
        if isinstance(row, DataError):
            raise DataError(f"{path}, {place} {str(row).removeprefix('it ')}")
        yield f"{path}, {place}", row


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield f"line {number}", _object(json.loads(line))
                    except (ValueError, RecursionError) as error:
                        yield f"line {number}", DataError(f"it is not valid JSON ({error})")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error


def _object(row: Any) -> dict[str, Any] | DataError:
    return row if isinstance(row, dict) else DataError(f"it is {type(row).__name__}, allowed: a JSON object")


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    import polars

    try:
        frame = polars.read_parquet(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0].lower()}") from error
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield f"row {number}", row


# Fields ---------------------------------------------------------------------------------------------------------------


def text_of(row: Row, name: str) -> str:
    """A field that is text, perhaps empty. Raises DataError for another."""
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"field {name!r} is {value!r:.60}, allowed: text")
    return value


def messages_in(value: object, name: str) -> list[Message]:
    """A field that is a list of messages, not empty. Raises DataError for another."""
    well = isinstance(value, list | tuple) and bool(value) and all(isinstance(m, Mapping) for m in value)
    if not well or not all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value):  # type: ignore[attr-defined]
        raise DataError(f"field {name!r} is {value!r:.60}, allowed: a list of messages with role and content")
    return [{"role": m["role"], "content": m["content"]} for m in value]  # type: ignore[attr-defined]


def dialogue(text: str) -> list[Message]:
    """A dialogue in HH-RLHF's notation as messages, without the blanks around turns; DataError when it is none."""
    pieces = TURN.split("\n\n" + text.lstrip("\n"))
    if len(pieces) < 3 or pieces[0].strip():
        raise DataError(f"a dialogue is {text[:40]!r}: it does not begin with 'Human:' or 'Assistant:'")
    return [{"role": SPEAKERS[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2])]


# Pairs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """What two sides of a comparison share, and how each goes on from there."""

    prompt: Prompt
    chosen: list[Message]
    """An answer; more turns where the sides part `early`."""
    rejected: list[Message]

    @property
    def early(self) -> bool:
        """Whether they part before the last answer, as in a few rows of HH-RLHF."""
        return len(self.chosen) > 1 or len(self.rejected) > 1


def sides_of(row: Row) -> Sides:
    """The sides of a row with `chosen` and `rejected`, and mostly `prompt`. Raises DataError for another.

    - Text without a prompt: two dialogues of `\\n\\nHuman:` and `\\n\\nAssistant:` turns (HH-RLHF).
    - Several messages a side, without a prompt or with one that is text: two whole dialogues (TRL's implicit prompts,
      UltraFeedback's heirs).
    - Otherwise answers to the prompt, text or messages; messages may begin with those of the prompt.
    """
    prompt = row.get("prompt")
    named: list[tuple[str, Any]] = [(name, row.get(name)) for name in ("chosen", "rejected")]
    if prompt is None and not any(isinstance(side, list) for _, side in named):
        return part(*(dialogue(text_of(row, name)) for name, _ in named))
    talks = all(isinstance(side, list) for _, side in named)
    if talks and (prompt is None or (isinstance(prompt, str) and any(len(side) > 1 for _, side in named))):
        return part(*(messages_in(side, name) for name, side in named))
    asked: Prompt = prompt if isinstance(prompt, str) else messages_in(prompt, "prompt")
    chosen, rejected = (_answer(side, name, asked) for name, side in named)
    return Sides(asked, chosen, rejected)


def _answer(side: object, name: str, prompt: Prompt) -> list[Message]:
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    if not isinstance(side, list):
        raise DataError(f"field {name!r} is {side!r:.60}, allowed: text, or a list of messages with role and content")
    turns, asked = messages_in(side, name), len(prompt)
    return turns[asked:] if turns[:asked] == prompt and len(turns) > asked else turns


def part(chosen: Sequence[Message], rejected: Sequence[Message]) -> Sides:
    """Two dialogues cut at the assistant's turn at which they part. Raises DataError where they share nothing before.

    Dialogues that are equal part at their last answer.
    """
    most = min(len(chosen), len(rejected)) - 1
    cut = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    while cut > 0 and not chosen[cut]["role"] == rejected[cut]["role"] == "assistant":
        cut -= 1
    if cut < 1:
        raise DataError("the dialogues share no turn that the assistant answers, so there is no prompt")
    return Sides(list(chosen[:cut]), list(chosen[cut:]), list(rejected[cut:]))


def only_answer(turns: Sequence[Message], name: str) -> str:
    """The text of the one message of the assistant that a side consists of. Raises DataError for more or none."""
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns) or "nothing"
        raise DataError(f"field {name!r} answers with {roles}, allowed: one message of the assistant")
    return turns[0]["content"]


def whole_answer(turns: Sequence[Message]) -> str:
    """The text of a side: its only turn, or the first and the later ones with their speakers."""
    names = {role: name for name, role in SPEAKERS.items()}
    later = "".join(f"\n\n{names.get(turn['role'], turn['role'])}: {turn['content']}" for turn in turns[1:])
    return turns[0]["content"] + later
