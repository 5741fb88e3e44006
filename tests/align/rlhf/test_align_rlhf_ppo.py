"""`PPOTrainer` is called as it was asked for: three models, rewards of responses, a step on a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from alignlab import PPOTrainer
from alignlab.align.advantages import whiten
from alignlab.align.ppo_config import PPOConfig
from alignlab.core.errors import ConfigError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig

CONFIG = PPOConfig(
    steps=2,
    batch_size=8,
    minibatch_size=4,
    max_tokens=6,
    lora=LoraConfig(rank=2, targets=("all-linear",)),
    missing_end_penalty=0.5,
    max_policy_kl=None,
)


def vowels(prompts: list, responses: list[str]) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) + 0.01 * len(text) for text in responses]


def test_rewards_and_steps_by_hand(make_lm: Callable[..., LanguageModel]) -> None:
    model, reference = make_lm(seed=0), make_lm(seed=0)
    trainer = PPOTrainer(model, vowels, reference, CONFIG)
    responses = trainer.generate(["a", "b"] * 4)
    rewards = trainer.compute_rewards(responses)
    cut = torch.tensor([0.5 * (r.completion.finish_reason == "length") for r in responses])
    assert torch.allclose(rewards, torch.tensor(vowels([], [r.completion.text for r in responses])) - cut)
    metrics = trainer.ppo_step(trainer.prepare(responses, rewards))
    assert {"policy_loss", "value_loss", "kl", "entropy", "explained_variance", "clip_fraction"} <= metrics.keys()
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-4)  # the reference is the same model before any step


def test_advantages_are_clipped_after_whitening(make_lm: Callable[..., LanguageModel]) -> None:
    free = PPOTrainer(make_lm(), vowels, None, CONFIG)
    clipped = PPOTrainer(make_lm(), vowels, None, replace(CONFIG, advantage_clip=0.7))
    responses = free.generate(["a", "b"] * 4)
    rewards = free.compute_rewards(responses)
    whole, cut = free.prepare(responses, rewards), clipped.prepare(responses, rewards)
    where = whole.loss_mask[:, 1:]
    assert torch.allclose(whiten(whole.advantages, where)[where], whole.advantages[where], atol=1e-5)
    assert torch.equal(cut.advantages, whole.advantages.clamp(-0.7, 0.7))
    share = float((whole.advantages.abs() > 0.7)[where].float().mean())
    assert 0 < share < 1
    assert cut.metrics["advantages_clipped"] == pytest.approx(share)
    with pytest.raises(ConfigError, match="advantage_clip is 0, allowed: none or a positive number"):
        replace(CONFIG, advantage_clip=0)
