"""The four methods under one name each: their configuration from the flags, and the call that trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from alignlab.align.learning import adapter
from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.rl.answers import Actor
from alignlab.align.rl.config import GRPOConfig, ReinforceConfig, RLConfig, RLOOConfig
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rl.reinforce import train_reinforce
from alignlab.align.rl.rewards import Reward
from alignlab.align.rl.rloo import train_rloo
from alignlab.align.rlhf.config import Method, PolicySettings
from alignlab.core.config import from_dict
from alignlab.core.errors import ConfigError, TrainingError
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed
from alignlab.core.runs import Run
from alignlab.core.yaml_text import parse_yaml
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt
from alignlab.train.parallel import Parallel

MethodConfig = PPOConfig | GRPOConfig | RLOOConfig | ReinforceConfig
CONFIGS: dict[str, type[MethodConfig]] = {
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
    "reinforce": ReinforceConfig,
}
LOOPS: dict[str, Callable[..., Any]] = {"grpo": train_grpo, "rloo": train_rloo, "reinforce": train_reinforce}
OWN = frozenset(field.name for field in fields(PolicySettings)) | {"lora", "seed", "prompts_per_step"}
"""Settings that have a flag, or are derived from one."""


def method_config(method: Method, settings: PolicySettings, seed: int) -> MethodConfig:
    """The configuration of `method`.

    Raises ConfigError for an option that is no NAME=VALUE, that the method does not have or whose value does not fit,
    and for one that has a flag.
    """
    cls, size = CONFIGS[method], settings.batch_size
    known = {field.name for field in fields(cls)}
    named = {name: getattr(settings, name) for name in OWN & known if hasattr(settings, name)}
    values: dict[str, Any] = {
        **named,
        "on_equal_rewards": "skip",
        "reward_time_limit": None,  # `Watched`, which every run puts around its rewards, has the limit
        "lora": adapter(settings.rank, derive_seed(seed, "rl-adapter")),
        "seed": derive_seed(seed, method),
    }
    if method == "ppo":
        values |= {"minibatch_size": max(1, size // 4)}
    else:
        group = 1 if method == "reinforce" else settings.group_size
        values |= {"group_size": group, "prompts_per_step": size // group, "minibatch_size": size}
    values["microbatch_size"] = min(settings.microbatch_size, size)
    for option in settings.options:
        name, value = read_option(option)
        if name in OWN:
            raise ConfigError(f"rl.options names {name}, which rl.{name.replace('_', '-')} or another flag sets")
        values[name] = value
    return from_dict(cls, values, where="rl.options")


def read_option(option: str) -> tuple[str, object]:
    """NAME=VALUE with the value as YAML reads it."""
    name, equals, text = option.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ConfigError(f"rl.options holds {option!r}, allowed: NAME=VALUE, such as clip_high=0.28")
    return name.strip(), parse_yaml(text, f"rl.options {name.strip()}")


def improve(
    method: Method,
    lm: LanguageModel,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: MethodConfig,
    *,
    run: Run | None,
    progress: Progress,
    parallel: Parallel | None = None,
) -> list[dict[str, float]]:
    """Train `lm` in place, logged and resumed in `run`, by all processes of `parallel`, of which one has the run; the
    metrics of every rollout batch.

    Raises TrainingError where no batch had anything to learn from.
    """
    if method == "ppo":
        assert isinstance(config, PPOConfig)
        trainer = PPOTrainer(lm, reward, None, config, run=run, parallel=parallel)
        history = trainer.train(prompts, progress=progress).history
    else:
        assert isinstance(config, RLConfig)
        sampler = sampler_of(lm, batch_size=config.prompts_per_step * config.group_size)
        actor = Actor(lm.model, lm.tokenizer, sampler, parallel=parallel)
        result = LOOPS[method](actor, reward, prompts, config, run=run, progress=progress)
        history = result.history
    if all(row.get("skipped") for row in history):
        last = history[-1]["reward"]
        raise TrainingError(
            f"the rewards were equal in each of the {len(history)} rollout batches (the last: {last:g}), so nothing "
            "was learned: the reward tells no answer from another; use larger groups, other prompts or another reward"
        )
    return history
