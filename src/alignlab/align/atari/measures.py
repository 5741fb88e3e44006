"""What the agents of an experiment score, with intervals over episodes and over seeds, and who is better than whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from alignlab.align.atari.arms import ARMS
from alignlab.align.atari.learning import Learned, evaluate, learn_atari
from alignlab.align.atari.questions import Log
from alignlab.align.atari.settings import AtariSettings
from alignlab.align.trajectories.measures import over_seeds
from alignlab.align.trajectories.teacher import Teacher
from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed
from alignlab.stats.cluster import clustered_interval
from alignlab.stats.interval import Interval
from alignlab.stats.multiplicity import holm_correct
from alignlab.stats.paired import Comparison, compare

METHOD = "preferences+demonstrations"
"""What the others are compared with."""


@dataclass(frozen=True)
class ArmResult:
    """One agent, tested."""

    arm: str
    seed: int
    scores: list[float]
    """Of test episodes; the i-th begins alike for all arms of a seed."""
    random: list[float]
    """Of random actions from the same beginnings."""
    shown: list[float]
    """Scores of the demonstrations, the last of which is cut."""
    curve: list[tuple[int, float]]
    """(steps, mean score of a few episodes)."""
    rounds: list[dict[str, Any]]
    """Of questions: labels, loss, agreement, correlation, learned against true reward."""
    steps: int
    """Played."""
    updates: int
    """Of the agent's network, imitation left out where it goes on to play."""
    seconds: float
    """Of training."""
    in_time: bool
    """False where the time was up before the steps were done."""

    @property
    def alarms(self) -> list[str]:
        """When learned and true reward parted, in words."""
        found = [(r["step"], r["account"]["alarm"]) for r in self.rounds if r["account"]["alarm"]]
        return [f"{self.arm}, seed {self.seed}, step {step}: {told}" for step, told in found]


def measure_arm(
    settings: AtariSettings,
    arm: str,
    *,
    seed: int,
    episodes: int,
    device: torch.device | str = "cpu",
    teacher: Teacher | None = None,
    log: Log | None = None,
    seconds: float | None = None,
) -> tuple[ArmResult, Learned]:
    """Train one agent (`learn_atari`) and test it on `episodes` episodes that no curve has seen."""
    learned = learn_atari(settings, arm, seed=seed, device=device, teacher=teacher, log=log, seconds=seconds)
    test = derive_seed(seed, "test episodes")
    scores = evaluate(learned.agent, settings, episodes=episodes, seed=test, device=device)
    chance = evaluate(None, settings, episodes=episodes, seed=test)
    shown = [] if learned.demonstrations is None else learned.demonstrations.returns.tolist()
    found = ArmResult(
        arm, seed, scores.tolist(), chance.tolist(), shown, learned.curve, [asdict(r) for r in learned.rounds],
        learned.steps, learned.agent.updates, learned.seconds, learned.in_time,
    )  # fmt: skip
    return found, learned


