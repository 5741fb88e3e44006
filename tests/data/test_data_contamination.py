"""Runs of words that training texts share with an evaluation, against a naive search."""

from __future__ import annotations

import re

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.data.contamination import Evaluated, Overlap


def naive(text: str, items: list[str], words: int, least: int) -> bool:
    def split(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    own = split(text)
    for item in items:
        theirs = split(item)
        size = min(words, len(theirs))
        if len(theirs) < least:
            continue
        runs = {tuple(theirs[i : i + size]) for i in range(len(theirs) - size + 1)}
        if any(tuple(own[i : i + size]) in runs for i in range(len(own) - size + 1)):
            return True
    return False


def test_finds_what_a_naive_search_finds() -> None:
    generator = np.random.default_rng(0)

    def sentence(low: int, high: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(0, 2, size=generator.integers(low, high)))

    items = [sentence(3, 14) for _ in range(5)]
    evaluated = Evaluated(items, words=9, least=6)
    texts = [sentence(5, 40) for _ in range(400)]
    found = [evaluated.find(text) for text in texts]
    expected = [naive(text, items, 9, 6) for text in texts]
    assert [one is not None for one in found] == expected
    assert 10 < sum(expected) < 360
    for text, one in zip(texts, found, strict=True):
        assert one is None or naive(text, [items[one.text]], 9, 6)
    assert evaluated.ignored == sum(len(item.split()) < 6 for item in items)


def test_case_punctuation_and_surroundings_do_not_hide_an_item() -> None:
    item = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
    evaluated = Evaluated(["something else that is long enough to be looked for", item])
    assert evaluated.find(f"Q: {item.upper().replace(',', ' --')} A: 72") == Overlap(1, 13)
    assert evaluated.find("Natalia sold clips to 47 of her friends, and half as many in May, she said") is None


def test_what_many_items_share_is_boilerplate() -> None:
    start = "Answer the following question with one of the four letters a b c or d and nothing else please"
    items = [f"{start}: what is the number that comes after {i} when one counts in steps of {i}" for i in range(40)]
    evaluated = Evaluated(items)
    assert evaluated.find(f"{start}: who wrote the book about the whale") is None
    assert evaluated.find(items[7]) is not None
    assert evaluated.find(items[7]).text == 7  # type: ignore[union-attr]


def test_bad_input() -> None:
    with pytest.raises(DataError, match="no texts"):
        Evaluated([])
    with pytest.raises(ConfigError, match="words is 3, allowed: a whole number of at least 6"):
        Evaluated(["a"], words=3)
    assert Evaluated(["too short"]).find("too short") is None
