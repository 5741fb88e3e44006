"""A tiny training with every option that has state, for the tests of exact resume; also run as a program and killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.layer_statistics import LayerStatistics
from alignlab.train.noise_scale import GradientNoiseScale
from alignlab.train.observer import Metrics, Observer
from alignlab.train.trainer import Batch, Trainer, TrainResult

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
BASE = TrainConfig(steps=30, learning_rate=0.01, warmup_steps=3, checkpoint_every=4, weight_decay=0.1, seed=5)
OPTIONS: dict[str, dict[str, object]] = {
    "adamw": {},
    "muon": {"optimizer": "muon", "schedule": "wsd"},
    "ema": {"ema_decay": 0.9, "schedule": "linear"},
    "accumulate": {"accumulate": 3, "schedule": "inverse_sqrt"},
    "bf16": {"precision": "bf16"},
    "checkpointed": {"gradient_checkpointing": True, "z_loss": 1e-3},
    "spikes": {"spike_factor": 12.0, "accumulate": 2},
    "everything": {
        "optimizer": "muon",
        "schedule": "wsd",
        "ema_decay": 0.9,
        "accumulate": 2,
        "z_loss": 1e-3,
        "spike_factor": 12.0,
        "gradient_checkpointing": True,
        "validate_every": 7,
    },
}


class Model(GPTModel):
    """A two-layer transformer with dropout after each MLP, whatever the architecture offers."""

    def __init__(self) -> None:
        config = GPTConfig(vocab_size=13, n_ctx=8, d_model=8, n_layers=2, n_heads=2, d_mlp=16, tie_embeddings=False)
        super().__init__(config, seed=3)
        for block in self.blocks:
            block.mlp.register_forward_hook(_drop)  # type: ignore[union-attr]


def _drop(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return nn.functional.dropout(out, 0.1, module.training)


def settings(name: str) -> TrainConfig:
    return TrainConfig(**{**vars(BASE), **OPTIONS[name]})  # type: ignore[arg-type]


def loss_fn(model: nn.Module, batch: Batch, *, z_loss: float = 0.0) -> tuple[Tensor, dict[str, float | Tensor]]:
    loss, metrics = language_model_loss(model, batch, z_loss=z_loss)
    return loss * float(batch["factor"]), metrics


def batch_at(config: TrainConfig) -> Callable[[int], Batch]:
    """A periodic text; with spike detection on, the loss of slot 21 is thrown off."""

    def at(i: int) -> Batch:
        start = int(torch.randint(13, (), generator=torch.Generator().manual_seed(i)))
        tokens = (start + torch.arange(3)[:, None] + 2 * torch.arange(9)) % 13
        spikes = config.spike_factor > 0 and i // config.accumulate == 21
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "factor": torch.tensor(50.0 if spikes else 1.0)}

    return at


def validate(model: nn.Module) -> Metrics:
    return {"validation": float(loss_fn(model, batch_at(BASE)(1000))[0])}


def observers(config: TrainConfig, model: Model) -> list[Observer]:
    """Both that have a state: one averages over all updates, one listens from the update before a measured one."""
    if config.accumulate == 1:  # the noise scale needs two
        return []
    return [LayerStatistics(model, every=5), GradientNoiseScale(decay=0.9)]


def train(name: str, directory: Path, batches: Callable[[int], Batch] | None = None) -> tuple[Model, TrainResult]:
    config, model = settings(name), Model()
    watchers = observers(config, model)
    trainer = Trainer(model, loss_fn, config, checkpoint_dir=directory, validate=validate, observers=watchers)
    return model, trainer.fit(batches or batch_at(config))


def main(name: str, directory: str, pause: str) -> None:
    """Train slowly enough to be killed in between; says when it begins."""
    batches, begun = batch_at(settings(name)), False

    def slowly(i: int) -> Batch:
        nonlocal begun
        if not begun:
            print("training", flush=True)
            begun = True
        time.sleep(float(pause))
        return batches(i)

    train(name, Path(directory), slowly)


if __name__ == "__main__":
    main(*sys.argv[1:])
