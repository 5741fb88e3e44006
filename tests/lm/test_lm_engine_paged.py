"""A ragged pass over the paged cache equals plain passes over whole texts, for every family and way of cutting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.lm.engine.paged import PagedBatch, PagedCache, Span, make_groups, pass_order
from alignlab.lm.engine.runner import Graphs
from alignlab.lm.model import GPTModel
from alignlab.lm.taps import listen

MakeModel = Callable[..., GPTModel]
SIZE = 16
KINDS: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in ("gpt2", "neox", "llama", "linear", "gemma2", "gemma3")},
    "alibi": {"positions": "alibi"},
    "alibi_window": {"positions": "alibi", "window": 5},
    "sinusoidal": {"positions": "sinusoidal"},
    "explicit": {"attention": "explicit"},
}
TEXTS = [
    torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (60, 33, 48, 5, 17, 64)
]


class Reader:
    """Reads texts piece by piece and keeps every position's logits."""

    def __init__(self, model: GPTModel, *, invariant: bool = False, graphs: bool = False, share: int = 0) -> None:
        self.model, self.invariant = model, invariant
        weight = model.embed.weight
        self.cache = PagedCache(model.config, 64, SIZE, device=weight.device, dtype=weight.dtype)
        self.graphs = Graphs(model, self.cache, record=False).decode if graphs else None
        common = list(range(1, share + 1))
        self.blocks = [[*common, *range(10 * i + 5, 10 * i + 9 - share)] for i in range(len(TEXTS))]
        self.read = [0] * len(TEXTS)
        self.logits: list[list[torch.Tensor]] = [[] for _ in TEXTS]

    @torch.no_grad()
    def step(self, wanted: dict[int, int]) -> None:
        """`wanted[i]` more tokens of text i, as far as it goes."""
        jobs = []
        for i, n in wanted.items():
            n_new = min(n, len(TEXTS[i]) - self.read[i])
            if n_new:
                jobs.append((i, Span(self.blocks[i], self.read[i], n_new)))
        if not jobs:
            return
        jobs.sort(key=lambda job: pass_order(job[1]))
        tokens = [t for i, span in jobs for t in TEXTS[i][span.start : span.start + span.n_new]]
        spans = [span for _, span in jobs]
        if self.graphs is not None and len(tokens) == len(spans):
            logits = self.model.unembed(self.graphs.run(tokens, spans))
        else:
            pad_to = 16 if self.invariant else 1
            batch = PagedBatch.of(self.cache, spans, invariant=self.invariant, pad_to=pad_to)
            logits = self.model(torch.tensor([tokens + [0] * (-len(tokens) % pad_to)]), cache=batch)[0]
        at = 0
        for i, span in jobs:
            self.logits[i].append(logits[at : at + span.n_new].clone())
            self.read[i] += span.n_new
            at += span.n_new

    def finish(self, n: int) -> list[torch.Tensor]:
        while any(read < len(text) for read, text in zip(self.read, TEXTS, strict=True)):
            self.step(dict.fromkeys(range(len(TEXTS)), n))
        return [torch.cat(parts) for parts in self.logits]


