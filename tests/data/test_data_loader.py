"""The loader: against a naive one, over ranks, after interruptions, and packed documents against their definition."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.core.errors import DataError
from alignlab.data.loader import Prefetch, TokenLoader, evaluation_batches, permute
from alignlab.data.packing import next_token_targets
from alignlab.data.shards import TokenShards

Make = Callable[..., TokenShards]


def random_documents(n: int, most: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 1000, size=generator.integers(1, most + 1)).tolist() for _ in range(n)]


def stream_of(documents: list[list[int]]) -> list[int]:
    return [token for ids in documents for token in [*ids, 0]]


@pytest.mark.parametrize("shard_tokens", [10**6, 97])
def test_windows_are_those_of_a_naive_loader(shard_tokens: int, corpus: Make) -> None:
    documents = random_documents(40, 30)
    stream = stream_of(documents)
    loader = TokenLoader(corpus(documents, shard_tokens), length=16, batch_size=4, seed=3)
    windows = {tuple(stream[s : s + 17]) for s in range(0, len(stream) - 16, 16)}
    assert loader.rows == len(windows) == (len(stream) - 1) // 16
    seen: Counter[tuple[int, ...]] = Counter()
    n_batches = 5 * loader.rows  # whole epochs: batch size times batches is a multiple of the rows
    for i in range(n_batches):
        batch = loader(i)
        assert set(batch) == {"tokens", "targets"}
        assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
        assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
        assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        seen.update((*tokens, last) for tokens, last in zip(batch["tokens"].tolist(), batch["targets"][:, -1].tolist()))
    assert set(seen) == windows
    assert set(seen.values()) == {20}


@given(size=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
@settings(max_examples=60)
def test_the_order_is_a_permutation(size: int, key: int) -> None:
    order = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(order), np.arange(size))
    some = np.array([size - 1, 0, size // 2])
    assert np.array_equal(permute(some, size, key), order[some])  # each place by itself


def test_the_order_looks_random() -> None:
    """Places and values of 200 permutations of 12 are independent: chi-square with 121 degrees of freedom."""
    counts = np.zeros((12, 12))
    for key in range(1200):
        counts[np.arange(12), permute(np.arange(12), 12, key)] += 1
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert 60 < chi_square < 200  # a fair shuffle leaves this with probability below 1e-5


def test_epochs_and_seeds_have_orders_of_their_own(corpus: Make) -> None:
    shards = corpus(random_documents(60, 30))
    loader = TokenLoader(shards, length=8, batch_size=1, seed=0)
    epochs = [[int(loader.row_numbers(e * loader.rows + i)[0]) for i in range(loader.rows)] for e in range(3)]
    other = [int(TokenLoader(shards, length=8, batch_size=1, seed=1).row_numbers(i)[0]) for i in range(loader.rows)]
    orders = [tuple(order) for order in [*epochs, other]]
    assert len(set(orders)) == 4
    assert tuple(range(loader.rows)) not in orders
    assert all(sorted(order) == list(range(loader.rows)) for order in orders)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_together_are_the_one_batch(world: int, documents: bool, corpus: Make) -> None:
    shards = corpus(random_documents(50, 40), 300)
    shape = {"length": 16, "batch_size": 8, "seed": 5, "documents": documents}
    whole = TokenLoader(shards, **shape)  # type: ignore[arg-type]
    parts = [TokenLoader(shards, rank=r, world=world, **shape) for r in range(world)]  # type: ignore[arg-type]
    for i in (0, 1, 7, whole.batches_per_epoch, 1000):
        expected = whole(i)
        batches = [part(i) for part in parts]
        assert all(len(batch["tokens"]) == 8 // world for batch in batches)
        for key, value in expected.items():
            assert torch.equal(torch.cat([batch[key] for batch in batches]), value)
    assert len({str(part.fingerprint()) for part in [whole, *parts]}) == 1


@pytest.mark.parametrize("documents", [False, True])
def test_a_batch_depends_on_its_number_alone(documents: bool, corpus: Make) -> None:
    shards = corpus(random_documents(50, 40))
    loader = TokenLoader(shards, length=16, batch_size=4, documents=documents)
    straight = [loader(i) for i in range(30)]
    # Asked for backwards, by a new object, from the middle on, in a copy, and by several threads.
    fresh = TokenLoader(TokenShards.open(shards.path), length=16, batch_size=4, documents=documents)
    with Prefetch(copy.deepcopy(loader), workers=3, ahead=4) as ahead:
        for i in [*range(17, 30), *range(16, -1, -1)]:
            for other in (fresh, ahead):
                batch = other(i)
                assert all(torch.equal(batch[key], straight[i][key]) for key in straight[i])
    assert torch.equal(loader[3]["tokens"], straight[3]["tokens"])


def test_torch_workers_give_the_same_batches(corpus: Make) -> None:
    loader = TokenLoader(corpus(random_documents(20, 40)), length=16, batch_size=4)
    feed = torch.utils.data.DataLoader(loader, sampler=range(3, 9), batch_size=None)  # type: ignore[arg-type]
    for i, batch in enumerate(feed, start=3):
        assert torch.equal(batch["tokens"], loader(i)["tokens"])


@pytest.mark.parametrize(("length", "most"), [(16, 12), (16, 60), (5, 5), (64, 200)])
def test_packed_documents_are_each_predicted_once(length: int, most: int, corpus: Make) -> None:
    documents = random_documents(80, most)
    loader = TokenLoader(corpus(documents, 500), length=length, batch_size=1, documents=True)
    pieces: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for i in range(loader.rows):
        batch = loader(i)
        tokens, targets, segments = (batch[key][0].tolist() for key in ("tokens", "targets", "segments"))
        used = [s > 0 for s in segments]
        assert batch["loss_mask"][0].tolist() == used
        assert used == sorted(used, reverse=True)  # padding only at the end
        numbers = [s for s in segments if s]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(1, max(numbers) + 1))
        for s in set(numbers):
            at = [j for j, number in enumerate(segments) if number == s]
            pieces[tuple(tokens[j] for j in at), tuple(targets[j] for j in at)] += 1
    expected: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for ids in documents:
        full = [0, *ids, 0]
        for start in range(0, len(full) - 1, length):
            stop = min(start + length, len(full) - 1)
            expected[tuple(full[start:stop]), tuple(full[start + 1 : stop + 1])] += 1
    assert pieces == expected
    assert 0 <= loader.padding < 0.5


def test_targets_agree_with_those_of_packed_examples(corpus: Make) -> None:
    """Where `next_token_targets` gives a target inside a segment, the loader gives the same one."""
    loader = TokenLoader(corpus(random_documents(50, 20)), length=32, batch_size=8, documents=True)
    batch = loader(0)
    targets, mask = next_token_targets(batch)
    assert mask.sum() > 100
    assert torch.equal(targets[mask], batch["targets"][mask])


def test_evaluation_has_every_target_once_and_in_order(corpus: Make) -> None:
    documents = random_documents(30, 20)
    stream = stream_of(documents)
    shards = corpus(documents, 100)
    for length, batch_size in ((8, 3), (len(stream) - 1, 1), (10_000, 2), (1, 50)):
        batches = list(evaluation_batches(shards, length=length, batch_size=batch_size))
        assert torch.cat([batch["targets"].flatten() for batch in batches]).tolist() == stream[1:]
        assert torch.cat([batch["tokens"].flatten() for batch in batches]).tolist() == stream[:-1]
        assert all(len(batch["tokens"]) <= batch_size for batch in batches)


def test_fingerprints_tell_what_changes_the_batches(corpus: Make) -> None:
    one, other = corpus(random_documents(20, 20)), corpus(random_documents(20, 20, seed=1))
    base = {"length": 8, "batch_size": 4, "seed": 0, "documents": False}
    changes = [{}, {"length": 9}, {"batch_size": 2}, {"seed": 1}, {"documents": True}]
    prints = [str(TokenLoader(one, **{**base, **change}).fingerprint()) for change in changes]  # type: ignore[arg-type]
    prints.append(str(TokenLoader(other, **base).fingerprint()))  # type: ignore[arg-type]
    assert len(set(prints)) == 6
    assert prints[0] == str(TokenLoader(TokenShards.open(one.path), **base).fingerprint())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 200}, "has 12 tokens, but a row of length 200 needs 201; lower the length"),
        ({"length": 12}, "needs 13"),
        ({"length": 0}, "length is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"world": 0}, "world is 0"),
        ({"world": 3, "batch_size": 8}, "world size of 3 does not divide the batch of 8 rows; allowed: 1, 2, 4, 8"),
        ({"world": 2, "rank": 2}, "rank is 2, allowed: 0 to 1"),
        ({"rank": -1}, "rank is -1"),
    ],
)
def test_wrong_settings(change: dict[str, int], message: str, corpus: Make) -> None:
    shards = corpus([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    with pytest.raises(DataError, match=message):
        TokenLoader(shards, **{"length": 4, "batch_size": 2, **change})


def test_a_corpus_of_one_token(corpus: Make) -> None:
    shards = corpus([[7]])  # and its separator
    loader = TokenLoader(shards, length=1, batch_size=2)
    assert loader(0)["tokens"].tolist() == [[7], [7]]
    with pytest.raises(DataError, match="has 2 tokens, but a row of length 2 needs 3"):
        TokenLoader(shards, length=2, batch_size=1)
    packed = TokenLoader(shards, length=4, batch_size=1, documents=True)(0)
    assert packed["tokens"].tolist() == [[0, 7, 0, 0]]
    assert packed["targets"].tolist() == [[7, 0, 0, 0]]
    assert packed["loss_mask"].tolist() == [[True, True, False, False]]


def test_wrong_calls(corpus: Make) -> None:
    shards = corpus([[1, 2, 3, 4, 5]])
    with pytest.raises(DataError, match="batch -1 was asked for"):
        TokenLoader(shards, length=2, batch_size=1)(-1)
    with pytest.raises(DataError, match="allowed: positive whole numbers"):
        Prefetch(lambda i: {}, workers=0)
    with pytest.raises(DataError, match="length is 0"):
        evaluation_batches(shards, length=0, batch_size=1)


def test_an_error_of_a_batch_comes_where_it_is_asked_for() -> None:
    def batch_at(index: int) -> dict[str, torch.Tensor]:
        if index == 2:
            raise DataError("batch 2 is broken")
        return {"tokens": torch.tensor([index])}

    with Prefetch(batch_at, workers=2) as batches:
        assert batches(0)["tokens"].item() == 0
        assert batches(1)["tokens"].item() == 1
        with pytest.raises(DataError, match="batch 2 is broken"):
            batches(2)
        assert batches(3)["tokens"].item() == 3
