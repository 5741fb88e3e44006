"""One world of `reward_overoptimisation`: proxies, best-of-n, PPO, as curves that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alignlab.align.ppo_config import PPOConfig
from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.reward_validation.curves import Curve
from alignlab.align.reward_validation.overoptimisation import measure_overoptimisation
from alignlab.core.rng import derive_seed
from alignlab.studies.overoptimisation_plan import Plan
from alignlab.studies.overoptimisation_world import (
    drawn_rewards,
    labelled_pairs,
    make_gold,
    make_policy,
    make_prompts,
    make_proxy,
    optimised,
)


def experiment(plan: Plan, seed: int) -> dict[str, Any]:
    """Everything measured in the world of a seed: curves by name in deviations of the policy's answers, agreement."""
    world = plan.world
    lm, gold = make_policy(world, seed), make_gold(world, seed)
    pairs = labelled_pairs(lm, gold, plan.proxies[-1], world, seed)
    proxies = {}
    for size in plan.proxies:
        batch = min(32, size)
        updates = max(plan.updates, plan.passes * size // batch)
        proxies[str(size)] = make_proxy(lm, pairs[:size], seed, updates=updates, rate=plan.proxy_rate)
    held = make_prompts(plan.prompts, seed, "held")
    rewards = drawn_rewards(lm, {"gold": gold, **proxies}, held, plan.samples, world, seed)
    wanted = rewards.pop("gold")
    rl = {}
    for name in dict.fromkeys((str(plan.proxies[0]), str(plan.proxies[-1]))):
        config = PPOConfig(
            steps=plan.steps, batch_size=plan.batch, minibatch_size=plan.batch // 2, microbatch_size=plan.batch // 2,
            max_tokens=world.answer, learning_rate=plan.policy_rate, value_learning_rate=1e-2, kl_coefficient=plan.kl,
            max_policy_kl=None, on_equal_rewards="skip", lora=None, seed=derive_seed(seed, "ppo", name) % 2**31,
        )  # fmt: skip
        rl[f"rl, {name}"] = (name, optimised(world, gold, proxies[name], held, config, seed=seed))
    return record_of(rewards, wanted, rl)


def record_of(
    samples: Mapping[str, FloatArray], gold: FloatArray, rl: Mapping[str, tuple[str, Curve]]
) -> dict[str, Any]:
    """The record of a world from rewards of the policy's answers, by proxy, and curves of RL with their proxies."""
    found = measure_overoptimisation(samples, gold, rl)
    curves = {
        name: {
            "kind": curve.kind,
            "at": curve.at.tolist(),
            **{table: np.round(getattr(curve, table), 5).tolist() for table in ("kl", "proxy", "gold")},
        }
        for name, curve in found.curves.items()
    }
    fits = {name: None if fit is None else fit.as_dict() for name, fit in found.fits.items()}
    return {
        "curves": curves,
        "fits": fits,
        "falls": {name: fall.as_dict() for name, fall in found.falls.items()},
        "agreement": {name: share.estimate for name, share in found.agreement.items()},
    }


def curve_of(record: Mapping[str, Any]) -> Curve:
    """The curve of a record."""
    return Curve(record["kind"], *(np.asarray(record[name]) for name in ("at", "kl", "proxy", "gold")))
