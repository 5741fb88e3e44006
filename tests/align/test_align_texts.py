"""Loops, usable texts, and the best of several candidates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from alignlab.align.texts import best_candidates, is_usable, repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two", 0.0),
        ("a b c d e", 0.0),
        ("a b c a b c", 1 / 4),  # abc bca cab abc
        ("no no no no no", 2 / 3),
        ("No NO no No nO", 2 / 3),
        ("x " * 102, 99 / 100),
    ],
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def test_usable() -> None:
    assert is_usable("I would rather not.")
    assert is_usable("a b c a b c")
    assert not is_usable("a b c a b c", limit=0.2)
    assert not is_usable("no no no no no")
    assert not is_usable(" \n\t")
    assert not is_usable("")


class Table:
    """Scores by a table; None for what it lacks."""

    def __init__(self, scores: dict[tuple[str, str], float]) -> None:
        self.scores, self.asked = scores, list[tuple[str, str]]()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        pairs = list(zip(prompts, responses, strict=True))
        self.asked += pairs
        return [self.scores.get(pair) for pair in pairs]


def test_the_best_usable_candidate_is_kept() -> None:
    loop = "no no no no no"
    table = Table(
        {
            ("p", "good"): -1.0,
            ("p", "better"): -0.5,
            ("p", loop): 9.0,
            ("q", "only"): -7.0,
            ("r", "first of two equal"): 1.0,
            ("r", "second of two equal"): 1.0,
        }
    )
    candidates = [
        ["good", "only", "first of two equal", "", "unknown"],
        [loop, "", "second of two equal", loop, "unknown too"],
        ["better", loop, "", " ", ""],
    ]
    found = best_candidates(["p", "q", "r", "s", "t"], candidates, table)  # type: ignore[arg-type]
    assert found == [("better", -0.5), ("only", -7.0), ("first of two equal", 1.0), (None, None), (None, None)]
    assert all(is_usable(text) for _, text in table.asked)


def test_no_candidates() -> None:
    assert best_candidates(["p"], [], Table({})) == [(None, None)]  # type: ignore[arg-type]
    assert best_candidates([], [[]], Table({})) == []  # type: ignore[arg-type]
