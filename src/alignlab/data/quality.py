"""Small judgements about training texts. Each gives the reason why a text is bad, or nothing where it is not."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import lru_cache

import numpy as np

from alignlab.data.dedup import shingles

LOOP_WORDS = 4
LOOP_LEAST = 20
COPY_WORDS = 5
COPY_LEAST = 10
ENDING_LEAST = 20
_LETTER_RUN = re.compile(r"([^\W\d_])\1{11,}")
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]|â€[\u0080-\u00bf™œ˜”“¦]|ï»¿")
_ADDRESS = re.compile(r"\S*(://|www\.|\w\.\w+/)\S*$")
_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)


def bad_length(text: str, least: int, most: int) -> str:
    """Fewer than `least` or more than `most` characters, without the blanks around them."""
    n = len(text.strip())
    if n < least:
        return f"{n} characters, fewer than {least}"
    return f"{n} characters, more than {most}" if n > most else ""


def looping(text: str, limit: float) -> str:
    """A share of four-word runs above `limit` that an earlier part of the text has already (seq-rep-4 of Welleck et al.
    2020; texts of at least 20 words), or one letter twelve times in a row.
    """
    found = _LETTER_RUN.search(text)
    if found:
        return f"{found.group(1)!r} {len(found.group())} times in a row"
    runs = shingles(text, LOOP_WORDS)
    if len(runs) <= LOOP_LEAST - LOOP_WORDS:
        return ""
    share = 1 - len(np.unique(runs)) / len(runs)
    return (
        f"{share:.0%} of its runs of {LOOP_WORDS} words repeat earlier ones, above {limit:.0%}" if share > limit else ""
    )


def damaged(text: str) -> str:
    """Characters that decoding lost, control or private characters, or UTF-8 that was read as Latin-1."""
    for character in set(text):
        if character == "\ufffd":
            return "a replacement character, which stands for what a decoder could not read"
        if unicodedata.category(character) in ("Cc", "Co", "Cs") and character not in "\n\r\t":
            return f"the character U+{ord(character):04X}, which is no text"
    found = _MOJIBAKE.search(text)
    return f"{found.group()!r}, which is UTF-8 read as Latin-1" if found else ""


def foreign(text: str, scripts: Collection[str], limit: float) -> str:
    """More than `limit` of the letters are of other scripts than `scripts` (`latin`, `cyrillic`, `cjk`, ...)."""
    letters = Counter(script for character in text if (script := _script(character)))
    others = Counter({script: n for script, n in letters.items() if script not in scripts})
    share = others.total() / letters.total() if letters else 0.0
    if share <= limit:
        return ""
    return f"{share:.0%} of its letters are not {' or '.join(sorted(scripts))} but {others.most_common(1)[0][0]}"


def unfinished(text: str) -> str:
    """A code block that is not closed, or, from 20 words on, an end inside of a sentence: in a letter or a comma.

    Shorter texts may well be a name or a phrase; numbers, brackets, quotes, signs and web addresses may end any text.
    """
    text = text.rstrip()
    if len(_FENCE.findall(text)) % 2:
        return "a code block that is not closed"
    if not text or len(text.split()) < ENDING_LEAST or _is_list_item(text) or _ADDRESS.search(text):
        return ""
    last = text[-1]
    stops = last in ",;:-–—(&/" or (last.isalpha() and unicodedata.category(last) != "Lo")
    return f"ends in the middle of a sentence: {text[-30:]!r}" if stops else ""


def copying(text: str, prompt: str, limit: float) -> str:
    """The text is the prompt, or more than `limit` of its five-word runs are the prompt's (from ten words on)."""
    own, asked = " ".join(text.split()).casefold(), " ".join(prompt.split()).casefold()
    if own and own == asked:
        return "the answer is the prompt"
    runs = shingles(text, COPY_WORDS)
    if len(runs) <= COPY_LEAST - COPY_WORDS:
        return ""
    share = float(np.isin(runs, shingles(prompt, COPY_WORDS)).mean())
    return f"{share:.0%} of the answer is in the prompt, above {limit:.0%}" if share > limit else ""


def _is_list_item(text: str) -> bool:
    """Whether the last line belongs to a list, a table, a heading or verse, which need no full stop."""
    lines = text.splitlines()
    return bool(re.match(r"\s*([-*+•|#>]|\d+[.)])", lines[-1])) or (len(lines) > 1 and len(lines[-1].split()) <= 8)


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """The script of a letter as its Unicode name begins, in lower case; empty for what is no letter."""
    return unicodedata.name(character, "").partition(" ")[0].lower() if character.isalpha() else ""
