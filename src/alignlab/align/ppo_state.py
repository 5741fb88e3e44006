"""Checkpoints of PPO: adapter, value head, optimiser, KL coefficient and history, in safetensors and JSON.

Randomness needs no state: every draw derives from the seed and the number of the rollout batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import TrainingError

if TYPE_CHECKING:
    from alignlab.align.ppo import PPOTrainer


def save_state(trainer: PPOTrainer, directory: Path) -> None:
    """Write what the rest of the training depends on; whole or not at all."""
    state = {
        "history": trainer.history,
        "kl_coefficient": trainer.kl_controller.coefficient,
        "reward": trainer.reward.state_dict(),
    }
    trainer.work.save(directory, trainer.step, trainer.optimizer, trainer.config, state)


def load_state(trainer: PPOTrainer, directory: Path) -> bool:
    """Put the newest checkpoint of `directory` into the trainer; False where there is none.

    Raises TrainingError when it is damaged or belongs to another model or configuration; then nothing has changed.
    """

    def check(state: Mapping[str, Any], where: str) -> None:
        if not isinstance(state.get("kl_coefficient"), float):
            raise TrainingError(f"checkpoint {where} is not one of PPO: it has no kl_coefficient")

    found = trainer.work.load(directory, trainer.optimizer, trainer.config, check)
    if found is None:
        return False
    trainer.history, trainer.step = list(found["history"]), int(found["step"])
    trainer.kl_controller.coefficient = found["kl_coefficient"]
    trainer.reward.load_state_dict(found.get("reward"))
    return True
