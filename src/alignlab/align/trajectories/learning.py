"""Learning a reward and a policy at once from preferences between clips: one agent, one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from alignlab.align.trajectories.control import ControlTask, make_task
from alignlab.align.trajectories.policy import Agent, evaluate_agent
from alignlab.align.trajectories.policy_training import PPOSettings, Rollout, collect, train_agent
from alignlab.align.trajectories.queries import Queries, choose_pairs, labels_due
from alignlab.align.trajectories.reward_nets import RewardNets, RewardSettings
from alignlab.align.trajectories.segments import ClipPool, Comparisons
from alignlab.align.trajectories.teacher import SyntheticTeacher, Teacher
from alignlab.core.config import require
from alignlab.core.errors import FeedbackError
from alignlab.core.rng import derive_seed, numpy_generator, torch_generator

TUNED: dict[str, PPOSettings] = {
    "CartPole-v1": PPOSettings(epochs=8, gamma=0.99, lam=0.95, entropy=0.01),
    "Pendulum-v1": PPOSettings(horizon=64, epochs=8, learning_rate=2e-3, gamma=0.9, lam=0.95),
}
"""Settings of PPO found for a task with its true reward; others take the defaults."""

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class LearningSettings:
    """One agent that learns from preferences."""

    env: str = "CartPole-v1"
    """Name of a task of gymnasium."""
    steps: int = 100_000
    """Steps of the task in all, those of the first questions included."""
    labels: int = 700
    """Comparisons to ask for."""
    length: int = 25
    """Steps of a clip."""
    queries: Queries = "disagreement"
    """Ask where the ensemble disagrees, or at random."""
    candidates: int = 10
    """Pairs looked at for each that is asked."""
    round_size: int = 35
    """Comparisons asked at once after the first."""
    initial: float = 0.25
    """Share of the comparisons asked at the beginning, about the untrained agent."""
    annealing: float = 0.2
    """How slowly the rate of questions falls, as a share of the steps."""
    pool_steps: int = 8192
    """Latest steps that questions are about."""
    evaluations: int = 10
    """Points of the curve of true returns."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    """The reward networks."""
    ppo: PPOSettings | None = None
    """How the agent learns; none: what suits the task."""

    def __post_init__(self) -> None:
        for name in ("steps", "labels", "length", "candidates", "round_size", "pool_steps", "evaluations"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        require(0 < self.initial <= 1, "initial", self.initial, "a number above 0 and up to 1")
        require(self.annealing > 0, "annealing", self.annealing, "a positive number")

    def policy_settings(self) -> PPOSettings:
        """Those given, or those of the task."""
        return self.ppo or TUNED.get(self.env, PPOSettings())


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    agent: Agent
    nets: RewardNets | None
    curve: list[tuple[int, float]]
    """(steps, mean true return of likeliest actions)."""
    comparisons: Comparisons | None
    correlation: float | None
    """Pearson's, of learned and true returns of clips that were not asked about, from all of the training."""


def learn_with_true_reward(settings: LearningSettings, *, seed: int, log: Log | None = None) -> Learned:
    """The agent to compare with: the same steps and updates, the task's own reward and its own ends of episodes."""
    ppo = settings.policy_settings()
    task = make_task(settings.env, ppo.copies, seed=derive_seed(seed, "task"))
    agent = Agent(task, seed=derive_seed(seed, "agent"))
    curve = _Curve(settings, agent, seed, log)
    train_agent(
        task, agent, ppo, steps=settings.steps, reward_of=lambda rollout: rollout.rewards, report=curve, seed=seed
    )
    return Learned(agent, None, curve.points, None, None)


