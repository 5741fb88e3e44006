r"""The final answer in a written-out one: after `####`, inside `\boxed{}`, after "the answer is", the last number.

Every function takes the text and whether it was `cut` off at the token limit. Of a text that was cut, an answer counts
only if something after it shows that it was complete: `#### 4` may have been on its way to 42, and the last number of
half a derivation is nobody's answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST_DIGITS = 1000
"""A longer run of digits is no number that anybody asked for."""
SENTENCE = 300
"""Characters after "the answer is" in which it is looked for."""
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    r"(?:(?<![\w)%])(?P<sign>[-−]))?[$€£]?(?P<inner>(?<=[$€£])[-−])?(?<![\w.])"
    rf"(?P<digits>{DIGITS})(?P<power>[eE][+-]?\d{{1,3}}(?!\w))?(?P<over>/(?:\d+)(?![\d./]))?"
)
"""A minus right after a letter, a digit or a bracket is an operator, not a sign."""
MARKER = re.compile(r"####\s*(?:answer:?\s*)?(?:\*\*|\\\(|\$)*\s*", re.IGNORECASE)
STATED = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*:|\s*=)[:\s]*", re.IGNORECASE)
LETTER = re.compile(
    r"(?:(?:[Aa]nswer|ANSWER)(?:\s+is|\s*:)|[Cc]orrect\s+(?:option|choice|letter)\s+is)\s*:?\s*(?:option\s+|choice\s+)?"
    r"(?P<before>(?:\*\*|\\boxed\{|\\text\{|\$|\\\(|\()*)\s*(?P<letter>[A-Z])(?![A-Za-z'’])(?P<after>[).\]}*$\\,:;!\s]*)",
)
PRONOUN = re.compile(r"\s+(?!because|since|as\b|for\b|and\b|but\b|which|with\b)[a-z]")
LONE = re.compile(r"[\s(*\[{$]*(?:\\boxed\{)?(?:\\text\{)?\(?(?P<letter>[A-Z])[).\]}*$:]*(?:\s.*)?", re.DOTALL)


def number_value(text: str) -> Fraction | None:
    """The exact value of a numeral with sign, commas, currency, exponent or `a/b`; None for anything else."""
    found = NUMBER.fullmatch(text.strip().rstrip(".%"))
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    digits, over = found["digits"].replace(",", ""), (found["over"] or "/")[1:]
    if len(digits) + len(over) > MOST_DIGITS:
        return None
    value = Fraction(digits + (found["power"] or ""))
    if over:
        below = int(over)
        if below == 0:
            return None
        value /= below
    return -value if (found["sign"] or found["inner"]) else value


def _finished(text: str, end: int, cut: bool) -> bool:
    """Whether what ends at `end` is known to be complete: the text goes on after white space, or was not cut."""
    return not cut or any(sign.isspace() for sign in text[end:])


def marked_number(text: str, *, cut: bool = False) -> str | None:
    """The number after the last `####` that is followed by one (Cobbe et al. 2021)."""
    for marker in reversed(list(MARKER.finditer(text))):
        found = NUMBER.match(text, marker.end())
        if found:
            return found.group() if _finished(text, found.end(), cut) else None
    return None


def bare_number(text: str, *, cut: bool = False) -> str | None:
    """The number that is the whole text, white space and a full stop aside; of a text that was cut there is none."""
    alone = text.strip().removesuffix(".")
    return alone if not cut and NUMBER.fullmatch(alone) else None


def final_number(text: str, *, cut: bool = False) -> str | None:
    """The number after the last `####`, in the last `\\boxed{}`, after the last "answer is", or else the last of all.

    A text that was cut has no last number.
    """
    marked = marked_number(text, cut=cut)
    if marked is not None:
        return marked
    if MARKER.search(text) and cut:
        return None
    boxed = last_boxed(text)
    if boxed is not None:
        inside = list(NUMBER.finditer(boxed))
        return inside[-1].group() if inside else None
    for phrase in reversed(list(STATED.finditer(text))):
        sentence = re.split(r"\n|[.!?](?:\s|$)", text[phrase.end() : phrase.end() + SENTENCE], maxsplit=1)[0]
        stated = list(NUMBER.finditer(sentence))
        if stated:
            # "x = 3 + 4 = 7" states 7; "18 dollars for 2 days" states 18.
            one = stated[-1] if "=" in sentence else stated[0]
            return one.group() if _finished(text, phrase.end() + one.end(), cut) else None
    found = list(NUMBER.finditer(text))
    return found[-1].group() if found and not cut else None


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{}` or `\\fbox{}` holds, inner braces matched; None without one that is closed."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("d" if text.startswith(r"\boxed", start) else "x", 1)[1]
    if not rest.lstrip().startswith("{"):
        bare = re.match(r"\s+([^\s$]+)(?=[\s$])", rest)
        return bare.group(1) if bare else None
    depth, opened = 0, rest.index("{")
    place = opened
    while place < len(rest):
        if rest[place] == "\\":
            place += 2  # an escaped brace opens nothing
            continue
        depth += (rest[place] == "{") - (rest[place] == "}")
        if depth == 0:
            return rest[opened + 1 : place].strip()
        place += 1
    return None


def final_formula(text: str, *, cut: bool = False) -> str | None:
    """What the last `\\boxed{}` holds, or else what follows the last "answer is": the formula between dollar signs, or
    the rest of the sentence."""
    if r"\boxed" in text or r"\fbox" in text:
        return last_boxed(text)
    phrases = list(STATED.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :]
    dollars = re.match(r"\s*(?:\*\*)?(?:\$\$?(?P<a>[^$]+)\$|\\\((?P<b>.+?)\\\)|\\\[(?P<c>.+?)\\\])", rest, re.DOTALL)
    if dollars:
        return (dollars["a"] or dollars["b"] or dollars["c"]).strip()
    found = re.match(r"\s*(?P<said>.+?)(?P<end>\.?\*\*|\.(?=\s|$)|\n|$)", rest)
    if not found or (cut and not _finished(rest, found.end("said"), cut)):
        return None
    return found["said"].strip().strip("*").strip() or None


def chosen_letter(text: str, *, cut: bool = False, lone: bool = False) -> str | None:
    """The capital letter after the last "answer is" (MMLU-Pro, Wang et al. 2024); with `lone`, also an answer that
    begins with nothing but a letter (`C`, `(C) because ...`).

    The letters I and A are also words: neither is taken out of running text.
    """
    text = re.sub(r"\s+", " ", text)
    found = [one for one in LETTER.finditer(text) if not _is_word(one, text)]
    if found:
        last = found[-1]
        closed = any(sign in ")]}.*" for sign in last["after"])
        return last["letter"] if closed or _finished(text, last.end("letter"), cut) else None
    if not lone:
        return None
    alone = LONE.fullmatch(text)
    if alone is None or (cut and not _finished(text, alone.end("letter"), cut)):
        return None
    bare = alone.end("letter") == len(text.rstrip()) or not text[alone.end("letter")].isspace()
    return alone["letter"] if bare else None


def _is_word(found: re.Match[str], text: str) -> bool:
    """Whether the letter is the pronoun or the article: `the answer is I think B`."""
    bare = found["letter"] in "AI" and not found["before"]
    return bare and PRONOUN.match(text, found.end("letter")) is not None
