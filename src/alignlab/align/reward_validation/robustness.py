"""What edits that should not matter do to a reward: sides that flip, and how far the reward moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.align.pairs import PreferencePair
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.ensemble import RewardEnsemble
from alignlab.align.reward.examples import dialogues
from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.reward_validation.edits import EDITS, Edit, EditKind
from alignlab.align.reward_validation.slices import right_shares
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.lm.types import Prompt
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval

Scores = Callable[[Sequence[Prompt], Sequence[str]], FloatArray]
"""Rewards of responses, before normalisation."""


@dataclass(frozen=True)
class EditEffect:
    """What one edit does, on the comparisons in which it changes a text. Intervals are by dialogue."""

    name: str
    """The edit."""
    kind: EditKind
    """`paraphrase` or `length`."""
    changed: float
    """Share of texts that the edit changes."""
    flips: Interval
    """Both sides edited: share of comparisons in which the other side is preferred then."""
    accuracy_before: Interval
    """Accuracy on these comparisons as they are."""
    accuracy_after: Interval
    """Accuracy with both sides edited."""
    shift: Interval
    """Mean change of the reward of an edited text, in within-pair deviations: above 0 the edit is liked."""
    movement: Interval
    """Mean size of that change."""
    steals: Interval
    """Share of comparisons whose preferred side loses once the edit is given to the other side alone."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {name: value.as_dict() if isinstance(value, Interval) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Robustness:
    """Effects of all edits."""

    pairs: int
    """Comparisons that were edited."""
    deviation: float
    """The unit of movement: root mean square of the standard deviation of the two rewards of a pair, nats."""
    effects: tuple[EditEffect, ...]
    """One an edit that changes something."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**vars(self), "effects": [effect.as_dict() for effect in self.effects]}

    def lines(self) -> list[str]:
        """For the terminal."""
        width = max((len(effect.name) for effect in self.effects), default=0)
        return [
            f"edits of {self.pairs} comparisons; the reward moves in units of {self.deviation:.3g} nats",
            *(
                f"  {e.name:<{width}}  flips {e.flips}  moves {e.movement}  shifts {e.shift}  steals {e.steals}"
                for e in self.effects
            ),
        ]


def measure_robustness(
    scores: Scores | PreferenceModel | RewardEnsemble,
    pairs: Sequence[PreferencePair],
    *,
    edits: Sequence[Edit] = EDITS,
    progress: Progress | None = None,
) -> Robustness:
    """Edit both sides of each pair and score them anew; an edit that changes no text is left out.

    Raises DataError for an empty list, or where the two sides of every pair have the same reward (there is then no unit
    and nothing to flip).
    """
    if not pairs:
        raise DataError("the list of preference pairs is empty, at least one pair is needed")
    score = scores if not isinstance(scores, PreferenceModel | RewardEnsemble) else raw_scores(scores)
    prompts = [pair.prompt for pair in pairs] * 2
    texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    before = np.asarray(score(prompts, texts), dtype=np.float64).reshape(2, -1)
    deviation = float(np.sqrt(np.mean((before[0] - before[1]) ** 2) / 2))
    if not deviation > 0:
        raise DataError("both sides of every pair have the same reward, so nothing can flip")
    groups, effects = np.array(dialogues(pairs)), []
    with (progress or Progress.silent()).task("edits", len(edits), unit="edits") as task:
        for edit in edits:
            edited = edit.apply(texts)
            changed = np.array([new != old for new, old in zip(edited, texts, strict=True)])
            if changed.any():
                after = before.flatten()
                where = np.flatnonzero(changed)
                after[where] = score([prompts[i] for i in where], [edited[i] for i in where])
                effects.append(
                    edit_effect(edit, before, after.reshape(2, -1), changed.reshape(2, -1), deviation, groups)
                )
            task.advance(1)
    return Robustness(len(pairs), deviation, tuple(effects))


def edit_effect(
    edit: Edit,
    before: FloatArray,
    after: FloatArray,
    changed: np.ndarray,
    deviation: float,
    groups: np.ndarray,
) -> EditEffect:
    """From rewards before and after, (2, pairs) with the chosen side first.

    `changed` says which texts the edit changed, `groups` is the dialogue of each pair.
    """
    used = changed.any(axis=0)
    old, new, touched = before[:, used], after[:, used], changed[:, used]
    clusters = groups[used]

    def mean(values: FloatArray, limits: tuple[float, float] | None, where: np.ndarray | None = None) -> Interval:
        inside = np.ones(len(values), dtype=bool) if where is None else where
        names = clusters[inside].tolist()
        return mean_interval(values[inside], clusters=names, limits=limits, n_resamples=2000)

    margins, edited = old[0] - old[1], new[0] - new[1]
    moved = (new - old) / deviation
    size = touched.sum(axis=0)
    # The side that the model prefers stays as it was; the other one is edited.
    first = margins >= 0
    gap = np.abs(margins) - np.where(first, new[1] - old[1], new[0] - old[0])
    other_touched = np.where(first, touched[1], touched[0])
    if not other_touched.any():
        other_touched = np.ones(len(margins), dtype=bool)
    return EditEffect(
        edit.name,
        edit.kind,
        float(changed.mean()),
        mean(((margins > 0) != (edited > 0)).astype(np.float64), (0.0, 1.0)),
        mean(right_shares(margins), (0.0, 1.0)),
        mean(right_shares(edited), (0.0, 1.0)),
        mean((moved * touched).sum(axis=0) / size, None),
        mean((np.abs(moved) * touched).sum(axis=0) / size, None),
        mean((gap < 0).astype(np.float64), (0.0, 1.0), other_touched),
    )


def raw_scores(model: PreferenceModel | RewardEnsemble) -> Scores:
    """Rewards in nats, length correction taken off; of an ensemble the members' mean."""

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        if isinstance(model, RewardEnsemble):
            parts = [part.double().numpy() for part in model.member_rewards(prompts, responses)]
            return np.asarray(np.concatenate(parts, axis=1).mean(axis=1))
        return np.asarray(model.corrected_scores(prompts, responses).double().numpy())

    return score
