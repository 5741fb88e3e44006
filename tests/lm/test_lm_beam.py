"""Beam search equals transformers' in tokens and scores, and exhaustive search where the beams are wide enough."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from alignlab.core.errors import ConfigError, SamplerError
from alignlab.lm.beam import BeamSearch, Hypothesis, Search, beam_search
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.generate import Row
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.types import GenerationError, SamplingParams

MakeModel = Callable[..., GPTModel]
MakeLM = Callable[..., LanguageModel]
NO_END: frozenset[int] = frozenset()


def prompts_of(count: int, length: int, vocab: int = 300) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(2, vocab, (count, length), generator=generator).tolist()


def answers(
    model: GPTModel, prompts: list[list[int]], how: BeamSearch, ends: frozenset[int], **params: Any
) -> list[Row]:
    sampling = SamplingParams(**params)
    repeated = [prompt for prompt in prompts for _ in range(sampling.n)]
    rows = [row for moved in beam_search(model, repeated, sampling, ends, how) for row in moved]
    return sorted(rows, key=lambda row: row.index)


# Against transformers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(make_lm: MakeLM, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTModel, hf.PreTrainedModel]:
    lm, path = make_lm("llama"), tmp_path_factory.mktemp("beam")
    export_hf(lm, path)
    reference = hf.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    return lm.model, reference


def theirs(
    reference: hf.PreTrainedModel, prompts: list[list[int]], how: BeamSearch, ends: frozenset[int], n: int
) -> tuple[list[list[int]], list[float]]:
    ids = torch.tensor(prompts)
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=how.beams, num_return_sequences=n, do_sample=False,
        max_new_tokens=12, length_penalty=how.length_penalty, early_stopping=how.early_stopping,
        eos_token_id=sorted(ends), pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    cut = []
    for row in out.sequences[:, ids.shape[1] :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        cut.append(row[:end])
    return cut, out.sequences_scores.tolist()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize(("beams", "n", "every"), [(3, 2, 9), (5, 5, 4), (4, 1, 2)])
def test_beams_equal_transformers(
    early_stopping: Any, length_penalty: float, beams: int, n: int, every: int,
    pair: tuple[GPTModel, hf.PreTrainedModel],
) -> None:  # fmt: skip
    """Five prompts at once; every 9th, 4th or 2nd token ends an answer, so that searches end at different times."""
    model, reference = pair
    how, ends = BeamSearch(beams, length_penalty, early_stopping), frozenset(range(0, 300, every))
    prompts = prompts_of(5, 6)
    ours = answers(model, prompts, how, ends, max_tokens=12, n=n)
    tokens, scores = theirs(reference, prompts, how, ends, n)
    assert [row.tokens for row in ours] == tokens
    for row, score in zip(ours, scores, strict=True):
        assert sum(row.logprobs) / len(row.tokens) ** length_penalty == pytest.approx(score, rel=2e-6, abs=2e-5)


def test_the_comparison_has_answers_of_many_lengths(pair: tuple[GPTModel, hf.PreTrainedModel]) -> None:
    rows = answers(pair[0], prompts_of(5, 6), BeamSearch(5), frozenset(range(0, 300, 9)), max_tokens=12, n=5)
    assert len({len(row.tokens) for row in rows}) >= 5


# Exhaustive search ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def scored(model: GPTModel, prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every continuation of `length` tokens."""
    vocab = model.config.vocab_size
    every = list(itertools.product(range(vocab), repeat=length))
    rows = torch.tensor([[*prompt, *tokens] for tokens in every])
    logprobs = model(rows).log_softmax(-1)[:, len(prompt) - 1 : -1]
    totals = logprobs.gather(2, rows[:, len(prompt) :, None]).sum((1, 2))
    return dict(zip(every, totals.tolist(), strict=True))


def test_wide_beams_find_the_likeliest_of_all_answers(make_model: MakeModel) -> None:
    """With as many beams as there are beginnings nothing is lost: the best n of all 5**4 continuations come out."""
    model = make_model(vocab_size=5)
    rows = answers(model, [[1, 2]], BeamSearch(125, early_stopping="never"), NO_END, max_tokens=4, n=8)
    all_of_them = scored(model, [1, 2], 4)
    best = sorted(all_of_them, key=lambda tokens: -all_of_them[tokens])[:8]
    assert [tuple(row.tokens) for row in rows] == best
    for row in rows:
        assert sum(row.logprobs) == pytest.approx(all_of_them[tuple(row.tokens)], abs=1e-5)


def test_wide_beams_find_the_best_with_ends_and_a_penalty(make_model: MakeModel) -> None:
    model, penalty = make_model(vocab_size=5), 0.7
    ends = frozenset({0})
    scores: dict[tuple[int, ...], float] = {}
    for length in range(1, 5):
        for tokens, total in scored(model, [1, 2], length).items():
            ended = 0 in tokens
            if (ended and tokens.index(0) == length - 1) or (not ended and length == 4):
                scores[tokens] = total / length**penalty
    how = BeamSearch(64, penalty, "never")
    rows = answers(model, [[1, 2]], how, ends, max_tokens=4, n=5)
    assert [tuple(row.tokens) for row in rows] == sorted(scores, key=lambda t: -scores[t])[:5]


