"""Checkpoints of PPO: adapter, value head, optimiser, KL coefficient and history, in safetensors and JSON.

Randomness needs no state: every draw derives from the seed and the number of the rollout batch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignlab.core.errors import TrainingError
from alignlab.train.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from alignlab.train.resume import capture, restore

if TYPE_CHECKING:
    from alignlab.align.ppo import PPOTrainer


def save_state(trainer: PPOTrainer, directory: Path) -> Path:
    """Write what the rest of the training depends on; whole or not at all."""
    config = cast(Any, trainer.config)  # any config dataclass will do there
    checkpoint = capture(trainer.policy, trainer.optimizer, config, trainer.step, trainer.history)
    own = {"kl_coefficient": trainer.kl_controller.coefficient, "reward": trainer.reward.state_dict()}
    return write_checkpoint(directory, replace(checkpoint, state={**checkpoint.state, **own}))


def load_state(trainer: PPOTrainer, directory: Path) -> bool:
    """Put the newest checkpoint of `directory` into the trainer; False where there is none.

    Raises TrainingError when it is damaged or belongs to another model or configuration; then nothing has changed.
    """
    found = list_checkpoints(directory)
    if not found:
        return False
    checkpoint = read_checkpoint(found[-1])
    coefficient = checkpoint.state.get("kl_coefficient")
    if not isinstance(coefficient, float):
        raise TrainingError(f"checkpoint {found[-1]} is not one of PPO: it has no kl_coefficient")
    config = cast(Any, trainer.config)
    trainer.history = restore(checkpoint, trainer.policy, trainer.optimizer, config, str(found[-1]))
    trainer.step = checkpoint.step
    trainer.kl_controller.coefficient = coefficient
    trainer.reward.load_state_dict(checkpoint.state.get("reward"))
    return True
