"""Sentence splitting by Punkt (Kiss & Strunk 2006, Computational Linguistics 32:485), whose count of sentences the
benchmark judges by.

Every full stop, question mark and exclamation mark is a candidate. The word before it and the token after it decide,
with a `SentenceModel` of abbreviations, collocations, frequent sentence starters and the cases in which words were
seen. With the same model the splits equal those of NLTK 3.10's `PunktSentenceTokenizer`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

# How a word type was seen: first letter upper or lower case, at the start of a sentence, inside, or unknown.
START_UPPER, INSIDE_UPPER, UNKNOWN_UPPER, START_LOWER, INSIDE_LOWER, UNKNOWN_LOWER = (1 << bit for bit in range(1, 7))
ANY_UPPER = START_UPPER | INSIDE_UPPER | UNKNOWN_UPPER
ANY_LOWER = START_LOWER | INSIDE_LOWER | UNKNOWN_LOWER

ENDS = (".", "?", "!")
NOT_A_START = (*";:,", *ENDS)
NUMBER = "##number##"
_CLOSING = "‘’“”«»"
_BREAKER = rf"[)\";}}\]*:@'({{\[{_CLOSING}?!]"
_RUN = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_WORD_END = rf"(?:\s|$|{_BREAKER}|{_RUN})"
_TOKEN = re.compile(rf"{_RUN}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?={_WORD_END}|,{_WORD_END})|\S")
_CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_BREAKER}|\s+(?P<next>\S+)))")
_REALIGN = re.compile(rf"[\"')\]}}{_CLOSING}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_NUMERIC = re.compile(r"^-?[.,]?\d[\d,.-]*\.?$")
_INITIAL = re.compile(r"[^\W\d]\.$")


@dataclass(frozen=True)
class SentenceModel:
    """What Punkt knows of a language. All words in lower case, abbreviations without their final full stop."""

    name: str
    """Part of a log's identity: two models can count differently."""
    abbreviations: frozenset[str] = frozenset()
    starters: frozenset[str] = frozenset()
    """Words that often begin a sentence."""
    collocations: frozenset[tuple[str, str]] = frozenset()
    """(word before the stop, word after it) that belong together."""
    cases: Mapping[str, int] = field(default_factory=dict, repr=False)
    """Word type to the union of the flags above."""


class _Token:
    """A word with its punctuation, and what the two passes decide about it."""

    def __init__(self, text: str, model: SentenceModel) -> None:
        self.text = text
        self.type = _NUMERIC.sub(NUMBER, text.lower())
        self.breaks = self.shortened = False
        if text in ENDS:
            self.breaks = True
        elif re.match(r"\.\.+$", text):
            self.shortened = True
        elif text.endswith(".") and not text.endswith(".."):
            word = text[:-1].lower()
            self.shortened = word in model.abbreviations or word.split("-")[-1] in model.abbreviations
            self.breaks = not self.shortened

    @property
    def stem(self) -> str:
        """The type without its final full stop."""
        return self.type[:-1] if len(self.type) > 1 and self.type.endswith(".") else self.type

    @property
    def as_next(self) -> str:
        """The type as it looks to the token before: an abbreviation keeps its full stop."""
        return self.stem if self.breaks else self.type


def _starts_sentence(token: _Token, model: SentenceModel) -> bool | None:
    """Whether `token` begins a sentence by the cases it was seen in; None: no evidence."""
    if token.text in NOT_A_START:
        return False
    seen, first = model.cases.get(token.as_next, 0), token.text[0]
    if first.isupper() and seen & ANY_LOWER and not seen & INSIDE_UPPER:
        return True
    if first.islower() and (seen & ANY_UPPER or not seen & START_LOWER):
        return False
    return None


def _revise(token: _Token, following: _Token, model: SentenceModel) -> None:
    """Second pass: decide again about a token with a final full stop, now that the next one is known."""
    if not token.text.endswith("."):
        return
    if (token.stem, following.as_next) in model.collocations:
        token.breaks = False
        return
    initial = _INITIAL.match(token.text) is not None
    starts = _starts_sentence(following, model)
    upper = following.text[0].isupper()
    if token.shortened and not initial and (starts or (upper and following.as_next in model.starters)):
        token.breaks = True
        return
    if initial or token.stem == NUMBER:
        never_lower = not model.cases.get(following.as_next, 0) & ANY_LOWER
        # "J. Bach": a name is never seen in lower case.
        if starts is False or (starts is None and initial and upper and never_lower):
            token.breaks = False


def _has_break(context: str, model: SentenceModel) -> bool:
    """Whether a token before the last of `context` ends a sentence."""
    tokens = [_Token(text, model) for line in context.split("\n") for text in _TOKEN.findall(line)]
    for token, following in pairwise(tokens):
        _revise(token, following, model)
        if token.breaks:
            return True
    return False


def _candidates(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each possible end with its context: the word before, the end, what follows. Of "!!!" only the last counts."""
    held: re.Match[str] | None = None
    start = end = 0
    for match in _CANDIDATE.finditer(text):
        between = text[end : match.start()]
        blank = max(between.rfind(space) for space in string.whitespace)
        # A blank at the very beginning does not count, which is how the reference behaves.
        begin = end + blank + 1 if blank > 0 else start
        if held is not None and end <= begin:
            yield held, text[start:end] + held.group() + held["after"]
        held, start, end = match, begin, match.start()
    if held is not None:
        yield held, text[start:end] + held.group() + held["after"]


def _spans(text: str, model: SentenceModel) -> Iterator[tuple[int, int]]:
    last = 0
    for match, context in _candidates(text):
        if _has_break(context, model):
            yield last, match.end()
            last = match.start("next") if match["next"] else match.end()
    yield last, len(text.rstrip())


def _with_next(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int] | None]]:
    listed = list(spans)
    yield from zip(listed, [*listed[1:], None], strict=True)


def split_sentences(text: str, model: SentenceModel) -> list[str]:
    """The sentences of `text`; closing quotes and brackets stay with the sentence that they close."""
    found: list[str] = []
    moved = 0
    for (start, end), following in _with_next(_spans(text, model)):
        start += moved
        moved = 0
        closing = _REALIGN.match(text[following[0] : following[1]]) if following else None
        if closing and following:
            found.append(text[start : following[0] + len(closing.group().rstrip())])
            moved = closing.end()
        elif text[start:end]:
            found.append(text[start:end])
    return found
