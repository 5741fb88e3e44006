"""Checks of what a response contains: keywords, letters, its language, placeholders, a postscript.

The benchmark's peculiarities are kept, since its published figures rest on them; each is named where it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alignlab.tasks.ifeval.instruction import (
    CHARACTER,
    COUNT,
    LANGUAGE,
    PATTERN,
    PATTERNS,
    RELATION,
    Instruction,
    holds,
)
from alignlab.tasks.ifeval.language import is_language
from alignlab.tasks.ifeval.sentences import SentenceModel


def _existence(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    # Anywhere, inside longer words too, and as a regular expression.
    return all(re.search(word, response, re.IGNORECASE) for word in given["keywords"])


def _frequency(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    count = len(re.findall(given["keyword"].strip(), response, re.IGNORECASE))
    return holds(count, given["relation"], given["frequency"])


def _forbidden_words(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    # Whole words, unlike the two above.
    return not any(re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in given["forbidden_words"])


def _letter_frequency(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    letter = given["letter"].lower()
    count = sum(character == letter for character in response.lower())
    return holds(count, given["let_relation"], given["let_frequency"])


def _response_language(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return is_language(response, given["language"])


def _number_placeholders(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= given["num_placeholders"]


def _postscript(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    # Anywhere in a line, the end of the response included; other markers are regular expressions.
    marker = given["postscript_marker"].strip()
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(patterns.get(marker, marker.lower()), response.lower(), re.MULTILINE) is not None


CONTENT = [
    Instruction("keywords:existence", {"keywords": PATTERNS}, _existence),
    Instruction("keywords:frequency", {"keyword": PATTERN, "frequency": COUNT, "relation": RELATION}, _frequency),
    Instruction("keywords:forbidden_words", {"forbidden_words": PATTERNS}, _forbidden_words),
    Instruction(
        "keywords:letter_frequency",
        {"letter": CHARACTER, "let_frequency": COUNT, "let_relation": RELATION},
        _letter_frequency,
    ),
    Instruction("language:response_language", {"language": LANGUAGE}, _response_language, needs_langdetect=True),
    Instruction("detectable_content:number_placeholders", {"num_placeholders": COUNT}, _number_placeholders),
    Instruction("detectable_content:postscript", {"postscript_marker": PATTERN}, _postscript),
]
