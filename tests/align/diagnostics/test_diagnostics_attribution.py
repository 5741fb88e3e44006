"""Parts of a response add up where the reward is a sum, and say by how much they do not where it is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.align.diagnostics.attribution import gradient_attribution, leave_one_out, split
from alignlab.align.preference_model import PreferenceModel
from alignlab.core.errors import ConfigError
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel

spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parents[1] / "conftest.py")
assert spec is not None
assert spec.loader is not None
tiny_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_model)

TEXT = "  Good morning! It is fine,\nis it not?  "
WORTH = {"good": 2.0, "fine,": 0.5, "not?": -1.0}


def additive(prompts: Any, responses: Any) -> list[float]:
    return [3.0 + sum(WORTH.get(word.lower(), 0.0) for word in text.split()) for text in responses]


@pytest.mark.parametrize("unit", ["words", "sentences", "lines"])
@pytest.mark.parametrize("text", [TEXT, "one", "a b c", "A. B? C!\n\nD", "\n", "", "é ü\t中文 字"])
@pytest.mark.parametrize("most", [1, 2, 48])
def test_parts_join_to_the_text(text: str, unit: Any, most: int) -> None:
    parts = split(text, unit, most)
    assert "".join(parts) == text
    assert len(parts) <= most
    assert all(parts)


def test_a_sum_over_words_is_given_back_exactly() -> None:
    found = leave_one_out(additive, "q", TEXT)
    assert found.values == (2.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, -1.0)
    assert (found.total, found.baseline, found.interaction) == (4.5, 3.0, 0.0)


def test_what_counts_only_together_is_interaction() -> None:
    def both(prompts: Any, responses: Any) -> list[float]:
        return [float("red" in text and "blue" in text) for text in responses]

    found = leave_one_out(both, "q", "red or blue")
    assert found.values == (1.0, 0.0, 1.0)
    assert found.interaction == -1.0


def test_sentences_and_something_instead() -> None:
    def dots(prompts: Any, responses: Any) -> list[float]:
        return [float(text.count(".")) for text in responses]

    found = leave_one_out(dots, "q", "One. Two. Three.", unit="sentences", instead="…")
    assert (found.spans, found.values, found.baseline) == (("One. ", "Two. ", "Three."), (1.0, 1.0, 1.0), 0.0)
    with pytest.raises(ConfigError, match="unit"):
        split("a", "letters")  # type: ignore[arg-type]


@pytest.fixture
def model() -> PreferenceModel:
    tokenizer = tiny_model.CharTokenizer("abcdefgh ")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_ctx=32, d_model=16, n_layers=2, n_heads=2, d_mlp=32, tie_embeddings=False
    )
    base = GPTModel(config, seed=0)
    with torch.no_grad():
        base.embed.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    made = PreferenceModel(base, tokenizer=tokenizer, seed=3)
    made.fit_normalisation(["a", "b", "c"], ["abc", "hgf", "dde"])
    return made


def test_a_linear_reward_is_given_back_by_gradients_exactly(
    model: PreferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.randn(model.head.weight.shape[1], generator=torch.Generator().manual_seed(2))
    states = lambda tokens, **_: model.trunk.embed(tokens).cumsum(dim=1)  # noqa: E731
    monkeypatch.setattr(model.trunk, "hidden_states", states)
    with torch.no_grad():
        model.head.weight.copy_(weights[None])
    found = gradient_attribution(model, "abc", "had")
    wanted = (model.trunk.embed.weight @ weights).detach() / model.reward_deviation
    row = model.encode("abc", "had")
    assert list(found.spans)[:3] == ["h", "a", "d"]
    torch.testing.assert_close(torch.tensor(found.values), wanted[row[-4:]], rtol=1e-5, atol=1e-6)
    assert found.interaction == pytest.approx(0.0, abs=1e-4)
    assert found.total == pytest.approx(float(model.score(["abc"], ["had"])), rel=1e-5)


def test_gradients_are_those_of_finite_differences_and_integrated_ones_add_up(model: PreferenceModel) -> None:
    plain = gradient_attribution(model, "c c", "hadbe")
    row, weight, scores = model.encode("c c", "hadbe"), model.trunk.embed.weight, []
    assert plain.total == pytest.approx(float(model.score(["c c"], ["hadbe"])), rel=1e-5)
    kept = weight.detach().clone()
    for factor in (1.01, 0.99):
        with torch.no_grad():  # no letter of the response stands in the prompt
            weight.copy_(kept)[row[-6:]] *= factor
            scores.append(float(model.score(["c c"], ["hadbe"])))
    with torch.no_grad():
        weight.copy_(kept)
    assert sum(plain.values) == pytest.approx((scores[0] - scores[1]) / 0.02, rel=0.02, abs=1e-3)
    coarse, fine = (gradient_attribution(model, "c c", "hadbe", points=points) for points in (2, 64))
    assert abs(fine.interaction) < 0.05 * abs(fine.total - fine.baseline)
    assert abs(fine.interaction) < abs(coarse.interaction)
    assert fine.baseline == plain.baseline
    with pytest.raises(ConfigError, match="PreferenceModel"):
        gradient_attribution(additive, "q", "a")  # type: ignore[arg-type]


def test_the_hook_leaves_with_the_call(model: PreferenceModel) -> None:
    before = model.score(["abc"], ["had"])
    gradient_attribution(model, "abc", "had", points=3)
    assert torch.equal(model.score(["abc"], ["had"]), before)
    assert not model.trunk.embed._forward_hooks
