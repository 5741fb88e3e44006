"""Where a text ends: stop strings in tokens as they come, and characters that wait for the next token."""

from __future__ import annotations

from collections.abc import Sequence

from alignlab.lm.tokenizer import Tokenizer


def has_stop(tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether a stop string stands in the last few tokens."""
    if not stops:
        return False
    # A token may carry only a part of a character, so the window is in tokens: one per byte is the worst case.
    tail = tokenizer.decode(tokens[-4 * max(map(len, stops)) - 4 :])
    return any(stop in tail for stop in stops)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    places = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may still change meaning: half a character, or half a stop string."""
    whole = text.rstrip("�")  # each byte of an unfinished character may show as one
    unfinished = len(text) - len(whole)
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for size in range(min(longest, len(whole)), 0, -1):
        if any(stop.startswith(whole[-size:]) for stop in stops):
            return size + unfinished
    return unfinished
