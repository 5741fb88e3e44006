"""A policy of a few thousand weights trained twice, once undisturbed and once under kill -9.

    python tiny_rl.py METHOD FOLDER KILLS SEED    METHOD is ppo, grpo, rloo, reinforce or lagrangian

Imports once and forks the processes that are killed, so that a restart costs no second. Prints the number of kills
and whether weights and history are equal.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from killed_children import in_child

from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.rl.config import GRPOConfig, ReinforceConfig, RLOOConfig
from alignlab.align.rl.constrained import CostLimit, LagrangianReward
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rl.reinforce import train_reinforce
from alignlab.align.rl.rewards import Combined, Reward
from alignlab.align.rl.rloo import train_rloo
from alignlab.lm.config import GPTConfig
from alignlab.lm.cpu_step.step import loaded
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig
from alignlab.lm.model import GPTModel
from alignlab.lm.types import Prompt
from alignlab.train.checkpoint import list_checkpoints, read_checkpoint

STEPS = 30
SHARED: dict[str, Any] = {
    "steps": STEPS,
    "max_tokens": 6,
    "learning_rate": 0.01,
    "warmup_steps": 3,
    "schedule": "cosine",
    "lora": LoraConfig(rank=4, targets=("all-linear",)),
    "checkpoint_every": 1,
    "microbatch_size": 8,
    "minibatch_size": 8,
}
GROUPS: dict[str, Any] = {"prompts_per_step": 2, "group_size": 4}


def build_lm() -> LanguageModel:
    spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.CharTokenizer("abcdefghij0123 ")
    size = tokenizer.vocab_size
    config = GPTConfig(vocab_size=size, n_ctx=32, d_model=16, n_layers=1, n_heads=2, d_mlp=32, tie_embeddings=False)
    model = GPTModel(config, seed=0)
    with torch.no_grad():
        model.embed.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    return LanguageModel(model, tokenizer, "tiny", "test")


def vowels(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(sum(c in "aei" for c in text)) for text in responses]


def lengths(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def digits(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(sum(map(str.isdigit, text))) for text in responses]


def reward_of(method: str) -> Reward:
    """Rewards with a memory: running means, and for `lagrangian` a multiplier."""
    both = Combined({"vowels": vowels, "length": lengths}, {"vowels": 1.0, "length": 0.1}, normalise="running")
    return LagrangianReward(both, {"digits": CostLimit(digits, 0.5, rate=0.5)}) if method == "lagrangian" else both


def train(method: str, folder: Path) -> None:
    """Train in `folder`, going on from the newest checkpoint there is."""
    lm, reward, prompts = build_lm(), reward_of(method), ["a", "b", "c"]
    if method == "ppo":
        config = PPOConfig(**SHARED, batch_size=8, kl_target=0.5)
        PPOTrainer(lm, reward, None, config, checkpoint_dir=folder).train(prompts)
    elif method == "rloo":
        train_rloo(lm, reward, prompts, RLOOConfig(**SHARED, **GROUPS, epochs=2), checkpoint_dir=folder)
    elif method == "reinforce":
        train_reinforce(lm, reward, prompts, ReinforceConfig(**SHARED, prompts_per_step=8), checkpoint_dir=folder)
    else:
        settings = GRPOConfig(**SHARED, **GROUPS, equal_groups="resample", on_equal_rewards="skip", kl_in="reward")
        train_grpo(lm, reward, prompts, settings, checkpoint_dir=folder)


def main(method: str, folder: Path, kills: int, seed: int) -> None:
    loaded()  # compile before the clock runs
    started = time.monotonic()
    in_child(lambda: train(method, folder / "whole"))
    duration = time.monotonic() - started
    moments, done = random.Random(seed), 0
    for _ in range(kills):
        done += in_child(lambda: train(method, folder / "killed"), moments.uniform(0, 2 * duration / kills))
    in_child(lambda: train(method, folder / "killed"))
    whole, killed = (read_checkpoint(list_checkpoints(folder / name)[-1]) for name in ("whole", "killed"))
    assert whole.step == killed.step == STEPS
    equal = {
        "weights": all(torch.equal(value, killed.weights[name]) for name, value in whole.weights.items()),
        "optimizer": all(torch.equal(value, killed.optimizer[name]) for name, value in whole.optimizer.items()),
        "state": whole.state == killed.state,
    }
    print(f"{done} kills; {equal}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
