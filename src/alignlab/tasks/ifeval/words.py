r"""Counting words: by ``\w+``, and in the Penn Treebank's way as NLTK's `word_tokenize` does it.

The second divides contractions and possessives ("NASA'S" is two tokens) and decides how many words are written in
capitals.
"""

from __future__ import annotations

import re

from alignlab.tasks.ifeval.sentences import SentenceModel, split_sentences

_WORD = re.compile(r"\w+")
_FUSED = (("can", "not"), ("d", "'ye"), ("gim", "me"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("more", "'n"))
# Applied in this order; each makes room around something that is a token of its own.
_BEFORE = [
    (re.compile(pattern), room)
    for pattern, room in (
        # quotation marks that open
        (r"([«“‘„]|`+)", r" \1 "),
        (r"^\"", "``"),
        (r"(``)", r" \1 "),
        (r"([ (\[{<])(\"|'{2})", r"\1 `` "),
        (r"(?i)(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"\1 "),
        # punctuation; the two patterns that end in $ are the sentence's own full stop
        (r"([^.])(\.)([\])}>\"' »”’]*+)\s*$", r"\1 \2 \3 "),
        (r"([:,])([^\d])", r" \1 \2"),
        (r"([:,])$", r" \1 "),
        (r"\.{2,}", r" \g<0> "),
        (r"[;@#$%&]", r" \g<0> "),
        (r"[\u2012-\u2015]", r" \g<0> "),
        (r"([^.])(\.)([\])}>\"']*)\s*$", r"\1 \2\3 "),
        (r"[?!]", r" \g<0> "),
        (r"([^'])' ", r"\1 ' "),
        (r"\*", r" \g<0> "),
        (r"[\]\[(){}<>]", r" \g<0> "),
        (r"--", r" \g<0> "),
    )
]
_AFTER = [
    (re.compile(pattern), room)
    for pattern, room in (
        # quotation marks that close, possessives and contractions
        (r"([»”’])", r" \1 "),
        (r"''", " '' "),
        (r"\"", " '' "),
        (r"\s+", " "),
        (r"([^' ])('[sSmMdD]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
        *((rf"(?i)\b({first})({second})\b", r" \1 \2 ") for first, second in _FUSED),
        (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
        (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
    )
]


def count_words(text: str) -> int:
    r"""Runs of letters, digits and underscores: "don't" and "well-known" are two words each."""
    return len(_WORD.findall(text))


def treebank_tokens(sentence: str) -> list[str]:
    """The tokens of one sentence, equal to NLTK 3.10's `NLTKWordTokenizer`."""
    for pattern, room in _BEFORE:
        sentence = pattern.sub(room, sentence)
    sentence = f" {sentence} "
    for pattern, room in _AFTER:
        sentence = pattern.sub(room, sentence)
    return sentence.split()


def count_capital_words(text: str, model: SentenceModel) -> int:
    """Tokens without a lower-case letter and with at least one capital ("I" and "A1" count, "7" does not)."""
    return sum(token.isupper() for sentence in split_sentences(text, model) for token in treebank_tokens(sentence))
