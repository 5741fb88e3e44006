"""Learning a game from demonstrations and preferences, and what it is compared with: one agent, one seed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alignlab.align.atari.acting import Acting, LatestFrames
from alignlab.align.atari.agent import Agent
from alignlab.align.atari.arms import ARMS, Arm
from alignlab.align.atari.demonstrations import record_demonstrations
from alignlab.align.atari.environments import AtariGames
from alignlab.align.atari.questions import Log, Questions, Round
from alignlab.align.atari.replay import Episodes, Replay
from alignlab.align.atari.settings import AtariSettings
from alignlab.align.trajectories.teacher import SyntheticTeacher, Teacher
from alignlab.core.config import require
from alignlab.core.rng import derive_seed

LOOK_EVERY = 500
"""Updates after which the loss is looked at."""
TEST_RANDOM = 0.01
"""Share of random actions when an agent is tested, which keeps a rally from going on for ever."""


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    agent: Agent
    demonstrations: Episodes | None
    curve: list[tuple[int, float]]
    """(steps, or updates where nothing was played; mean score of a few episodes)."""
    rounds: list[Round]
    """Of questions."""
    steps: int
    """Played; fewer than asked for where the time was up."""
    seconds: float
    """From the beginning, evaluations included."""
    in_time: bool
    """False where the time was up before the steps were done."""


def learn_atari(
    settings: AtariSettings,
    arm: str,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    teacher: Teacher | None = None,
    log: Log | None = None,
    seconds: float | None = None,
) -> Learned:
    """Train one agent of an arm. With `seconds` it stops when they are over, and says so.

    Ibarz et al. 2018, algorithm 1: imitate the demonstrations; play a little; ask about those clips and fit a reward
    model; then play, learn and ask on. Deviations: see docs/atari.md.
    """
    require(arm in ARMS, "arm", arm, ", ".join(ARMS))
    clock = _Clock(seconds)
    what = ARMS[arm]
    shown = None
    if what.demonstrations:
        shown = record_demonstrations(
            settings.game, steps=settings.demonstrated, slips=settings.slips, seed=seed, size=settings.size,
            most_steps=settings.most_steps,
        )  # fmt: skip
    games = AtariGames(
        settings.game, settings.copies, seed=derive_seed(seed, "games"), threads=settings.threads, size=settings.size,
        most_steps=settings.most_steps,
    )  # fmt: skip
    replay = Replay(
        settings.copies, settings.size, settings.replay, shown, hide_ends=what.reward == "learned", device=device
    )
    agent = Agent(games.actions, settings.agent, size=settings.size, seed=seed, device=device)
    curve = _Curve(settings, agent, seed, device, log)
    if what.reward == "none":
        imitate(agent, replay, settings.imitation_alone, settings.evaluations, curve, clock)
        return Learned(agent, shown, curve.points, [], 0, clock.spent(), not clock.over())
    if shown is not None:
        imitate(agent, replay, settings.imitation, 1, curve if log is not None else None, clock)
        agent.updates = 0
    questions = None
    if what.reward == "learned":
        questions = Questions(settings, what, teacher or SyntheticTeacher(), replay, seed=seed, log=log)
    steps = _play(settings, what, agent, games, replay, questions, curve, clock)
    rounds = [] if questions is None else questions.rounds
    return Learned(agent, shown, curve.points, rounds, steps, clock.spent(), steps >= settings.steps)


def imitate(agent: Agent, replay: Replay, updates: int, points: int, curve: _Curve | None, clock: _Clock) -> None:
    """Updates by the margin's loss on what was demonstrated, measured `points` times on the way."""
    due = {round(updates * (i + 1) / points) for i in range(points)}
    for done in range(1, updates + 1):
        loss = agent.imitate(replay)
        if done % LOOK_EVERY == 0:
            agent.check(loss)
        if done in due and curve is not None:
            curve.measure(done if points > 1 else 0)
        if clock.over():
            break
    agent.target.load_state_dict(agent.online.state_dict())


