"""Which clips to ask about, and how many comparisons by when."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from alignlab.align.trajectories.reward_nets import RewardNets
from alignlab.align.trajectories.segments import ClipPool, Segments

Queries = Literal["disagreement", "random"]


def choose_pairs(
    pool: ClipPool, nets: RewardNets | None, count: int, *, candidates: int, rng: np.random.Generator
) -> tuple[Segments, Segments]:
    """`count` pairs of clips to ask about.

    With `nets`, those of `candidates` times as many random pairs on whose answer the members' probabilities vary most
    (Christiano et al. 2017, section 2.2.4); without, random ones.
    """
    drawn = count if nets is None else count * candidates
    clips = pool.draw(2 * drawn, rng)
    first, second = clips.pick(np.arange(drawn)), clips.pick(np.arange(drawn, 2 * drawn))
    if nets is None:
        return first, second
    variance = nets.probabilities(first, second).var(dim=0, correction=0).numpy()
    chosen = np.argsort(-variance, kind="stable")[:count]
    return first.pick(chosen), second.pick(chosen)


def labels_due(step: int, *, steps: int, labels: int, initial: float, annealing: float) -> int:
    """How many of `labels` comparisons to have asked for after `step` of `steps` steps.

    The share `initial` is asked at once, of clips of the untrained agent; the rest at a rate in proportion to
    `a / (step + a)`, a = `annealing` times `steps`, which falls as the reward becomes known (appendix A.1 of the paper,
    where the share is 25 % and a 2 million).
    """
    first = round(labels * initial)
    share = math.log1p(min(step, steps) / (annealing * steps)) / math.log1p(1 / annealing)
    return first + math.floor((labels - first) * share + 1e-9)
