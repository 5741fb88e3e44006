"""Judgements about training texts: what each catches, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.data.quality import bad_length, copying, damaged, foreign, looping, unfinished

PROSE = (
    "A bridge hangs from cables that pull on towers. The towers push down on rock, and anchors at both ends hold the "
    "cables. Wind makes the deck twist, so engineers stiffen it with trusses."
)


def test_length_counts_characters_without_outer_blanks() -> None:
    assert bad_length("  ab \n", 3, 9) == "2 characters, fewer than 3"
    assert bad_length("x" * 10, 3, 9) == "10 characters, more than 9"
    assert bad_length("abc", 3, 9) == bad_length("x" * 9, 3, 9) == ""


def test_repetition_is_the_share_of_repeated_four_word_runs() -> None:
    """Against the definition, computed naively on texts of random words."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        words = [f"w{i}" for i in generator.integers(0, generator.integers(2, 60), size=40)]
        runs = [tuple(words[i : i + 4]) for i in range(37)]
        share = 1 - len(set(runs)) / len(runs)
        assert bool(looping(" ".join(words), 0.3)) == (share > 0.3)


def test_loops_are_caught_in_any_script_and_prose_is_not() -> None:
    said = looping("I am sorry, but I can not do that. " * 15, 0.3)
    assert said == "93% of its runs of 4 words repeat earlier ones, above 30%"  # 9 of the 132 are different
    assert looping("我们不知道怎么办" * 10, 0.3)
    assert looping("aaaaaaaaaaaaaaaah", 0.3) == "'a' 16 times in a row"
    assert looping(PROSE, 0.3) == ""
    assert looping("ha ha ha ha", 0.3) == ""  # too short to tell
    assert looping("-" * 80 + "\n" + "=" * 80, 0.3) == ""  # rules of a table


@pytest.mark.parametrize("text", ["caf\ufffd", "a\x00b", "cafÃ©", "itâ€™s", "10\u00c2\u00a0km", "a\ue000"])
def test_damaged_characters(text: str) -> None:
    assert damaged(text)


@pytest.mark.parametrize(
    "text", [PROSE, "café naïve Ünïcödé", "tab\tand\r\nline", "日本語。", "👍🏽 ok", "São Â la carte"]
)
def test_sound_characters(text: str) -> None:
    assert damaged(text) == ""


def test_scripts_count_letters_only() -> None:
    assert foreign("Привет, мир, hello", ["latin"], 0.2) == "64% of its letters are not latin but cyrillic"
    assert foreign("Привет, мир, hello", ["latin", "cyrillic"], 0.2) == ""
    assert foreign("The letter д is a d, and that is it", ["latin"], 0.2) == ""
    assert foreign("123 + 456 = ?", ["latin"], 0.2) == ""


@pytest.mark.parametrize(
    "text",
    [
        PROSE.rsplit(" ", 4)[0],
        PROSE[:-1],
        PROSE + " Moreover,",
        "```python\nprint(1)\n",
        "Here it is:\n```\nx = 1\n```\nand\n```\ny = 2",
    ],
)
def test_an_answer_that_stops_in_the_middle(text: str) -> None:
    assert unfinished(text)


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "Paris",
        "The answer is\n```python\nprint(1)\n```",
        f"{PROSE} So it is 42",
        f"{PROSE} See www.example.org/bridges/kinds",
        f"{PROSE}\n- steel\n- rock\n- wire of a good and well known maker from the old town near here",
        f'{PROSE} "Quite so."',
        "桥" * 80,
        f"{PROSE}\n\nKind regards\nThe bridge office",
    ],
)
def test_answers_that_may_end_so(text: str) -> None:
    assert unfinished(text) == ""


def test_copies_of_the_prompt() -> None:
    assert copying("  Say THIS again ", "say this again", 0.8) == "the answer is the prompt"
    assert copying(PROSE, f"Correct this: {PROSE}", 0.8) == "100% of the answer is in the prompt, above 80%"
    half = " ".join(PROSE.split()[:15]) + " and then some more words that nobody wrote before in any book at all"
    assert copying(half, PROSE, 0.8) == ""
    assert copying("engineers stiffen it", PROSE, 0.8) == ""  # a short answer may be a quotation