def by_arm(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Results of each arm, in order of seeds; arms in the order of ARMS."""
    names = [name for name in ARMS if any(r.arm == name for r in results)]
    return {name: sorted((r for r in results if r.arm == name), key=lambda r: r.seed) for name in names}


def over_episodes(results: Sequence[ArmResult]) -> Interval:
    """Mean score with Student's t interval over all test episodes of these agents: it says nothing of other agents."""
    scores = [score for result in results for score in result.scores]
    return clustered_interval(scores, range(len(scores)))


def comparisons(results: Sequence[ArmResult], *, method: str = METHOD) -> dict[str, Comparison]:
    """The method against every other arm: differences over test episodes that begin alike, of the seeds both have.

    Positive: the method scores more. Holm's correction over the comparisons. The interval is that of these agents'
    mean difference; for what other seeds would give see `over_seeds`.
    """
    arms = by_arm(results)
    mine = {result.seed: result for result in arms.get(method, [])}
    found = {}
    for name, others in arms.items():
        both = [(other, mine[other.seed]) for other in others if other.seed in mine]
        if name == method or not both:
            continue
        if any(len(a.scores) != len(b.scores) for a, b in both):
            raise DataError(f"{name} and {method} were tested on different numbers of episodes, test both on as many")
        a = np.concatenate([other.scores for other, _ in both])
        b = np.concatenate([own.scores for _, own in both])
        found[f"{method} against {name}"] = compare(a, b)
    return holm_correct(found)


@dataclass(frozen=True)
class ArmRow:
    """The agents of one arm together."""

    arm: str
    seeds: list[int]
    episodes: Interval
    """Mean score with its interval over test episodes."""
    over_seeds: Interval
    """The same over seeds; unbounded for one."""
    steps: float
    """Mean of the agents'."""
    minutes: float
    """Mean of the agents'."""


def arm_rows(results: Sequence[ArmResult]) -> list[ArmRow]:
    """One row an arm."""
    return [
        ArmRow(
            name, [r.seed for r in found], over_episodes(found), over_seeds([float(np.mean(r.scores)) for r in found]),
            float(np.mean([r.steps for r in found])), float(np.mean([r.seconds for r in found])) / 60,
        )
        for name, found in by_arm(results).items()
    ]  # fmt: skip


def random_scores(results: Sequence[ArmResult]) -> Interval:
    """Mean score of random actions, each seed's test episodes counted once."""
    first = {result.seed: result for result in results}.values()
    chance = [score for result in first for score in result.random]
    return clustered_interval(chance, range(len(chance)))


def as_lines(results: Sequence[ArmResult]) -> list[str]:
    """A table, the comparisons, and what there is to warn of."""
    lines = [
        "| agent | seeds | score [over episodes] | score [over seeds] | steps | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for row in arm_rows(results):
        spread = "one seed" if len(row.seeds) == 1 else _shown(row.over_seeds)
        played = f"{row.steps:,.0f} | {row.minutes:.1f}"
        lines.append(f"| {row.arm} | {len(row.seeds)} | {_shown(row.episodes)} | {spread} | {played} |")
    lines.append(f"| random actions | {len({r.seed for r in results})} | {_shown(random_scores(results))} | | | |")
    shown = {r.seed: r.shown for r in results if r.shown}
    if shown:
        told = "; ".join(" ".join(f"{score:g}" for score in scores) for scores in shown.values())
        lines.append(f"demonstrations, by seed (the last episode of each is cut): {told}")
    for name, one in comparisons(results).items():
        p = one.p_value if one.adjusted_p is None else one.adjusted_p
        gap = f"{one.difference.estimate:+.1f} [{one.difference.low:.1f}, {one.difference.high:.1f}]"
        lines.append(f"{name}: {gap}, p = {p:.2g}, {one.verdict}")
    for result in results:
        if result.rounds:
            last = result.rounds[-1]
            lines.append(
                f"reward model, {result.arm}, seed {result.seed}: {last['labels']} labels, right about "
                f"{_share(last['agreement'])} of fresh pairs, correlation {_number(last['correlation'])}"
            )
        if not result.in_time:
            lines.append(f"{result.arm}, seed {result.seed}: the time was up after {result.steps:,} steps")
    alarms = [told for result in results for told in result.alarms]
    return lines + [f"ALARM {told}" for told in alarms] + ([] if alarms else ["no parting of learned and true reward"])


def as_record(results: Sequence[ArmResult]) -> dict[str, Any]:
    """Everything as JSON takes it."""
    arms: Mapping[str, Any] = {
        row.arm: {"over_episodes": row.episodes.as_dict(), "over_seeds": row.over_seeds.as_dict()}
        for row in arm_rows(results)
    }
    compared = {
        name: {"difference": one.difference.as_dict(), "p": one.p_value, "holm": one.adjusted_p, "verdict": one.verdict}
        for name, one in comparisons(results).items()
    }
    return {"arms": arms, "comparisons": compared, "results": [asdict(result) for result in results]}


def _shown(interval: Interval) -> str:
    return f"{interval.estimate:.1f} [{interval.low:.1f}, {interval.high:.1f}], n = {interval.n}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