def learn_from_preferences(
    settings: LearningSettings, teacher: Teacher | None = None, *, seed: int, log: Log | None = None
) -> Learned:
    """An agent that never sees the task's reward: it asks a teacher, fits reward networks, and follows them.

    Christiano et al. 2017, section 2.2. Episodes have no ends but time limits (`make_task`, continuing). Raises
    FeedbackError where the teacher says nothing of the first pairs.
    """
    ppo = settings.policy_settings()
    task = make_task(settings.env, ppo.copies, seed=derive_seed(seed, "task"), continuing=True)
    agent = Agent(task, seed=derive_seed(seed, "agent"))
    asking = _Asking(settings, teacher or SyntheticTeacher(), task, seed, log)
    generator, observations, warm = torch_generator(derive_seed(seed, "first")), task.reset(), 0
    while warm < min(settings.pool_steps, settings.steps // 10) or warm < settings.length * ppo.copies:
        rollout, observations = collect(task, agent, observations, ppo.horizon, generator)
        agent.scale.see(rollout.observations)
        asking.take(rollout)
        warm += rollout.rewards.size
    asking.ask(round(settings.labels * settings.initial), choose=False)
    curve = _Curve(settings, agent, seed, log)

    def reward_of(rollout: Rollout) -> np.ndarray:
        asking.take(rollout)
        asking.ask(asking.due() - asking.asked)
        inputs = np.concatenate([rollout.observations, rollout.one_hot(task.actions)], axis=-1)
        rewards = asking.nets.rewards(inputs)
        # Without ends a constant changes nothing that the agent wants, but its value, 1 / (1 - gamma) times as large,
        # would hide what is at stake from the value network.
        return rewards - rewards.mean()

    steps = max(settings.steps - warm, 1)
    train_agent(task, agent, ppo, steps=steps, reward_of=reward_of, report=lambda n: curve(n + warm), seed=seed)
    return Learned(agent, asking.nets, curve.points, asking.comparisons(), asking.correlation())


class _Asking:
    """The side of the reward: clips, questions, answers, networks."""

    def __init__(
        self, settings: LearningSettings, teacher: Teacher, task: ControlTask, seed: int, log: Log | None
    ) -> None:
        self.settings, self.teacher, self.log = settings, teacher, log
        size = task.observation_size + (task.actions or task.action_size)
        self.nets = RewardNets(size, settings.reward, seed=derive_seed(seed, "reward"))
        self.pool = ClipPool(length=settings.length, actions=task.actions, most_steps=settings.pool_steps)
        self.rng = numpy_generator(derive_seed(seed, "questions"))
        self.steps, self.asked = 0, 0
        self._parts: list[Comparisons] = []
        self._unasked = ClipPool(length=settings.length, actions=task.actions, most_steps=settings.steps)
        self._test_rng = numpy_generator(derive_seed(seed, "test clips"))

    def take(self, rollout: Rollout) -> None:
        """Look at what the agent did."""
        self.pool.add(rollout)
        self._unasked.add(rollout)
        self.steps += rollout.rewards.size

    def due(self) -> int:
        """Comparisons to have asked for by now, in whole rounds."""
        settings = self.settings
        due = labels_due(
            self.steps, steps=settings.steps, labels=settings.labels, initial=settings.initial,
            annealing=settings.annealing,
        )  # fmt: skip
        enough = due - self.asked >= settings.round_size or due == settings.labels
        return due if enough else self.asked

    def ask(self, count: int, *, choose: bool = True) -> None:
        """Ask about `count` pairs, and fit the networks to all answers so far."""
        if count <= 0:
            return
        by = self.nets if choose and self.settings.queries == "disagreement" else None
        first, second = choose_pairs(self.pool, by, count, candidates=self.settings.candidates, rng=self.rng)
        labels = self.teacher.judge(first, second, self.rng)
        self.asked += count
        said = np.flatnonzero(~np.isnan(labels))
        if len(said):
            self._parts.append(Comparisons(first.pick(said), second.pick(said), labels[said]))
        if not self._parts:
            raise FeedbackError(f"the teacher said nothing of the first {count} pairs, there is no reward to learn")
        data = self.comparisons()
        begin = len(self._parts) == 1
        train, held = self.nets.fit(data, steps=3 * self.settings.reward.steps if begin else None)
        if self.log is not None:
            self.log(self.steps, {"labels": len(data), "reward/loss": train, "reward/heldout_loss": held})

    def comparisons(self) -> Comparisons:
        """All answers so far."""
        return Comparisons.join(self._parts)

    def correlation(self, clips: int = 2000) -> float | None:
        """Of learned and true returns over clips from all of the training; None where either does not vary."""
        drawn = self._unasked.draw(clips, self._test_rng)
        learned, true = self.nets.rewards(drawn.inputs).sum(axis=1), drawn.returns
        if learned.std() == 0 or true.std() == 0:
            return None
        return float(np.corrcoef(learned, true)[0, 1])


class _Curve:
    """Measures the true return now and then, on episodes of its own."""

    def __init__(self, settings: LearningSettings, agent: Agent, seed: int, log: Log | None) -> None:
        self.settings, self.agent, self.seed, self.log = settings, agent, derive_seed(seed, "evaluation"), log
        self.points: list[tuple[int, float]] = []
        self._next = settings.steps / settings.evaluations

    def __call__(self, steps: int) -> None:
        if steps < self._next:
            return
        self._next += self.settings.steps / self.settings.evaluations
        returns = evaluate_agent(self.agent, self.settings.env, episodes=16, seed=self.seed)
        self.points.append((steps, float(returns.mean())))
        if self.log is not None:
            self.log(steps, {"return": self.points[-1][1]})


def with_budget(settings: LearningSettings, labels: int) -> LearningSettings:
    """The same with another number of comparisons, in as many rounds."""
    size = max(1, round(settings.round_size * labels / settings.labels))
    return replace(settings, labels=labels, round_size=size)