# One step by hand -----------------------------------------------------------------------------------------------------


def test_a_step_by_hand() -> None:
    """Two beams; token 0 ends. Of the three best the second ends: scored -1.5/2; beams go on with ranks 1 and 3."""
    search = Search(0, [1], 10, BeamSearch(2))
    search.open = [Hypothesis([5], [-1.0], -1.0), Hypothesis([6], [-1.2], -1.2)]
    parents = search.step([(-1.1, 1, 7), (-1.5, 0, 0), (-1.6, 0, 8), (-1.7, 1, 0)], lambda tokens: tokens[-1] == 0)
    assert parents == [1, 0]
    assert [(h.tokens, h.total) for h in search.open] == [([6, 7], -1.1), ([5, 8], -1.6)]
    # The fourth candidate ends too, but is not among the best two.
    assert [(h.tokens, h.score) for h in search.whole] == [([5, 0], -0.75)]
    assert not search.done


# Behaviour ------------------------------------------------------------------------------------------------------------


def test_a_search_does_not_depend_on_its_companions(make_model: MakeModel) -> None:
    model, how, ends = make_model(), BeamSearch(3), frozenset(range(0, 300, 7))
    prompts = [prompts_of(1, length)[0] for length in (3, 9, 5, 1, 20)]
    together = answers(model, prompts, how, ends, max_tokens=10, n=2)
    alone = [answers(model, [prompt], how, ends, max_tokens=10, n=2) for prompt in prompts]
    assert [row.tokens for row in together] == [row.tokens for rows in alone for row in rows]


def test_one_beam_is_greedy(make_lm: MakeLM) -> None:
    lm, sampling = make_lm(), SamplingParams(max_tokens=15, temperature=0)
    ours = LocalSampler(lm, decoding=BeamSearch(1)).generate(["abcd", "cab"], sampling)
    greedy = LocalSampler(lm).generate(["abcd", "cab"], sampling)
    assert [c.tokens for c in ours] == [c.tokens for c in greedy]
    for one, other in zip(ours, greedy, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_stop_string_ends_an_answer(make_lm: MakeLM) -> None:
    lm = make_lm()
    sampler = LocalSampler(lm, decoding=BeamSearch(3), batch_size=4)
    free = sampler.generate(["abcd", "deaf", "cab"], SamplingParams(max_tokens=12, n=2))
    assert len(free) == 6
    text = next(c.text for c in free if len(c.text.strip("�")) > 4)
    stop = text.strip("�")[2]
    for done in sampler.generate(["abcd", "deaf", "cab"], SamplingParams(max_tokens=12, n=2, stop=(stop,))):
        assert stop not in done.text


def test_the_context_bounds_a_search(make_model: MakeModel) -> None:
    model = make_model(n_ctx=16)
    rows = answers(model, [[3] * 14, [3] * 4], BeamSearch(3), NO_END, max_tokens=9)
    assert [len(row.tokens) for row in rows] == [2, 9]


def test_a_prompt_whose_logits_are_not_finite_fails_alone(make_lm: MakeLM) -> None:
    lm = make_lm()
    with torch.no_grad():
        lm.model.embed.weight[lm.tokenizer.encode("g")[0]] = float("nan")
    sampler = LocalSampler(lm, decoding=BeamSearch(3))
    with pytest.raises(GenerationError, match=r"prompt 1, answer 0: the model's logits are not finite") as caught:
        sampler.generate(["abcd", "g", "cab"], SamplingParams(max_tokens=5, n=2))
    kept = caught.value.completions
    assert [done is None for done in kept] == [False, False, True, True, False, False]
    assert set(caught.value.errors) == {2, 3}
    alone = sampler.generate(["cab"], SamplingParams(max_tokens=5, n=2))
    assert [done.tokens for done in alone] == [done.tokens for done in kept[4:] if done is not None]


@pytest.mark.parametrize("fields", [{"beams": 0}, {"length_penalty": float("nan")}, {"early_stopping": "often"}])
def test_impossible_searches_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(fields))} is .* allowed: "):
        BeamSearch(**fields)


def test_what_a_search_cannot_follow_is_refused(make_lm: MakeLM) -> None:
    sampler = LocalSampler(make_lm(), decoding=BeamSearch(2))
    with pytest.raises(SamplerError, match="n is 3, but a search with 2 beams ends with at most 2 answers"):
        sampler.generate(["ab"], SamplingParams(n=3))
    with pytest.raises(SamplerError, match="beam search does not go with top_k, constraint"):
        sampler.generate(["ab"], SamplingParams(top_k=3, constraint=Constraint.regex("a")))
