"""Files of comparisons for reward models: HH-RLHF's, StackExchange's and explicit pairs, to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab.align.reward.examples import RewardPair
from alignlab.core.errors import DataError
from alignlab.lm.types import Message, Prompt
from alignlab.tasks.pair_rows import sides_of, sound_rows, text_of, whole_answer

FORMS = (
    '{"prompt", "chosen", "rejected"} (also with probability, margin, tie, objective), {"chosen", "rejected"} '
    'dialogues ("\\n\\nHuman: ...\\n\\nAssistant: ..." or messages), or {"question", "response_j", "response_k"}'
)


def read_pairs(path: str | Path, *, most: int | None = None) -> list[RewardPair]:
    """The comparisons in JSON lines (also gzipped), a JSON list or Parquet; see `pair_of` for what a record may be.

    At most the first `most`. Raises DataError for a file that is missing, damaged or without a comparison, and for a
    record of another form, naming its line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is no file; reward models learn from a file of {FORMS}")
    found: list[RewardPair] = []
    for where, record in sound_rows(path):
        if most is not None and len(found) >= most:
            break
        try:
            found.append(pair_of(record))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    if not found:
        raise DataError(f"{path} has no comparison")
    return found


def pair_of(record: Any) -> RewardPair:
    """The comparison that one record stands for; DataError where it has another form.

    Dialogues are cut where the two sides part: what they share is the prompt; sides that part early keep their later
    turns.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{type(record).__name__} is no comparison, allowed: {FORMS}")
    if {"question", "response_j", "response_k"} <= record.keys():
        asked: list[Message] = [{"role": "user", "content": text_of(record, "question")}]
        return RewardPair(asked, text_of(record, "response_j"), text_of(record, "response_k"))
    if not {"chosen", "rejected"} <= record.keys():
        raise DataError(f"the record has {', '.join(map(str, record)) or 'nothing'}, allowed: {FORMS}")
    sides = sides_of(record)
    return RewardPair(sides.prompt, whole_answer(sides.chosen), whole_answer(sides.rejected), **_extras(record))


def as_text(prompt: Prompt) -> str:
    """A dialogue as plain text that ends where the answer begins, for models without a chat template."""
    if isinstance(prompt, str):
        return prompt
    names = {"user": "Human", "assistant": "Assistant"}
    turns = "".join(f"{names.get(m['role'], m['role'].title())}: {m['content']}\n\n" for m in prompt)
    return f"{turns}Assistant: "


def _extras(record: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("probability", "margin"):
        if record.get(name) is not None:
            value = record[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"{name} is {value!r}, allowed: a number")
            found[name] = float(value)
    if "tie" in record:
        if not isinstance(record["tie"], bool):
            raise DataError(f"tie is {record['tie']!r}, allowed: true or false")
        found["tie"] = record["tie"]
    if record.get("objective"):
        found["objective"] = text_of(record, "objective")
    return found
