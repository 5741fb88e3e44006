"""Which tokens of a conversation are the assistant's, as its chat template itself says.

A template may put what the assistant generates between `{% generation %}` and `{% endgeneration %}`; `transformers`
makes its `return_assistant_tokens_mask` of that, and `assistant_tokens` gives the same tokens and the same mask.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignlab.lm.chat_template import unused_mark
from alignlab.lm.template_worker import CLOSES, OPENS
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Message

_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def marks_assistant(template: str | None) -> bool:
    """Whether a chat template says which part of a conversation the assistant generates."""
    return template is not None and _BLOCK.search(template) is not None


def assistant_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]] | None:
    """Tokens of the whole conversation, and a mask that is True on those that hold text of a generation block.

    A token across a border counts. None where the template has no such blocks, or where the places of tokens cannot be
    told. `transformers` gives the same but for two cases: it takes control tokens spelled out inside a message for real
    ones, and where a block ends in a character of several tokens (an emoji) it leaves out all but the first of them.
    Raises ModelError as `Tokenizer.encode_prompt` does.
    """
    if not marks_assistant(tokenizer.chat_template):
        return None
    assert tokenizer.chat_template is not None
    masked, hidden, mark = tokenizer.hide_control(messages)
    texts = [tokenizer.chat_template, mark, *(text for message in masked for text in message.values())]
    opens = unused_mark(texts)
    closes = unused_mark([*texts, opens])
    rendered = tokenizer.render_chat(masked, generation_prompt=False, variables={OPENS: opens, CLOSES: closes})
    if not hidden:
        text, spans, _ = _spans(rendered, opens, closes, False)
        return _located(tokenizer, text, spans, tokenizer.encode(text, parse_special=True), literal=False)
    found: tuple[list[int], list[bool]] = ([], [])
    inside = False
    for i, piece in enumerate(re.split(f"({tokenizer.control_pattern().pattern})", rendered)):
        if i % 2:
            found[0].append(tokenizer.control[piece])
            found[1].append(inside)
            continue
        restored = re.sub(f"{mark}(\\d+){mark}", lambda match: hidden[int(match.group(1))], piece)
        text, spans, inside = _spans(restored, opens, closes, inside)
        part = _located(tokenizer, text, spans, tokenizer.encode_inner(text, first=i == 0), literal=True)
        if part is None:
            return None
        found[0].extend(part[0])
        found[1].extend(part[1])
    return found


def _spans(marked: str, opens: str, closes: str, inside: bool) -> tuple[str, list[tuple[int, int]], bool]:
    """The text without its marks, the (start, end) of what stood between them, and whether its end is inside."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    place = 0
    for piece in re.split(f"([{opens}{closes}])", marked):
        if piece in (opens, closes):
            inside = piece == opens
        elif piece:
            if inside:
                spans.append((place, place + len(piece)))
            parts.append(piece)
            place += len(piece)
    return "".join(parts), spans, inside


def _located(
    tokenizer: Tokenizer, text: str, spans: list[tuple[int, int]], ids: list[int], *, literal: bool
) -> tuple[list[int], list[bool]] | None:
    """The ids with which of them hold text of a span; None where their places are not known."""
    placed = tokenizer.offsets(text, literal=literal)
    if placed[0] != ids:
        return None
    mask = [False] * len(ids)
    at = 0
    for start, end in spans:
        while at and placed[1][at - 1][1] > start:
            at -= 1  # a token that the span before ended in, or bytes of one character
        while at < len(ids) and placed[1][at][0] < end:
            mask[at] |= placed[1][at][1] > start
            at += 1
    return ids, mask
