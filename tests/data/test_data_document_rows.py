"""Packing documents into rows: as good as the packing of examples, and fast enough for millions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.data.document_rows import best_fit, plan_rows
from alignlab.data.packing import Example, pack


@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=80))
@settings(max_examples=200)
def test_rows_are_as_many_as_best_fit_decreasing_makes(lengths: list[int]) -> None:
    rows = best_fit(np.array(lengths), 24)
    filled = np.bincount(rows, weights=lengths)
    assert filled.max() <= 24
    assert filled.min() >= 1  # no row number is left out
    by_items = pack([Example([1] * n, [True] * n) for n in lengths], 24)
    assert len(filled) == len(by_items)
    # Even the same fillings, whichever of two equal documents went where.
    assert sorted(filled.tolist()) == sorted(int((row["segments"] > 0).sum()) for row in by_items)


def test_a_worked_example() -> None:
    #                                     6 opens row 0 and 5 row 1; both 4s fit neither; 3 and 2 fill what is left
    rows = best_fit(np.array([4, 6, 3, 4, 5, 2]), 8)
    assert rows.tolist() == [2, 0, 1, 2, 1, 0]


def test_plans_cover_the_corpus_once_and_do_not_depend_on_anything_else() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 300, size=2000)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    plan = plan_rows(starts, int(sizes.sum()), 64)
    covered = np.concatenate([np.arange(s, s + n) for s, n in zip(plan.starts, plan.lengths)])
    assert np.array_equal(np.sort(covered), np.arange(sizes.sum()))
    assert plan.lengths.max() <= 64
    fill = np.add.reduceat(plan.lengths, plan.first[:-1])
    assert fill.max() <= 64
    assert fill.mean() > 0.97 * 64  # what packing is for
    inside = np.searchsorted(starts, plan.starts, side="right") == np.searchsorted(
        starts, plan.starts + plan.lengths - 1, side="right"
    )
    assert inside.all()  # no piece crosses a document
    again = plan_rows(starts, int(sizes.sum()), 64)
    assert np.array_equal(plan.starts, again.starts)
    assert np.array_equal(plan.first, again.first)


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_documents_as_long_as_a_row(capacity: int) -> None:
    assert best_fit(np.full(5, capacity), capacity).tolist() == [0, 1, 2, 3, 4]
    assert best_fit(np.ones(5, dtype=np.int64), capacity).max() == -(-5 // capacity) - 1
