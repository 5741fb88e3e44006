"""Checkpoints of the loops without a value function.

Randomness needs no state: every draw derives from the seed, the number of the rollout batch and of the attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import TrainingError

if TYPE_CHECKING:
    from alignlab.align.rl.learner import Learner


def save(learner: Learner) -> None:
    """Write what the rest of the training depends on; whole or not at all."""
    assert learner.directory is not None
    state = {"history": learner.history, "method": learner.method, "cursor": learner.cursor}
    state |= {"baseline": learner.baseline, "reward": learner.reward.state_dict()}
    learner.actor.work.save(learner.directory, learner.step, learner.optimizer, learner.config, state)


def load(learner: Learner) -> bool:
    """Put the newest checkpoint into the learner; False where there is none.

    Raises TrainingError when it is damaged or belongs to another method, model or configuration.
    """
    if learner.directory is None:
        return False

    def check(state: Mapping[str, Any], where: str) -> None:
        method = state.get("method")
        if method != learner.method:
            raise TrainingError(f"checkpoint {where} is not one of {learner.method}: its method is {method!r}")

    found = learner.actor.work.load(learner.directory, learner.optimizer, learner.config, check)
    if found is None:
        return False
    learner.history, learner.step, learner.cursor = list(found["history"]), int(found["step"]), int(found["cursor"])
    learner.baseline = found["baseline"]
    learner.reward.load_state_dict(found["reward"])
    return True
