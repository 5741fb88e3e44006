"""The sizes of `reward_overoptimisation` at each scale, and of its world."""

from __future__ import annotations

from dataclasses import dataclass, field

from alignlab.studies.study import Scale


@dataclass(frozen=True)
class World:
    """How large everything is. Chosen on other seeds than those reported (see `docs/studies.md`)."""

    answer: int = 6
    """Letters of an answer at most."""
    width: int = 32
    """Of the policy and of the proxies' trunk."""
    layers: int = 1
    sharpness: float = 1.0
    """Scale of the policy's logits at the beginning."""
    pairs: float = 0.5
    """Deviation of what a pair of letters beside each other is worth; a letter's is 1."""
    repetition: float = 3.0
    """What is lost for every pair of equal letters in an answer."""


@dataclass(frozen=True)
class Plan:
    """One scale of the study."""

    seeds: int
    """Worlds."""
    proxies: tuple[int, ...]
    """Comparisons that each proxy learns from, rising. PPO runs against the first and the last."""
    updates: int
    """Updates of a proxy at least."""
    passes: int
    """Passes over the comparisons at least."""
    prompts: int
    """Prompts to measure on."""
    samples: int
    """Answers to each: the largest n."""
    steps: int
    """Batches of PPO."""
    batch: int
    """Answers in each."""
    proxy_rate: float = 3e-3
    policy_rate: float = 3e-3
    kl: float = 0.002
    """KL coefficient of PPO, in deviations of the proxy a nat."""
    world: World = field(default_factory=World)


PLANS: dict[Scale, Plan] = {
    "smoke": Plan(
        seeds=2, proxies=(16, 64), updates=20, passes=1, prompts=4, samples=64, steps=6, batch=32,
        world=World(width=16),
    ),
    "cpu": Plan(seeds=9, proxies=(64, 512), updates=60, passes=6, prompts=8, samples=2048, steps=48, batch=96),
    "gpu": Plan(
        seeds=12, proxies=(64, 256, 1024, 4096), updates=60, passes=8, prompts=16, samples=8192, steps=120, batch=256
    ),
}  # fmt: skip
