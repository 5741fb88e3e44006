"""Contrastive search equals the definition computed without a cache, and greedy decoding where alpha is 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignlab.core.errors import ConfigError, SamplerError
from alignlab.lm.contrastive import ContrastiveSearch, contrastive_search, most_alike
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.types import GenerationError, SamplingParams

MakeModel = Callable[..., GPTModel]
MakeLM = Callable[..., LanguageModel]
NO_END: frozenset[int] = frozenset()
PROMPTS = [[7, 8, 9, 7, 8], [40], [5] * 12, [100, 3, 250]]


@torch.no_grad()
def naive(model: GPTModel, prompt: list[int], steps: int, top_k: int, alpha: float) -> list[int]:
    """Eq. 5 of Su et al. 2022 word for word: every candidate is read with the whole text before it."""
    text = list(prompt)
    for _ in range(steps):
        states = model.hidden_states(torch.tensor([text]))[0]
        probabilities = model.unembed(states[-1]).softmax(-1)
        scores: dict[int, float] = {}
        for token in probabilities.topk(top_k).indices.tolist():
            candidate = model.hidden_states(torch.tensor([[*text, token]]))[0, -1]
            likeness = max(float(torch.cosine_similarity(candidate, state, dim=0)) for state in states)
            scores[token] = (1 - alpha) * float(probabilities[token]) - alpha * likeness
        text.append(max(scores, key=lambda token: scores[token]))
    return text[len(prompt) :]


def run(
    model: GPTModel, prompts: list[list[int]], how: ContrastiveSearch, ends: frozenset[int] = NO_END, steps: int = 10
) -> Any:
    found = {}
    for moved in contrastive_search(model, prompts, SamplingParams(max_tokens=steps), ends, how):
        found.update({row.index: row for row in moved})
    return [found[i] for i in range(len(prompts))]


WHERE = [(4, 0.6, "gpt2"), (8, 0.3, "llama"), (2, 1.0, "gemma2"), (4, 0.6, "gemma3"), (2, 1.0, "llama")]
MORE = [(k, a, f) for k, a in ((4, 0.6), (8, 0.3), (2, 1.0)) for f in ("gpt2", "llama", "gemma2", "gemma3")]


@pytest.mark.parametrize(
    ("top_k", "alpha", "family"), [pytest.param(*w, marks=() if w in WHERE else pytest.mark.slow) for w in MORE]
)
def test_it_equals_the_definition(top_k: int, alpha: float, family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    rows = run(model, PROMPTS, ContrastiveSearch(top_k, alpha), steps=6)
    assert [row.tokens for row in rows] == [naive(model, prompt, 6, top_k, alpha) for prompt in PROMPTS]


def test_the_penalty_matters_here(make_model: MakeModel) -> None:
    model = make_model()
    plain, contrastive = (run(model, PROMPTS, ContrastiveSearch(4, alpha)) for alpha in (0.0, 0.6))
    assert all(a.tokens != b.tokens for a, b in zip(plain, contrastive, strict=True))


@pytest.mark.parametrize("how", [ContrastiveSearch(5, 0.0), ContrastiveSearch(1, 0.9)])
def test_without_penalty_or_choice_it_is_greedy(how: ContrastiveSearch, make_lm: MakeLM) -> None:
    lm, sampling = make_lm(), SamplingParams(max_tokens=15, temperature=0)
    words = ["abcd", "hag had", "cab" * 7]
    ours = LocalSampler(lm, decoding=how).generate(words, sampling)
    greedy = LocalSampler(lm).generate(words, sampling)
    assert [c.tokens for c in ours] == [c.tokens for c in greedy]
    for one, other in zip(ours, greedy, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert "".join(LocalSampler(lm, decoding=how).stream(words[0], sampling)) == greedy[0].text


def test_likeness_by_hand() -> None:
    """cos((3,4),(1,0)) = 0.6 and cos((3,4),(0,1)) = 0.8; the padded state would have been most alike."""
    history = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]])
    history[0, 0] = float("nan")
    assert most_alike(torch.tensor([[[3.0, 4.0], [-2.0, 0.0]]]), history).tolist() == [[pytest.approx(0.8), 0.0]]


def test_rows_end_by_themselves(make_model: MakeModel) -> None:
    model = make_model(n_ctx=16)
    free = run(model, PROMPTS, ContrastiveSearch())
    assert [len(row.tokens) for row in free] == [10, 10, 4, 10]
    ends = frozenset({free[0].tokens[3], free[3].tokens[1]})
    rows = run(model, PROMPTS, ContrastiveSearch(), ends)
    for row, whole in zip(rows, free, strict=True):
        cut = next((i + 1 for i, token in enumerate(whole.tokens) if token in ends), len(whole.tokens))
        assert row.tokens == whole.tokens[:cut]


def test_a_prompt_whose_logits_are_not_finite_fails_alone(make_lm: MakeLM) -> None:
    lm = make_lm()
    with torch.no_grad():
        lm.model.embed.weight[lm.tokenizer.encode("g")[0]] = float("nan")
    with pytest.raises(GenerationError, match="prompt 0: the model's logits are not finite") as caught:
        LocalSampler(lm, decoding=ContrastiveSearch()).generate(["g", "cab"], SamplingParams(max_tokens=5))
    assert set(caught.value.errors) == {0}
    assert caught.value.completions[1] is not None


def test_impossible_choices_are_refused(make_lm: MakeLM) -> None:
    with pytest.raises(ConfigError, match="top_k is 0, allowed: "):
        ContrastiveSearch(top_k=0)
    with pytest.raises(ConfigError, match=r"alpha is 1.5, allowed: "):
        ContrastiveSearch(alpha=1.5)
    with pytest.raises(SamplerError, match="contrastive search does not go with repetition_penalty"):
        LocalSampler(make_lm(), decoding=ContrastiveSearch()).generate(["a"], SamplingParams(repetition_penalty=1.2))
