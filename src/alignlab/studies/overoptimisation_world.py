"""The small world of `reward_overoptimisation`: letters, a policy over them, what is wanted, and proxies of that.

Wanted is a sum over the letters of an answer, each with a worth of its own, of pairs of letters that go well or badly
together, and of variety: a letter that recurs is worth less each time. A policy as it begins seldom repeats itself, so
comparisons of its answers say much about the worths and little about variety.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import models

from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.examples import RewardPair
from alignlab.align.reward.training import RewardConfig, train_reward_model
from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.reward_validation.curves import Curve
from alignlab.align.reward_validation.policy_probe import PolicyProbe, probe_curve
from alignlab.align.reward_validation.sampled import Reward, reward_function, sample_rewards
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer, byte_level_core
from alignlab.lm.types import Prompt, SamplingParams
from alignlab.studies.overoptimisation_plan import World
from alignlab.train.config import TrainConfig

LETTERS = string.ascii_lowercase + "12345"
PROMPT = 4
"""Letters of a prompt."""
PROBE = 16
"""Answers to each prompt when a policy in RL is measured."""


@dataclass(frozen=True)
class Gold:
    """What is wanted, as a function of the text."""

    worth: NDArray[np.float64]
    """(letters,)."""
    beside: NDArray[np.float64]
    """(letters, letters), of a letter before another."""
    repetition: float

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """The gold reward of every answer; prompts do not matter."""
        found = []
        for text in answers:
            codes = np.array([LETTERS.index(letter) for letter in text], dtype=np.int64)
            counts = np.bincount(codes, minlength=len(LETTERS))
            again = float((counts * (counts - 1)).sum()) / 2
            between = float(self.beside[codes[:-1], codes[1:]].sum()) if len(codes) > 1 else 0.0
            found.append(float(self.worth[codes].sum()) + between - self.repetition * again)
        return found


def make_gold(world: World, seed: int) -> Gold:
    """The gold reward of a seed."""
    rng, n = np.random.default_rng(derive_seed(seed, "gold")), len(LETTERS)
    return Gold(rng.normal(size=n), world.pairs * rng.normal(size=(n, n)), world.repetition)


def make_policy(world: World, seed: int) -> LanguageModel:
    """A random transformer over letters, whose logits are made sharper."""
    vocabulary = {"<|end|>": 0} | {letter: i + 1 for i, letter in enumerate(LETTERS)}
    core = byte_level_core(models.BPE(vocab=vocabulary, merges=[]))
    core.add_special_tokens(["<|end|>"])
    tokenizer = Tokenizer(core, SpecialTokens(bos=0, eos=0, pad=0, add_bos=True), None)
    config = GPTConfig(
        vocab_size=len(vocabulary), n_ctx=world.answer + PROMPT + 4, d_model=world.width, n_layers=world.layers,
        n_heads=2, d_mlp=2 * world.width, tie_embeddings=False,
    )  # fmt: skip
    model = GPTModel(config, seed=derive_seed(seed, "policy") % 2**31).eval()
    generator = torch_generator(derive_seed(seed, "policy weights"))
    with torch.no_grad():  # wide enough that what comes next depends on what came before
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        model.embed.weight.normal_(0, 1, generator=generator)
        model.head_weight.mul_(world.sharpness)
    return LanguageModel(model, tokenizer, "letters", "made by the study")


def make_prompts(n: int, seed: int, name: str) -> list[Prompt]:
    """Random letters."""
    rng = np.random.default_rng(derive_seed(seed, "prompts", name))
    return ["".join(rng.choice(list(LETTERS), PROMPT)) for _ in range(n)]


def labelled_pairs(lm: LanguageModel, gold: Gold, n: int, world: World, seed: int) -> list[RewardPair]:
    """Comparisons of two answers of the policy to a prompt, as gold sees them; equals are left out."""
    prompts = make_prompts(n + n // 8 + 8, seed, "proxy")
    sampling = SamplingParams(max_tokens=world.answer, n=2, seed=derive_seed(seed, "proxy answers") % 2**31)
    drawn = sample_rewards(LocalSampler(lm, batch_size=512), prompts, {"gold": gold}, sampling, at_a_time=256)
    found = []
    for prompt, (a, b), (x, y) in zip(prompts, drawn.answers, drawn.rewards["gold"], strict=True):
        if x != y:
            found.append(RewardPair(prompt, a, b) if x > y else RewardPair(prompt, b, a))
    return found[:n]


def make_proxy(lm: LanguageModel, pairs: Sequence[RewardPair], seed: int, updates: int, rate: float) -> PreferenceModel:
    """A reward model on the policy's trunk that has learnt from the comparisons; its rewards there have deviation 1."""
    seed = derive_seed(seed, "proxy", len(pairs)) % 2**31
    lora = LoraConfig(rank=8, alpha=16.0, targets=(ALL_LINEAR,), seed=seed)
    model = PreferenceModel(lm, lora=lora, batch_size=512, seed=seed)
    size = min(32, len(pairs))
    train = TrainConfig(learning_rate=rate, weight_decay=0.01, seed=seed)
    config = RewardConfig(epochs=max(1.0, updates * size / len(pairs)), batch_size=size, train=train)
    train_reward_model(model, pairs, config)
    model.fit_normalisation([p.prompt for p in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs])
    return model