@torch.no_grad()
def whole(model: GPTModel) -> list[torch.Tensor]:
    return [model(torch.tensor([text]))[0] for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("invariant", [False, True])
def test_pieces_equal_a_whole_pass(kind: str, invariant: bool, make_model: MakeModel) -> None:
    """Prompts cut anywhere, beside rows that decode; then all rows decode together."""
    model = make_model(**KINDS[kind])
    reader = Reader(model, invariant=invariant)
    reader.step({0: 7, 3: 5, 4: 16})
    reader.step({0: 20, 1: 1, 2: 15, 4: 1, 5: 20})
    reader.step({1: 9, 2: 9, 5: 1})
    for found, expected in zip(reader.finish(1), whole(model), strict=True):
        assert (found - expected).abs().max() < 5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_fixed_shape_equal_a_whole_pass(kind: str, make_model: MakeModel) -> None:
    model = make_model(**KINDS[kind])
    reader = Reader(model, graphs=True)
    reader.step({0: 10, 1: 20, 2: 1, 3: 1, 5: 31})
    for found, expected in zip(reader.finish(1), whole(model), strict=True):
        assert (found - expected).abs().max() < 5e-5
    assert reader.graphs is not None
    assert {rows for rows, _ in reader.graphs.steps} <= {1, 2, 4, 8}
    assert {width for _, width in reader.graphs.steps} == {2, 4}


@settings(max_examples=15)
@given(cuts=st.lists(st.lists(st.integers(0, 30), min_size=6, max_size=6), max_size=5), last=st.integers(1, 40))
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.no_cover
def test_no_way_of_cutting_changes_a_bit(family: str, make_model: MakeModel, cuts: list[list[int]], last: int) -> None:
    """The invariant pass: position by position the same bits, whatever stands beside it and however it is cut."""
    model = make_model(family)
    reader, one_by_one = Reader(model, invariant=True), Reader(model, invariant=True)
    for cut in cuts:
        reader.step(dict(enumerate(cut)))
    for i in range(len(TEXTS)):
        while one_by_one.read[i] < len(TEXTS[i]):
            one_by_one.step({i: 25})
    for found, expected in zip(reader.finish(last), one_by_one.finish(1), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["llama", "linear", "gemma2"])
def test_rows_meet_a_shared_beginning_in_one_product(family: str, make_model: MakeModel) -> None:
    """Rows 0 and 2 hold the same 32 tokens in the same blocks; the result is what they give apart."""
    model = make_model(family)
    text = [*TEXTS[0][:32], *TEXTS[2][32:]]
    weight = model.embed.weight
    cache = PagedCache(model.config, 16, SIZE, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        model(torch.tensor([TEXTS[0][:59]]), cache=PagedBatch.of(cache, [Span([1, 2, 3, 4], 0, 59)]))
        model(torch.tensor([text[32:47]]), cache=PagedBatch.of(cache, [Span([1, 2, 5], 32, 15)]))
        spans = [Span([1, 2, 5], 47, 1), Span([1, 2, 3, 4], 59, 1)]
        batch = PagedBatch.of(cache, spans)
        found = model(torch.tensor([[text[47], TEXTS[0][59]]]), cache=batch)[0]
        expected = [model(torch.tensor([t]))[0, -1] for t in (text, TEXTS[0])]
    assert [None if g.shared is None else g.shared.tolist() for g in batch.groups] == [[1, 2]]
    assert (found - torch.stack(expected)).abs().max() < 5e-5


def test_rows_of_similar_length_attend_together(make_model: MakeModel) -> None:
    model = make_model()
    cache = PagedCache(model.config, 64, SIZE, device=torch.device("cpu"), dtype=torch.float32)
    lengths = [(3, 1), (40, 1), (15, 1), (16, 1), (63, 1), (0, 9), (0, 9), (5, 9)]
    spans = sorted((Span(list(range(8 * i, 8 * i + 4)), s, n) for i, (s, n) in enumerate(lengths)), key=pass_order)
    groups = make_groups(cache, spans, torch.zeros(sum(span.n_new for span in spans)), trim=True)
    assert [(group.n_rows, group.n_query, group.n_keys) for group in groups] == [
        (2, 1, 16), (1, 1, 17), (2, 1, 64), (2, 9, None), (1, 9, 14),
    ]  # fmt: skip
    assert [group.columns.start for group in groups] == [0, 2, 3, 5, 23]


def test_what_is_not_a_number_stays_with_its_row_and_is_scrubbed(make_model: MakeModel) -> None:
    """A neighbour's NaN and a former owner's NaN: masked numbers are multiplied by 0, which does not remove NaN."""
    model = make_model()
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
        expected = model(torch.tensor([[5] * 18]))[0, -1]
        cache = PagedCache(model.config, 8, SIZE, device=torch.device("cpu"), dtype=torch.float32)
        spans = [Span([1, 2], 0, 17), Span([3, 4], 0, 17)]
        model(torch.tensor([[5] * 17 + [7] * 17]), cache=PagedBatch.of(cache, spans))
        spans = [Span([1, 2], 17, 1), Span([3, 4], 17, 1)]
        logits = model(torch.tensor([[5, 7]]), cache=PagedBatch.of(cache, spans))[0]
        assert (logits[0] - expected).abs().max() < 5e-5
        assert logits[1].isnan().all()
        cache.scrub([3, 4])
        again = Span([4, 3], 0, 18)
        found = model(torch.tensor([[5] * 18]), cache=PagedBatch.of(cache, [again], invariant=True))
        assert (found[0, -1] - expected).abs().max() < 5e-5


def test_taps_see_every_new_token(make_model: MakeModel) -> None:
    model, seen = make_model(), []
    cache = PagedCache(model.config, 8, SIZE, device=torch.device("cpu"), dtype=torch.float32)
    batch = PagedBatch.of(cache, [Span([1], 0, 3), Span([2], 0, 4)], invariant=True)
    with torch.no_grad(), listen(model, {"blocks.1.attn.hook_pattern": lambda x, _: seen.append(x.shape)}):
        model(torch.arange(7)[None], cache=batch)
    assert seen == [(1, 4, 3, 16), (1, 4, 4, 16)]
