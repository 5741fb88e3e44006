"""Decoding: transformers' greedy tokens, texts that no companion changes, and batches that shrink without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from alignlab.core.errors import SamplerError
from alignlab.lm.cache import KVCache
from alignlab.lm.generate import Row, common_prefix, decode, read_prompts, row_seeds
from alignlab.lm.hf_export import load_hf
from alignlab.lm.model import GPTModel
from alignlab.lm.types import SamplingParams

MakeModel = Callable[..., GPTModel]
NO_END: frozenset[int] = frozenset()
GREEDY = SamplingParams(max_tokens=12, temperature=0)


def prompts_of(n: int, *, shared: int = 0, longest: int = 30, seed: int = 0, vocab: int = 300) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    prefix = torch.randint(0, vocab, (shared,), generator=generator).tolist()
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [prefix + torch.randint(0, vocab, (k,), generator=generator).tolist() for k in lengths]


def run(
    model: GPTModel,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    ends: frozenset[int] = NO_END,
    seeds: Sequence[int] | None = None,
) -> list[Row]:
    """All rows of a call, in order of the prompts."""
    found: dict[int, Row] = {}
    for moved in decode(model, list(prompts), sampling, ends, seeds=seeds):
        found.update({row.index: row for row in moved})
    return [found[i] for i in range(len(prompts))]


def tokens_of(rows: Sequence[Row]) -> list[list[int]]:
    return [row.tokens for row in rows]


# Against transformers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[hf.PreTrainedModel, GPTModel]:
    """A random Llama of transformers and the same weights here."""
    config = hf.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    theirs = hf.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
        theirs.model.embed_tokens.weight.mul_(32**0.5)
    directory: Path = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(directory)
    return theirs, load_hf(directory)


@torch.no_grad()
def theirs_alone(model: hf.PreTrainedModel, prompt: list[int], *, end: int | None, penalty: float) -> list[int]:
    config = hf.GenerationConfig(
        max_new_tokens=64, do_sample=False, eos_token_id=end, pad_token_id=0, repetition_penalty=penalty
    )
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return list(out[0, len(prompt) :].tolist())


SLOW_TOO = [pytest.param(end, penalty, marks=pytest.mark.slow) for end, penalty in ((False, 1.3), (True, 1.0))]


@pytest.mark.parametrize(("with_end", "penalty"), [(False, 1.0), (True, 1.3), *SLOW_TOO])
@pytest.mark.no_cover
def test_greedy_tokens_equal_transformers(
    with_end: bool, penalty: float, pair: tuple[hf.PreTrainedModel, GPTModel]
) -> None:
    theirs, ours = pair
    prompts = [*prompts_of(6, longest=40), *prompts_of(3, shared=20, longest=9, seed=1)]
    sampling = SamplingParams(max_tokens=64, temperature=0, repetition_penalty=penalty)
    end = None
    if with_end:  # a token that some rows reach early and others not
        free = tokens_of(run(ours, prompts, sampling))
        end = next(t for t in free[0][5:] if 0 < sum(t in row for row in free) < len(free))
    expected = [theirs_alone(theirs, p, end=end, penalty=penalty) for p in prompts]
    rows = run(ours, prompts, sampling, NO_END if end is None else frozenset({end}))
    assert tokens_of(rows) == expected
    lengths = {len(row.tokens) for row in rows}
    assert lengths == {64} if end is None else (64 in lengths and min(lengths) < 64)


# Log-probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_logprobs_equal_a_full_pass(family: str, make_model: MakeModel) -> None:
    """They are the model's own: at temperature 1 and before any filter or penalty."""
    model, prompts = make_model(family), prompts_of(5)
    sampling = SamplingParams(max_tokens=10, temperature=0.7, top_k=30, repetition_penalty=1.2, seed=3)
    for row in run(model, prompts, sampling):
        whole = torch.tensor([row.prompt + row.tokens])
        logprobs = model(whole)[0, len(row.prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(row.tokens)[:, None]).squeeze(1)
        assert (torch.tensor(row.logprobs) - expected).abs().max() < 1e-4


# No text depends on its companions ------------------------------------------------------------------------------------


SLOW = [
    pytest.param(family, heat, marks=pytest.mark.slow)
    for family, heat in (
        ("llama", 0.0),
        ("gemma2", 0.0),
        *((f, t) for f in ("neox", "linear", "gemma3") for t in (0.0, 0.9)),
    )
]


@pytest.mark.parametrize(("family", "temperature"), [("gpt2", 0.0), ("llama", 0.9), ("gemma2", 0.9), *SLOW])
@pytest.mark.no_cover
def test_fifty_prompts_alone_and_together(family: str, temperature: float, make_model: MakeModel) -> None:
    """Half are unrelated and of 1 to 40 tokens, half share 20; alone, by eights, reversed all at once, mixed."""
    model = make_model(family, tie_embeddings=False)  # tied random weights repeat their input
    sampling = SamplingParams(max_tokens=8, temperature=temperature, top_p=0.95, repetition_penalty=1.1, seed=5)
    unrelated, related = prompts_of(25, longest=40), prompts_of(25, shared=20, longest=15, seed=1)
    prompts, ends = unrelated + related, frozenset(range(0, 300, 12))
    alone = [run(model, [p], sampling, ends)[0].tokens for p in prompts]
    assert len({tuple(t) for t in alone}) > 40
    assert len({len(t) for t in alone}) > 4
    mixed = torch.randperm(50, generator=torch.Generator().manual_seed(2)).tolist()
    orders = [list(range(50)), list(range(50))[::-1], mixed]
    sizes = [8, 50, 5]
    for order, size in zip(orders, sizes, strict=True):
        for start in range(0, 50, size):
            batch = order[start : start + size]
            assert tokens_of(run(model, [prompts[i] for i in batch], sampling, ends)) == [alone[i] for i in batch]


def test_repeats_differ_and_the_seed_decides(make_model: MakeModel) -> None:
    model, prompt = make_model(), [5, 6, 7]
    sampling = SamplingParams(max_tokens=10, seed=1)
    first = tokens_of(run(model, [prompt] * 4, sampling))
    assert len({tuple(t) for t in first}) == 4
    assert tokens_of(run(model, [[9], prompt, prompt], sampling))[1:] == first[:2]
    assert tokens_of(run(model, [prompt] * 4, sampling)) == first
    assert tokens_of(run(model, [prompt], SamplingParams(max_tokens=10, seed=2))) != first[:1]
    assert tokens_of(run(model, [prompt] * 4, GREEDY))[0] == tokens_of(run(model, [prompt], GREEDY))[0]


def test_given_seeds_replace_the_prompts_own(make_model: MakeModel) -> None:
    model, prompt, sampling = make_model(), [5, 6, 7], SamplingParams(max_tokens=10)
    seeds = row_seeds([prompt] * 3, sampling.seed)
    together = tokens_of(run(model, [prompt] * 3, sampling))
    apart = [run(model, [prompt], sampling, seeds=[seed])[0].tokens for seed in seeds]
    assert apart == together


def test_row_seeds_know_a_prompt_by_all_its_tokens() -> None:
    prompts = [[1, 23], [12, 3], [1, 2, 3], [1, 23], [123], [1, 23]]
    seeds = row_seeds(prompts, 0)
    assert len(set(seeds)) == 6
    assert row_seeds([[1, 23]] * 3, 0) == [seeds[0], seeds[3], seeds[5]]
    assert not set(seeds) & set(row_seeds(prompts, 1))


def test_no_global_randomness(make_model: MakeModel) -> None:
    model, sampling = make_model(), SamplingParams(max_tokens=5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tokens_of(run(model, [[3, 4]], sampling))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert tokens_of(run(model, [[3, 4]], sampling)) == first


# Ends, budgets and the shrinking batch --------------------------------------------------------------------------------


def test_finished_rows_leave_the_batch(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are as wide as those still alive, within a factor of two, and the survivors' texts do not change."""
    model, prompts = make_model(), prompts_of(16, longest=12)
    sampling, ends = SamplingParams(max_tokens=40, temperature=0.8), frozenset(range(0, 300, 9))
    widths: list[int] = []
    plain = GPTModel.hidden_states

    def spy(self: GPTModel, tokens: torch.Tensor, **how: object) -> torch.Tensor:
        widths.append(len(tokens))
        return plain(self, tokens, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(GPTModel, "hidden_states", spy)
    alive = [len(moved) for moved in decode(model, prompts, sampling, ends)]
    assert alive[0] == 16
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] < 5
    for wide, had in zip(widths[1:], alive[1:], strict=True):
        assert had <= wide < 2 * had
    rows = run(model, prompts, sampling, ends)
    assert all((row.tokens[-1] in ends) != (len(row.tokens) == 40 and row.tokens[-1] not in ends) for row in rows)
    assert all(token not in ends for row in rows for token in row.tokens[:-1])


def test_a_row_the_consumer_ends_gets_nothing_more(make_model: MakeModel) -> None:
    model, prompts = make_model(), prompts_of(5)
    free = tokens_of(run(model, prompts, GREEDY))
    got: dict[int, list[int]] = {}
    for moved in decode(model, prompts, GREEDY, NO_END):
        for row in moved:
            got[row.index] = row.tokens
            row.done = row.done or (row.index in (0, 3) and len(row.tokens) == 4)
    assert [got[i] for i in range(5)] == [t[:4] if i in (0, 3) else t for i, t in enumerate(free)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_context_bounds_each_row_by_itself(family: str, make_model: MakeModel) -> None:
    """A prompt that nearly fills the context ends early, also among companions that go on for long."""
    model, sampling = make_model(family, n_ctx=32), SamplingParams(max_tokens=25, temperature=0)
    prompts = [prompts_of(1, seed=s)[0][:1] * n for s, n in enumerate([31, 30, 28, 3, 4, 5, 6, 7, 2])]
    rows = run(model, prompts, sampling)
    assert [len(row.tokens) for row in rows] == [1, 2, 4, *[25] * 6]
    assert tokens_of(rows) == [run(model, [p], sampling)[0].tokens for p in prompts]


def test_impossible_prompts_are_refused(make_model: MakeModel) -> None:
    model = make_model(n_ctx=16)
    with pytest.raises(SamplerError, match="prompt 1 is empty"):
        run(model, [[1], []], GREEDY)
    with pytest.raises(SamplerError, match="prompt 2 has 16 tokens, the model reads at most 15 before answering"):
        run(model, [[1], [2], [3] * 16], GREEDY)


# Shared prefixes ------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=5))
def test_common_prefix_follows_its_definition(prompts: list[list[int]]) -> None:
    shortest = min(map(len, prompts))
    expected = max(n for n in range(shortest) if all(p[:n] == prompts[0][:n] for p in prompts))
    assert common_prefix(prompts) == expected


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("shared", [0, 5, 16, 30])
@torch.no_grad()
def test_prompts_are_read_as_by_themselves(family: str, shared: int, make_model: MakeModel) -> None:
    model, prompts = make_model(family), prompts_of(5, shared=shared, longest=12)
    prompts.append(prompts[0][: shared + 1])
    cache, last = read_prompts(model, prompts, 3)
    for i, prompt in enumerate(prompts):
        assert (last[i] - model.hidden_states(torch.tensor([prompt]))[0, -1]).abs().max() < 1e-4
    assert cache.next_position.tolist() == [len(p) for p in prompts]
    assert cache.capacity == max(map(len, prompts)) + 3


def test_a_long_shared_prefix_is_read_once(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    plain = KVCache.begin

    def spy(self: KVCache, tokens: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        shapes.append((tokens.shape[0], tokens.shape[1]))
        return plain(self, tokens, real)

    monkeypatch.setattr(KVCache, "begin", spy)
    prompts = [[7] * 20 + [i] * 2 for i in range(5)]
    run(make_model(), prompts, SamplingParams(max_tokens=1))
    assert shapes == [(1, 20), (5, 2)]