def optimised(
    world: World, gold: Gold, proxy: PreferenceModel, held: Sequence[Prompt], config: PPOConfig, *, seed: int
) -> Curve:
    """PPO against the proxy, every weight of the policy free, measured on `held` at about twelve places."""
    policy, reference = make_policy(world, seed), make_policy(world, seed)
    reference.model.requires_grad_(False)
    sampler = LocalSampler(policy, batch_size=1024)
    trainer = PPOTrainer(policy, reward_function(proxy), reference, config, sampler=sampler)
    rewards: dict[str, Reward] = {"proxy": proxy, "gold": gold}
    probe = PolicyProbe(trainer, held, rewards, samples=PROBE, every=max(1, config.steps // 12))
    probe.measure(0)
    trainer.train(make_prompts(64, seed, "rl"), on_step=probe)
    return probe_curve(probe.points.values())


def drawn_rewards(
    lm: LanguageModel, rewards: Mapping[str, Reward], held: Sequence[Prompt], n: int, world: World, seed: int
) -> dict[str, FloatArray]:
    """Rewards of `n` answers of the policy to each prompt, (prompts, n) by the name of the reward."""
    sampling = SamplingParams(max_tokens=world.answer, n=n, seed=derive_seed(seed, "best of n") % 2**31)
    return sample_rewards(LocalSampler(lm, batch_size=1024), held, rewards, sampling, at_a_time=4).rewards


def best_place(curve: Curve) -> tuple[float, float, float]:
    """Where the gold reward is highest: (distance, gold gained, proxy gained).

    Each prompt is measured at the point that is best on the other prompts, since the best of several noisy points looks
    better than it is; means over prompts.
    """
    gold, proxy = curve.gain("gold"), curve.gain("proxy")
    others = (gold.sum(axis=0) - gold).argmax(axis=1)
    rows = np.arange(len(gold))
    return float(curve.distance[others].mean()), float(gold[rows, others].mean()), float(proxy[rows, others].mean())


def kl_for(curve: Curve, gain: float) -> float:
    """The KL at which the mean gold gain first reaches `gain`, between points in a straight line; the largest KL
    measured where it never does."""
    gains, kl = curve.gain("gold").mean(axis=0), np.maximum(curve.kl.mean(axis=0), 0)
    reached = np.flatnonzero(gains >= gain)
    if not len(reached):
        return float(kl.max())
    i = int(reached[0])
    if i == 0:
        return float(kl[0])
    return float(kl[i - 1] + (kl[i] - kl[i - 1]) * (gain - gains[i - 1]) / (gains[i] - gains[i - 1]))
