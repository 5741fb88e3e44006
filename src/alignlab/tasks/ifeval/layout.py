"""Checks of a response's form: bullets, sections, JSON, title, case, quotation marks, commas, its beginning and end.

The benchmark's peculiarities are kept, since its published figures rest on them; each is named where it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from alignlab.tasks.ifeval.instruction import COUNT, PATTERN, RELATION, TEXT, Instruction, holds
from alignlab.tasks.ifeval.language import is_language
from alignlab.tasks.ifeval.sentences import SentenceModel
from alignlab.tasks.ifeval.words import count_capital_words

CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _number_bullet_lists(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    # A line that begins with one asterisk, or with a hyphen: "---" is a bullet as well.
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    hyphens = re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(stars) + len(hyphens) == given["num_bullets"]


def _constrained_response(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return any(choice in response for choice in CHOICES)


def _number_highlighted_sections(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    # What lies between two pairs of asterisks can count twice: once here, and once more if it is not blank.
    single = [text for text in re.findall(r"\*[^\n\*]*\*", response) if text.strip("*").strip()]
    double = [text for text in re.findall(r"\*\*[^\n\*]*\*\*", response) if text[2:-2].strip()]
    return len(single) + len(double) >= given["num_highlights"]


def _multiple_sections(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    parts = re.split(rf"\s?{given['section_spliter'].strip()}\s?\d+\s?", response)
    return len(parts) - 1 >= given["num_sections"]


def _json_format(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    text = response.strip()
    # In this order, each at most once.
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", response))


def _two_responses(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    parts = [part.strip() for part in response.split("******")]
    if not all(parts[1:-1]):
        return False
    answers = [part for part in parts if part]
    return len(answers) == 2 and answers[0] != answers[1]


def _repeat_prompt(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return response.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _end_checker(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return response.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quotation(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_word_frequency(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return holds(count_capital_words(response, model), given["capital_relation"], given["capital_frequency"])


def _english_capital(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return response.isupper() and is_language(response, "en")


def _english_lowercase(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return response.islower() and is_language(response, "en")


def _no_comma(response: str, given: Mapping[str, Any], model: SentenceModel) -> bool:
    return "," not in response


LAYOUT = [
    Instruction("detectable_format:number_bullet_lists", {"num_bullets": COUNT}, _number_bullet_lists),
    Instruction("detectable_format:constrained_response", {}, _constrained_response),
    Instruction(
        "detectable_format:number_highlighted_sections", {"num_highlights": COUNT}, _number_highlighted_sections
    ),
    Instruction(
        "detectable_format:multiple_sections", {"section_spliter": PATTERN, "num_sections": COUNT}, _multiple_sections
    ),
    Instruction("detectable_format:json_format", {}, _json_format),
    Instruction("detectable_format:title", {}, _title),
    Instruction("combination:two_responses", {}, _two_responses),
    Instruction("combination:repeat_prompt", {"prompt_to_repeat": TEXT}, _repeat_prompt),
    Instruction("startend:end_checker", {"end_phrase": TEXT}, _end_checker),
    Instruction("startend:quotation", {}, _quotation),
    Instruction(
        "change_case:capital_word_frequency",
        {"capital_frequency": COUNT, "capital_relation": RELATION},
        _capital_word_frequency,
    ),
    Instruction("change_case:english_capital", {}, _english_capital, needs_langdetect=True),
    Instruction("change_case:english_lowercase", {}, _english_lowercase, needs_langdetect=True),
    Instruction("punctuation:no_comma", {}, _no_comma),
]
