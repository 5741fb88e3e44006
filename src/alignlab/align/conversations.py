"""Conversations as training rows: every turn of the assistant, or some of them, learned in one row where that is exact.

A turn is learned from the tokens that generation would see before it and would have to produce: the chat template's
prompt up to the turn, then the text and the end of turn. Turns share a row where the template keeps earlier turns as
they were generated; a template that rewrites them (drops their reasoning, trims them) gets a row for each such turn.
A template with generation blocks says itself what the assistant generates, and is taken at its word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from alignlab.align.pairs import end_token
from alignlab.core.errors import DataError
from alignlab.data.packing import Example
from alignlab.lm.chat_mask import assistant_tokens
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Message


@dataclass(frozen=True)
class Conversation:
    """Messages, and which of them the model learns to say."""

    messages: list[Message]
    """System, user and assistant turns in order."""
    learned: tuple[int, ...]
    """Places of the assistant's turns to learn, rising; never the first message, which nothing comes before."""

    def __post_init__(self) -> None:
        well = list(self.learned) == sorted(set(self.learned)) and self.learned and self.learned[0] > 0
        if not well or self.learned[-1] >= len(self.messages):
            raise DataError(f"learned is {self.learned}, allowed: rising places of turns after the first message")
        for place in self.learned:
            if self.messages[place]["role"] != "assistant":
                raise DataError(f"message {place} is of the {self.messages[place]['role']}, not of the assistant")

    @property
    def prompt(self) -> list[Message]:
        """What comes before the last turn that is learned."""
        return self.messages[: self.learned[-1]]

    @property
    def response(self) -> str:
        """The last turn that is learned."""
        return self.messages[self.learned[-1]]["content"]


@dataclass(frozen=True)
class Laid:
    """A conversation as rows of at most the given length, and what that took."""

    rows: list[Example]
    windows: int
    """Parts the conversation was divided into because it is longer than a row; 1 where it is not."""
    cut: int
    """Rows of a single exchange that is longer than a row: it lost the start of its prompt, or its answer's end."""


def lay_conversation(tokenizer: Tokenizer, conversation: Conversation, length: int) -> Laid:
    """The rows of a conversation; each learned turn is in exactly one of them.

    One longer than a row is divided between exchanges, never inside of a turn: each part begins with the system
    message, then as many of the exchanges before as fill half a row (they are read there and not learned again), then
    those that are learned; what room is left takes more of those before. Raises ModelError where the chat template
    refuses the conversation, and DataError without an end token.
    """
    parts = divide(conversation, length, lambda messages: len(_prompt_and_answer(tokenizer, messages)[0]))
    rows, cut = [], 0
    for part in parts:
        for row in encode_turns(tokenizer, part):
            cut += len(row.tokens) > length
            rows.append(shorten(row, length))
    return Laid(rows, len(parts), cut)


def encode_turns(tokenizer: Tokenizer, conversation: Conversation) -> list[Example]:
    """As few rows as hold every learned turn after exactly the prompt that generation would see, whatever their length.

    Nothing that follows the last learned token is in a row.
    """
    messages = conversation.messages[: conversation.learned[-1] + 1]
    marked = assistant_tokens(tokenizer, messages)
    row = None if marked is None else _only(marked, messages, conversation.learned)
    return _by_prompts(tokenizer, messages, conversation.learned) if row is None else [row]


def shorten(row: Example, length: int) -> Example:
    """The row without the start of what comes before its last learned turn, or, where that turn alone is too long,
    without the turn's end."""
    if len(row.tokens) <= length:
        return row
    last = len(row.loss_mask) - next(i for i, counts in enumerate(reversed(row.loss_mask)) if not counts)
    end = min(len(row.tokens), last + length - 1)
    return Example(row.tokens[end - length : end], row.loss_mask[end - length : end])


def divide(conversation: Conversation, length: int, size: Callable[[list[Message]], int]) -> list[Conversation]:
    """The conversation in parts of whole exchanges, each of at most `length` by `size` unless it is of one exchange.

    `size(messages)` is of messages that end with the assistant's. See `lay_conversation` for what a part holds.
    """
    wanted = conversation.learned
    messages = conversation.messages[: wanted[-1] + 1]
    if size(messages) <= length:
        return [conversation]
    head, exchanges = _exchanges(messages)
    todo = [i for i, places in enumerate(exchanges) if set(places) & set(wanted)]

    def part(first: int, last: int) -> list[int]:
        return [*range(head), *(place for exchange in exchanges[first : last + 1] for place in exchange)]

    def fits(first: int, last: int, room: int) -> bool:
        return first >= 0 and size([messages[i] for i in part(first, last)]) <= room

    parts = []
    while todo:
        first = last = todo[0]
        while fits(first - 1, todo[0] - 1, length // 2) and fits(first - 1, last, length):
            first -= 1
        learned = [todo.pop(0)]
        while todo and fits(first, todo[0], length):
            last = todo.pop(0)
            learned.append(last)
        while fits(first - 1, last, length):
            first -= 1
        inside = part(first, last)
        new = {place for i in learned for place in exchanges[i]} & set(wanted)
        parts.append(Conversation([messages[i] for i in inside], tuple(at for at, i in enumerate(inside) if i in new)))
    return parts


def _exchanges(messages: Sequence[Message]) -> tuple[int, list[list[int]]]:
    """How many system messages lead, and the places of each exchange: other turns and the assistant's after them."""
    head = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    exchanges: list[list[int]] = []
    for place in range(head, len(messages)):
        begins = place == head or (
            messages[place]["role"] != "assistant" and messages[place - 1]["role"] == "assistant"
        )
        if begins:
            exchanges.append([])
        exchanges[-1].append(place)
    return head, exchanges


def _prompt_and_answer(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], int]:
    """Tokens up to and with the last message, which is the assistant's, and how many of them are its prompt."""
    prompt = tokenizer.encode_prompt(messages[:-1])
    return [*prompt, *tokenizer.encode(messages[-1]["content"]), end_token(tokenizer, messages)], len(prompt)


def _by_prompts(tokenizer: Tokenizer, messages: list[Message], learned: Sequence[int]) -> list[Example]:
    """A row for the last turn; earlier ones are learned in it if it holds them exactly, else in rows of their own."""
    encoded = {place: _prompt_and_answer(tokenizer, messages[: place + 1]) for place in learned}
    rows, left = [], list(learned)
    while left:
        tokens, start = encoded[left.pop()]
        mask = [False] * start + [True] * (len(tokens) - start)
        apart = []
        for place in left:
            own, begin = encoded[place]
            if tokens[: len(own)] == own:
                mask[begin : len(own)] = [True] * (len(own) - begin)
            else:
                apart.append(place)
        rows.append(Example(tokens, mask))
        left = apart
    return rows[::-1]


def _only(marked: tuple[list[int], list[bool]], messages: Sequence[Message], learned: Sequence[int]) -> Example | None:
    """The row in which the template's blocks of the learned turns count; None where it is unclear which those are."""
    tokens, mask = marked
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if list(learned) != turns:
        runs = [(counts, len(list(run))) for counts, run in groupby(mask)]
        if sum(counts for counts, _ in runs) != len(turns):
            return None
        turn, mask = iter(turns), []
        for counts, n in runs:
            mask += [bool(counts and next(turn) in learned)] * n
    if not any(mask[1:]):
        return None
    end = len(mask) - mask[::-1].index(True)
    return Example(tokens[:end], mask[:end])
