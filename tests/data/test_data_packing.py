"""Packing loses nothing, leaks nothing across examples, and is a function of its input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.core.errors import DataError
from alignlab.data.packing import Example, batches, next_token_targets, pack


def example(n: int, start: int = 1, learn_from: int = 0) -> Example:
    return Example(list(range(start, start + n)), [i >= learn_from for i in range(n)])


def test_best_fit_decreasing_by_hand() -> None:
    # Longest first into rows of 10: 7, 6 and 5 open one each; 4 fits best with 6; 3 with 7; 2 with 5; 1 with 5 2.
    rows = pack([example(n, 10 * n) for n in (1, 2, 3, 4, 5, 6, 7)], 10)
    lengths = [[int((row["segments"] == s).sum()) for s in range(1, int(row["segments"].max()) + 1)] for row in rows]
    assert lengths == [[7, 3], [6, 4], [5, 2, 1]]
    assert rows[2]["tokens"].tolist() == [50, 51, 52, 53, 54, 20, 21, 10, 0, 0]
    assert rows[2]["segments"].tolist() == [1, 1, 1, 1, 1, 2, 2, 3, 0, 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_every_example_comes_back_once(lengths: list[int]) -> None:
    examples = [Example([100 * i + j for j in range(n)], [j % 2 == 0 for j in range(n)]) for i, n in enumerate(lengths)]
    rows = pack(examples, 12, pad_id=-1)
    found = []
    for row in rows:
        assert row["tokens"].shape == row["loss_mask"].shape == row["segments"].shape == (12,)
        pad = row["segments"] == 0
        assert (row["tokens"][pad] == -1).all()
        assert not row["loss_mask"][pad].any()
        for segment in range(1, int(row["segments"].max()) + 1):
            own = row["segments"] == segment
            found.append((row["tokens"][own].tolist(), row["loss_mask"][own].tolist()))
    assert sorted(found) == sorted((e.tokens, e.loss_mask) for e in examples)
    # Two rows at most half full would have been one: best fit opens a row only where nothing else holds the example.
    assert sum(int((row["segments"] > 0).sum()) <= 6 for row in rows) <= 1
    again = pack(examples, 12, pad_id=-1)
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(rows, again, strict=True))


def test_targets_stay_inside_their_segment() -> None:
    rows = pack([example(4, 10, learn_from=2), example(3, 20)], 9)
    batch = {key: value[None] for key, value in rows[0].items()}
    targets, mask = next_token_targets(batch)
    #       tokens: 10 11 12 13 20 21 22 0 0; learnable: 12 13 20 21 22, but nothing in its segment precedes 20
    assert mask[0].tolist() == [False, True, True, False, True, True, False, False, False]
    assert targets[0][mask[0]].tolist() == [12, 13, 21, 22]


def test_targets_without_segments_or_mask() -> None:
    targets, mask = next_token_targets({"tokens": torch.tensor([[5, 6, 7]])})
    assert targets.tolist() == [[6, 7, 0]]
    assert mask.tolist() == [[True, True, False]]


def test_too_long() -> None:
    long = example(6, learn_from=4)
    with pytest.raises(DataError, match="example 1 has 6 tokens, but a row holds 4"):
        pack([example(2), long], 4)
    assert pack([long], 4, overflow="truncate")[0]["tokens"].tolist() == [3, 4, 5, 6]
    early = Example([1, 2, 3, 4, 5, 6], [False, True] + [False] * 4)
    assert pack([early], 4, overflow="truncate", keep="start")[0]["tokens"].tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError, match="example 0 has nothing left to learn"):
        pack([long], 4, overflow="truncate", keep="start")


@pytest.mark.parametrize(
    ("examples", "length", "message"),
    [
        ([], 4, "no examples"),
        ([Example([], [])], 4, "example 0 has no tokens"),
        ([Example([1, 2], [True])], 4, "2 tokens and a loss_mask of 1"),
        ([Example([1], [True])], 1, "length is 1"),
    ],
)
def test_bad_input(examples: list[Example], length: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(examples, length)


def test_batches_are_a_pure_function_of_their_number() -> None:
    rows = pack([example(6, 10 * i) for i in range(1, 8)], 8)
    a, b = batches(rows, 3, seed=1), batches(rows, 3, seed=1)
    order = [5, 0, 3, 1, 4, 2]
    forward = {i: a(i)["tokens"] for i in range(6)}
    assert all(torch.equal(b(i)["tokens"], forward[i]) for i in order)
    assert [len(forward[i]) for i in range(6)] == [3, 3, 1, 3, 3, 1]
    assert not torch.equal(forward[0], batches(rows, 3, seed=2)(0)["tokens"])
    for epoch in (0, 3):  # each epoch sees each row once, in another order
        firsts = torch.cat([forward[epoch + i][:, 0] for i in range(3)]).tolist()
        assert sorted(firsts) == [10 * i for i in range(1, 8)]
    assert not torch.equal(forward[0], forward[3])


def test_padding_is_trimmed_to_the_longest_row_of_the_batch() -> None:
    rows = pack([example(3), example(5)], 16) + pack([example(2)], 16)
    assert batches(rows, 2)(0)["tokens"].shape == (2, 8)
    assert {tuple(batches(rows, 1)(i)["tokens"].shape) for i in range(2)} == {(1, 8), (1, 2)}


def test_epochs_end() -> None:
    rows = pack([example(6), example(6)], 8)
    limited = batches(rows, 1, epochs=2)
    assert len(limited) == 4
    assert limited(3)["tokens"].shape == (1, 6)
    with pytest.raises(DataError, match="batch 4 was asked for, but there are 4"):
        limited(4)
    with pytest.raises(DataError, match="no length"):
        len(batches(rows, 1))
    with pytest.raises(DataError, match="batch_size is 0"):
        batches(rows, 0)
    with pytest.raises(DataError, match="no rows"):
        batches([], 1)