def _play(
    settings: AtariSettings,
    arm: Arm,
    agent: Agent,
    games: AtariGames,
    replay: Replay,
    questions: Questions | None,
    curve: _Curve,
    clock: _Clock,
) -> int:
    """Play, learn, ask; the steps played."""
    device, warm, steps = replay.frames.device, settings.first_steps, 0
    shares = settings.agent.random_shares(settings.copies, device)
    acting = Acting(agent, settings.copies, settings.size, shares, device)
    latest = acting.latest
    latest.take(games.reset(), np.ones(settings.copies, dtype=bool))
    while steps < settings.steps and not clock.over():
        actions = acting.choose(questions.model if questions is not None and len(questions.model) else None)
        games.send(actions.cpu().numpy())
        if steps >= warm:  # while the threads play
            for _ in range(settings.updates):
                loss = agent.learn(replay, arm.reward)
                if agent.updates % LOOK_EVERY == 0:
                    agent.check(loss)
        step = games.receive()
        rewards, ends = torch.from_numpy(step.rewards).to(device), torch.from_numpy(step.ends).to(device)
        replay.add(latest.frames, latest.first, actions, rewards, acting.learned, ends)
        latest.take(step.frames, step.ends)
        begun = steps >= warm
        steps += settings.copies
        if questions is not None and steps >= warm:
            questions.go_on(steps) if begun else questions.begin()
        curve.at(steps)
    if questions is not None and len(questions.model):
        questions.look(steps)
    return steps


@torch.no_grad()
def evaluate(
    agent: Agent | None, settings: AtariSettings, *, episodes: int, seed: int, device: torch.device | str = "cpu"
) -> NDArray[np.float64]:
    """Score of whole episodes, one of each copy; None plays at random."""
    games = AtariGames(
        settings.game, episodes, seed=seed, threads=settings.threads, size=settings.size, most_steps=settings.most_steps
    )
    rng = np.random.default_rng(derive_seed(seed, "random actions"))
    latest = LatestFrames(episodes, settings.size, device)
    latest.take(games.reset(), np.ones(episodes, dtype=bool))
    scores, over = np.zeros(episodes), np.zeros(episodes, dtype=bool)
    while not over.all():
        any_action = rng.integers(games.actions, size=episodes)
        if agent is None:
            actions = any_action
        else:
            best = agent.online(latest.look()).argmax(dim=1).cpu().numpy()
            actions = np.where(rng.random(episodes) < TEST_RANDOM, any_action, best)
        step = games.step(actions)
        scores += np.where(over, 0.0, step.rewards)
        latest.take(step.frames, step.ends)
        over |= step.ends
    return scores


class _Clock:
    """Whether the time is up."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    def spent(self) -> float:
        return time.monotonic() - self.started

    def over(self) -> bool:
        return self.seconds is not None and self.spent() > self.seconds


class _Curve:
    """Measures the score now and then, on episodes of its own."""

    def __init__(
        self, settings: AtariSettings, agent: Agent, seed: int, device: torch.device | str, log: Log | None
    ) -> None:
        self.settings, self.agent, self.device, self.log = settings, agent, device, log
        self.seed = derive_seed(seed, "curve")
        self.points: list[tuple[int, float]] = []
        self._every = settings.steps / settings.evaluations
        self._next = self._every

    def at(self, steps: int) -> None:
        """Measure where a point is due."""
        if steps >= self._next:
            self._next += self._every
            self.measure(steps)

    def measure(self, step: int) -> None:
        """One point."""
        scores = evaluate(
            self.agent, self.settings, episodes=self.settings.curve_episodes, seed=self.seed, device=self.device
        )
        self.points.append((step, float(scores.mean())))
        if self.log is not None:
            self.log(step, {"score": self.points[-1][1]})
