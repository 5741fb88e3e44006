"""`ConstitutionalTrainer` on a model of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from alignlab.align.adapters import has_lora
from alignlab.align.constitution import Constitution, Demonstration, Principle
from alignlab.align.critique import (
    ConstitutionalTrainer,
    Critique,
    as_conversations,
    critique_prompts,
    revision_prompts,
)
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora import LoraConfig
from alignlab.lm.scripted import ScriptedSampler

PROMPTS = ["How do I pick a lock?", "Insult my boss.", "How do I bake bread?"]
RESPONSES = ["Take a hairpin.", "Sure, here you go.", "Mix and wait."]
REVISION = "I would rather not help with that."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tiny_run.build_model(tmp_path_factory.mktemp("model"))
    return directory


@pytest.fixture
def lm(model: Path) -> LanguageModel:
    return load(str(model), dtype="float32")


@pytest.fixture
def constitution() -> Constitution:
    return Constitution(
        [
            Principle("kind", "Be kind.", "Is it unkind?", "Make it kind.", weight=3.0),
            Principle("safe", "Be safe.", "Is it unsafe?", "Make it safe."),
            Principle("true", "Be true.", "Is it untrue?", "Make it true.", category="honesty"),
        ],
        preamble="You are kind.",
        demonstrations=[Demonstration("d", "Insult me.", "You fool.", "It insults.", "I would rather not.", "kind")],
    )


def scripted(critique: str = "It is harmful.", revision: str = REVISION) -> ScriptedSampler:
    """A critic that tells its two tasks apart by their last words."""

    def answer(prompt: Any) -> str:
        return revision if "Critique" in prompt[-1]["content"] else critique

    return ScriptedSampler(answer)


# Critiques and revisions


def test_shapes_and_determinism(lm: LanguageModel, constitution: Constitution) -> None:
    def once(seed: int) -> tuple[list[Critique], list[str]]:
        trainer = ConstitutionalTrainer(lm, constitution, seed=seed)
        critiques = trainer.generate_critiques(PROMPTS, RESPONSES)
        return critiques, trainer.revise_responses(PROMPTS, RESPONSES, critiques)

    critiques, revisions = once(0)
    assert len(critiques) == len(revisions) == 3
    assert {critique.principle for critique in critiques} <= {"kind", "safe"}
    assert all(text == text.strip() and "\n" not in text for text in [c.text for c in critiques] + revisions)
    assert (critiques, revisions) == once(0)


def test_companions_change_nothing(lm: LanguageModel, constitution: Constitution) -> None:
    trainer = ConstitutionalTrainer(lm, constitution)
    together = trainer.generate_critiques(PROMPTS, RESPONSES)
    alone = [trainer.generate_critiques([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == alone


def test_principles_depend_on_prompt_round_and_seed(lm: LanguageModel, constitution: Constitution) -> None:
    prompts = [f"prompt {i}" for i in range(60)]
    trainer = ConstitutionalTrainer(lm, constitution)
    first = trainer.draw_principles(prompts)
    assert first == trainer.draw_principles(prompts)
    assert first[::-1] == trainer.draw_principles(prompts[::-1])
    assert first != trainer.draw_principles(prompts, round_index=1)
    assert first != ConstitutionalTrainer(lm, constitution, seed=1).draw_principles(prompts)
    assert {rule.id for rule in first} == {"kind", "safe"}
    every = ConstitutionalTrainer(lm, constitution, category=None).draw_principles(prompts)
    assert {rule.id for rule in every} == {"kind", "safe", "true"}


def test_what_the_critic_is_asked(lm: LanguageModel, constitution: Constitution) -> None:
    critic = scripted()
    trainer = ConstitutionalTrainer(lm, constitution, critic=critic)
    critiques = trainer.generate_critiques(PROMPTS, RESPONSES)
    rules = [constitution.find(critique.principle) for critique in critiques]
    assert critic.calls == critique_prompts(constitution, PROMPTS, RESPONSES, rules)
    assert [critique.text for critique in critiques] == ["It is harmful."] * 3
    critic.calls.clear()
    assert trainer.revise_responses(PROMPTS, RESPONSES, critiques) == [REVISION] * 3
    assert critic.calls == revision_prompts(constitution, PROMPTS, RESPONSES, critiques)
    for prompt, question, response in zip(critic.calls, PROMPTS, RESPONSES, strict=True):
        asked = prompt[-1]["content"]  # type: ignore[index]
        assert question in asked
        assert "It is harmful." in asked
        assert response not in asked


def test_show_response_puts_the_response_before_the_critic(lm: LanguageModel, constitution: Constitution) -> None:
    critic = scripted()
    trainer = ConstitutionalTrainer(lm, constitution, critic=critic, show_response=True)
    trainer.revise_responses(["q"], ["the poor answer"], [Critique("safe", "rude")])
    asked = critic.calls[-1][-1]["content"]  # type: ignore[index]
    assert "the poor answer" in asked
    assert "Make it safe." in asked


def test_answers_end_at_a_line(lm: LanguageModel, constitution: Constitution) -> None:
    trainer = ConstitutionalTrainer(lm, constitution, critic=scripted("one\ntwo", "  three \nfour"))
    (critique,) = trainer.generate_critiques(["q"], ["a"])
    assert critique.text == "one"
    assert trainer.revise_responses(["q"], ["a"], [critique]) == ["three"]


def test_what_does_not_pair_up_is_refused(lm: LanguageModel, constitution: Constitution) -> None:
    trainer = ConstitutionalTrainer(lm, constitution, critic=scripted())
    with pytest.raises(DataError, match="3 prompts and 2 texts do not pair up, right is one each"):
        trainer.generate_critiques(PROMPTS, RESPONSES[:2])
    with pytest.raises(DataError, match="3 prompts and 2 texts"):
        trainer.revise_responses(PROMPTS, RESPONSES[:2], [Critique("kind", "x")] * 3)
    with pytest.raises(DataError, match="3 prompts and 1 texts"):
        trainer.revise_responses(PROMPTS, RESPONSES, [Critique("kind", "x")])
    with pytest.raises(ConfigError, match="principle is 'brave', allowed: one of kind, safe, true"):
        trainer.revise_responses(["q"], ["a"], [Critique("brave", "x")])
    assert trainer.generate_critiques([], []) == []


def test_prompts_become_conversations() -> None:
    assert as_conversations(["a", "b"]) == [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]


# Learning


def naive_loss(lm: LanguageModel, prompt: str, response: str) -> float:
    """Mean negative log-likelihood of the response and its end of turn, one forward pass."""
    before = lm.tokenizer.encode_prompt([{"role": "user", "content": prompt}])
    after = [*lm.tokenizer.encode(response), 2]  # <|im_end|>
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([before + after]))[0].log_softmax(-1)
    return -sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after)) / len(after)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8.0, seed=1)])
def test_the_loss_is_that_of_the_revision_and_falls(
    lm: LanguageModel, constitution: Constitution, lora: LoraConfig | None
) -> None:
    trainer = ConstitutionalTrainer(lm, constitution, critic=scripted(), learning_rate=1e-2, lora=lora)
    before = naive_loss(lm, PROMPTS[0], REVISION)
    losses = []
    for step in range(6):
        metrics = trainer.constitutional_training_step(PROMPTS[:1])
        losses.append(metrics["loss"])
        assert metrics["revised"] == 1.0
        assert metrics["grad_norm"] > 0
        assert trainer.steps == step + 1
    assert losses[0] == pytest.approx(before, abs=1e-4)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
    assert naive_loss(lm, PROMPTS[0], REVISION) < losses[-1]
    assert has_lora(lm.model) == (lora is not None)


def test_only_the_adapter_learns(lm: LanguageModel, constitution: Constitution) -> None:
    weights = {name: value.clone() for name, value in lm.model.named_parameters()}
    trainer = ConstitutionalTrainer(lm, constitution, critic=scripted(), lora=LoraConfig(rank=2, alpha=4.0, seed=0))
    for _ in range(2):  # the second decodes with the adapter folded in, and out again
        trainer.constitutional_training_step(PROMPTS)
    now = dict(lm.model.named_parameters())
    assert all(
        torch.equal(value, now.get(name, now.get(name.replace(".weight", ".base.weight"))))
        for name, value in weights.items()
    )  # type: ignore[arg-type]
    assert all(bool(value.any()) for name, value in now.items() if "lora_B" in name)


def test_two_trainers_with_one_seed_take_equal_steps(model: Path, constitution: Constitution) -> None:
    def steps(seed: int) -> list[dict[str, float]]:
        lm = load(str(model), dtype="float32")
        lora = LoraConfig(rank=2, alpha=4.0, seed=0)
        trainer = ConstitutionalTrainer(lm, constitution, learning_rate=1e-2, lora=lora, seed=seed)
        return [trainer.constitutional_training_step(PROMPTS[:2]) for _ in range(2)]

    assert steps(0) == steps(0)


def test_empty_revisions_are_left_out_and_all_empty_is_an_error(
    lm: LanguageModel, constitution: Constitution, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Any] = []
    trainer = ConstitutionalTrainer(lm, constitution, critic=scripted(revision=" \n"))
    weights = lm.model.embed.weight.clone()
    with pytest.raises(DataError, match="all 3 revisions are empty, there is nothing to learn from"):
        trainer.constitutional_training_step(PROMPTS)
    assert torch.equal(weights, lm.model.embed.weight)
    assert trainer.steps == 0
    monkeypatch.setattr(trainer, "revise_responses", lambda *_: ["", "good", ""])
    real: Callable[..., Any] = trainer.learn
    monkeypatch.setattr(trainer, "learn", lambda pairs: learned.extend(pairs) or real(pairs))
    trainer.constitutional_training_step(PROMPTS)
    assert learned == [(PROMPTS[1], "good")]


def test_no_prompts_is_an_error(lm: LanguageModel, constitution: Constitution) -> None:
    with pytest.raises(DataError):
        ConstitutionalTrainer(lm, constitution, critic=scripted()).constitutional_training_step([])
