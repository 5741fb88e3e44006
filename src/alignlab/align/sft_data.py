"""Files for supervised fine-tuning: conversations, prompts with answers, instructions, as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignlab.align.conversations import Conversation
from alignlab.align.sft import SFTExample
from alignlab.core.errors import DataError
from alignlab.core.files import json_rows
from alignlab.lm.types import Message

FORMS = (
    '{"messages": [{"role", "content"}, ...]}, {"conversations": [{"from", "value"}, ...]}, {"prompt", "response"}, '
    '{"prompt", "completion"} or {"instruction", "input", "output"}'
)
SPEAKERS = {"human": "user", "gpt": "assistant"}
"""What ShareGPT's files call the two sides."""

Learn = Literal["all", "last"]


@dataclass(frozen=True)
class Reading:
    """How conversations are read."""

    learn: Learn = "all"
    """The assistant's turns that are learned: all, or the last one of each conversation, in either case without those
    of `"weight": 0`."""
    system: str = ""
    """A system message for conversations that have none."""


def read_examples(path: str | Path, reading: Reading | None = None) -> list[SFTExample | Conversation]:
    """The examples in a JSONL file, which may be gzipped; see `examples_of` for what a line may be.

    Raises:
        DataError: no such file, not JSON lines, no example, or a line of another form; names the line.
    """
    return [example for _, _, examples in read_records(path, reading) for example in examples]


def read_records(
    path: str | Path, reading: Reading | None = None
) -> list[tuple[int, dict[str, Any], list[SFTExample | Conversation]]]:
    """The number of each record (from 1), the record itself, and its examples. Raises what `read_examples` does."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is no file; fine-tuning reads a JSONL file of {FORMS}")
    found: list[tuple[int, dict[str, Any], list[SFTExample | Conversation]]] = []
    for where, record in json_rows(path):
        try:
            found.append((len(found) + 1, record, examples_of(record, reading)))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    if not found:
        raise DataError(f"{path} has no example")
    return found


def examples_of(record: Any, reading: Reading | None = None) -> list[SFTExample | Conversation]:
    """The examples that one record stands for.

    A conversation gives one, in which the turns of the assistant that `reading` says are learned. A prompt may be text,
    which the model then continues as it is, or messages; an answer may be text or a list of one message of the
    assistant.

    Raises:
        DataError: the record has another form.
    """
    reading = reading or Reading()
    if not isinstance(record, Mapping):
        raise DataError(f"{type(record).__name__} is no example, allowed: {FORMS}")
    if "messages" in record:
        return [_conversation(record["messages"], "messages", reading)]
    if "conversations" in record:
        return [_conversation(_shared(record["conversations"]), "conversations", reading)]
    if "instruction" in record and "output" in record:
        parts = [_text(record[name], name) for name in ("instruction", "input") if record.get(name)]
        asked = [{"role": "user", "content": "\n\n".join(parts)}]
        return [_answered(asked, _text(record["output"], "output"), reading)]
    answer = next((name for name in ("response", "completion") if name in record), None)
    if "prompt" not in record or answer is None:
        raise DataError(f"the record has {', '.join(map(str, record)) or 'nothing'}, allowed: {FORMS}")
    prompt, said = record["prompt"], record[answer]
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], Mapping):
        said = said[0].get("content")
    if isinstance(prompt, str):
        return [SFTExample(prompt, _text(said, answer))]
    return [_answered(_messages(prompt, "prompt"), _text(said, answer), reading)]


def _answered(prompt: list[Message], response: str, reading: Reading) -> Conversation:
    messages = _with_system([*prompt, {"role": "assistant", "content": response}], reading.system)
    return Conversation(messages, (len(messages) - 1,))


def _conversation(value: Any, name: str, reading: Reading) -> Conversation:
    given = _messages(value, name)
    weights = [_weight(message) for message in value]
    shift = len(messages := _with_system(given, reading.system)) - len(given)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > 0]
    counting = tuple(i for i in turns if weights[i - shift])
    learned = counting[-1:] if reading.learn == "last" else counting
    if not turns:
        roles = ", ".join(sorted({message["role"] for message in messages}))
        raise DataError(f"the conversation has no turn of the assistant after the first message; it has {roles}")
    if not learned:
        raise DataError("every turn of the assistant has weight 0, at least one must have 1")
    return Conversation(messages, learned)


def _with_system(messages: list[Message], system: str) -> list[Message]:
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _weight(message: Mapping[str, Any]) -> bool:
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"the weight of a message is {weight!r}, allowed: 0 or 1")
    return bool(weight)


def _shared(value: Any) -> Any:
    """ShareGPT's turns as messages; what is not of that form is left for `_messages` to refuse."""
    if not isinstance(value, list) or not all(isinstance(m, Mapping) and {"from", "value"} <= m.keys() for m in value):
        return value
    return [{"role": SPEAKERS.get(str(m["from"]), str(m["from"])), "content": m["value"]} for m in value]


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} must be a list of messages that is not empty")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f'{name} must hold {{"role", "content"}} objects')
        _text(message["content"], "content")
    return [{"role": str(m["role"]), "content": m["content"]} for m in value]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{name} must be a text that is not empty")
    return value
