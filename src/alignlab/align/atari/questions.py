"""The side of the reward: clips, questions, answers, the model fitted to them, and whether it still says the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from alignlab.align.atari.arms import Arm
from alignlab.align.atari.clip_reward import ClipReward, Clips, draw_clips
from alignlab.align.atari.hacking import Account, account_of
from alignlab.align.atari.replay import Replay
from alignlab.align.atari.settings import AtariSettings
from alignlab.align.trajectories.queries import labels_due
from alignlab.align.trajectories.teacher import Teacher
from alignlab.core.rng import derive_seed, numpy_generator, torch_generator

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Round:
    """After a round of questions: how well the reward model is fitted, and what it says of the agent."""

    step: int
    labels: int
    loss: float | None
    """Of the fit's last updates; None where nothing was fitted."""
    agreement: float | None
    """Share of fresh pairs of the agent's clips, ties aside, that the model orders as the teacher does."""
    correlation: float | None
    """Pearson's, of learned and true returns of fresh clips; None where either does not vary."""
    account: Account
    """Learned and true reward over the time that is kept."""


class Questions:
    """Asks a teacher about the agent's latest clips, on the schedule of `labels_due`."""

    def __init__(
        self, settings: AtariSettings, arm: Arm, teacher: Teacher, replay: Replay, *, seed: int, log: Log | None = None
    ) -> None:
        self.settings, self.arm, self.teacher, self.replay, self.log = settings, arm, teacher, replay, log
        device = replay.frames.device
        self.model = ClipReward(settings.reward, size=settings.size, seed=seed, device=device)
        self.rounds: list[Round] = []
        self.asked = 0
        # One alarm in twenty agents that do no wrong, not one in twenty rounds.
        self._level = 0.05 / (2 + settings.labels * (1 - settings.initial) / settings.round_size)
        self._rng = numpy_generator(derive_seed(seed, "questions"))
        self._generator = torch_generator(derive_seed(seed, "clips"), device)
        self._test = torch_generator(derive_seed(seed, "test clips"), device)

    def begin(self) -> None:
        """The first questions: about the agent that imitates, and the demonstrations if there are any."""
        if self.settings.automatic and self.replay.demonstrated:
            shown = self.replay.filled()[-self.replay.demonstrated :]
            better, worse = (
                self._draw(shown, self.settings.automatic),
                self._draw(self._recent(), self.settings.automatic),
            )
            self.model.add(better, worse, np.ones(self.settings.automatic))
        share = self.settings.initial if self.arm.online else 1.0
        self._ask(round(self.settings.labels * share), self.replay.filled(), step=0)

    def go_on(self, step: int) -> None:
        """Whatever questions are due after that many steps of learning."""
        settings = self.settings
        if not self.arm.online or self.asked >= settings.labels:
            return
        due = labels_due(
            step, steps=settings.steps, labels=settings.labels, initial=settings.initial, annealing=settings.annealing
        )
        if due - self.asked >= settings.round_size or due == settings.labels:
            self._ask(due - self.asked, self._recent(), step=step)

    def look(self, step: int, loss: float | None = None) -> Round:
        """Measure the model on fresh clips of the agent, and set learned against true reward over time."""
        pairs = self.settings.test_pairs
        clips = self._draw(self._recent(), 2 * pairs, self._test)
        with torch.no_grad():
            learned = torch.cat([self.model.sums(part) for part in _parts(clips)]).double().cpu().numpy()
        true = clips.rewards.sum(dim=1).double().cpu().numpy()
        varies = learned.std() > 0 and true.std() > 0
        gap = true[:pairs] - true[pairs:]
        told = np.sign(learned[:pairs] - learned[pairs:])[gap != 0] == np.sign(gap[gap != 0])
        found = Round(
            step, len(self.model), loss, float(told.mean()) if len(told) else None,
            float(np.corrcoef(learned, true)[0, 1]) if varies else None, account_of(self.replay, level=self._level),
        )  # fmt: skip
        self.rounds.append(found)
        if self.log is not None:
            self.log(step, found.account.numbers() | {
                "labels": found.labels, "reward/loss": _number(loss),
                "reward/agreement": _number(found.agreement), "reward/correlation": _number(found.correlation),
            })  # fmt: skip
        return found

    def _ask(self, count: int, slots: torch.Tensor, *, step: int) -> None:
        first, second = self._draw(slots, count), self._draw(slots, count)
        self.model.add(first, second, self.teacher.judge(first.segments(), second.segments(), self._rng))
        self.asked += count
        loss = self.model.fit()
        self.model.relabel(self.replay)
        self.look(step, loss)

    def _recent(self) -> torch.Tensor:
        """The agent's latest steps, ring by ring."""
        own = self.replay.filled(demonstrations=False).reshape(self.replay.copies, -1)
        return own[:, -max(self.settings.length, self.settings.pool_steps // self.replay.copies) :].flatten()

    def _draw(self, slots: torch.Tensor, count: int, generator: torch.Generator | None = None) -> Clips:
        return draw_clips(self.replay, slots, count, self.settings.length, generator or self._generator)


def _parts(clips: Clips, at_a_time: int = 64) -> list[Clips]:
    return [clips.pick(part) for part in torch.arange(len(clips), device=clips.frames.device).split(at_a_time)]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
