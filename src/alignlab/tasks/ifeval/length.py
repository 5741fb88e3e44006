"""Checks of a response's length: sentences, words, paragraphs, and the first word of one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alignlab.tasks.ifeval.instruction import COUNT, POSITION, RELATION, TEXT, Instruction, holds
from alignlab.tasks.ifeval.sentences import SentenceModel, split_sentences
from alignlab.tasks.ifeval.words import count_words


def _number_sentences(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return holds(len(split_sentences(response, model)), given["relation"], given["num_sentences"])


def _number_words(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return holds(count_words(response), given["relation"], given["num_words"])


def _number_paragraphs(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    # Dividers may lead and end the response, but two of them must have something between them.
    blank = [not paragraph.strip() for paragraph in re.split(r"\s?\*\*\*\s?", response)]
    if any(blank[1:-1]):
        return False
    return len(blank) - sum(blank) == given["num_paragraphs"]


def _nth_paragraph_first_word(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    paragraphs = response.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    position = given["nth_paragraph"]
    if count != given["num_paragraphs"] or position > count:
        return False
    # Blank paragraphs do not count above, yet they shift the position here.
    words = paragraphs[position - 1].split()
    if not words:
        return False
    opening = words[0].lstrip("'").lstrip('"')
    found = re.split(r"[.,?!'\"]", opening, maxsplit=1)[0]
    # Letter by letter, as the reference does: a final sigma stays an ordinary one.
    return "".join(map(str.lower, found)) == given["first_word"].lower()


LENGTH = [
    Instruction(
        "length_constraints:number_sentences", {"num_sentences": COUNT, "relation": RELATION}, _number_sentences
    ),
    Instruction("length_constraints:number_words", {"num_words": COUNT, "relation": RELATION}, _number_words),
    Instruction("length_constraints:number_paragraphs", {"num_paragraphs": COUNT}, _number_paragraphs),
    Instruction(
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": POSITION, "nth_paragraph": POSITION, "first_word": TEXT},
        _nth_paragraph_first_word,
    ),
]
