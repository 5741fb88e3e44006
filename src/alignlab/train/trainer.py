"""The one optimisation loop: every model in the lab is trained by `Trainer.fit`.

An update is: `accumulate` micro-batches, gradients clipped, one AdamW step at the scheduled learning rate. Then it is
logged and, when due, checkpointed. Nothing else happens anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.core.progress import SILENT, Progress
from alignlab.core.rng import derive_seed
from alignlab.train.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from alignlab.train.config import TrainConfig
from alignlab.train.context import seeded, training_mode
from alignlab.train.losses import check_mask
from alignlab.train.optim import make_adamw, trainable_parameters
from alignlab.train.resume import capture, restore
from alignlab.train.schedule import learning_rate_at

if TYPE_CHECKING:
    from alignlab.core.runs import Run

Batch = dict[str, Tensor]
Metrics = dict[str, float]
LossFn = Callable[[nn.Module, Batch], tuple[Tensor, Metrics]]
"""Scalar loss of one micro-batch, and what to log about it.

If the metrics have `tokens`, the loss is taken as a mean over that many tokens: accumulated micro-batches then count in
proportion, so that the update is the gradient of the mean over all their tokens. Without it each counts the same.
"""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    steps: int
    """Updates done, those before an interruption included."""
    final_loss: float
    """Loss of the last update's batch, before that update."""
    history: list[Metrics] = field(repr=False)
    """The logged metrics, each with its `step`, in order."""


class Trainer:
    """Trains the parameters of `model` that require gradients, and stops with an error rather than learn nothing.

    With a `run` its metrics are logged as `<name>/loss` and so on, and checkpoints go to `run.checkpoints/<name>`
    unless `checkpoint_dir` says otherwise. Where that has a checkpoint, `fit` goes on from it and ends in the same bits
    as a training that was never interrupted: batches are a function of their number, and dropout is seeded by it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        config: TrainConfig,
        *,
        run: Run | None = None,
        name: str = "train",
        checkpoint_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.loss_fn, self.config, self.run, self.name = model, loss_fn, config, run, name
        if checkpoint_dir is None and run is not None:
            checkpoint_dir = Path(run.checkpoints) / name
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.progress = SILENT if progress is None else progress
        self.history: list[Metrics] = []

    def fit(self, batch_at: Callable[[int], Batch]) -> TrainResult:
        """Train to `config.steps` updates; `batch_at(i)` is micro-batch number i, the same whenever it is asked.

        Raises:
            TrainingError: a loss, metric or gradient that is not finite, a batch whose `loss_mask` is empty, a loss
                that no trainable parameter influences, or a checkpoint that cannot be written, read or continued.
        """
        config = self.config
        self.parameters = list(trainable_parameters(self.model).values())
        self.device = self.parameters[0].device
        self.optimizer = make_adamw(
            self.model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            beta1=config.beta1,
            beta2=config.beta2,
        )
        start = self._resume()
        label = f"{self.name} from step {start}" if start else self.name
        with training_mode(self.model), self.progress.task(label, config.steps - start, unit="steps") as task:
            for step in range(start + 1, config.steps + 1):
                metrics = self._update(step, batch_at)
                last = step == config.steps
                if last or step % config.log_every == 0:
                    self.history.append({"step": step, **metrics})
                    if self.run is not None:
                        self.run.log(step, {f"{self.name}/{key}": value for key, value in metrics.items()})
                task.advance(1, tokens=int(metrics.get("tokens", 0)))
                if last or (config.checkpoint_every and step % config.checkpoint_every == 0):
                    self._save(step)
        return TrainResult(config.steps, self.history[-1]["loss"], self.history)

    def _update(self, step: int, batch_at: Callable[[int], Batch]) -> Metrics:
        """One optimiser step; `step` counts from 1."""
        config = self.config
        rate = learning_rate_at(
            step - 1,
            peak=config.learning_rate,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            min_lr_ratio=config.min_lr_ratio,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        first = (step - 1) * config.accumulate
        parts = [self._backward(step, i, batch_at(i)) for i in range(first, first + config.accumulate)]
        metrics, total = _mean(parts)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if total != 1.0:
            torch._foreach_div_(gradients, total)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.grad_clip or math.inf)
        metrics |= {"grad_norm": float(norm), "learning_rate": rate}
        self._require_finite(step, metrics)
        self.optimizer.step()
        return metrics

    def _backward(self, step: int, index: int, batch: Batch) -> Metrics:
        """Add one micro-batch's gradient, times its weight, to the parameters' `grad`."""
        batch = {key: value.to(self.device) for key, value in batch.items()}
        if "loss_mask" in batch:
            check_mask(batch["loss_mask"], f"{self.name} at step {step}: loss_mask")
        with seeded(derive_seed(self.config.seed, self.name, index), self.device):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss, metrics = self.loss_fn(self.model, batch)
            if loss.ndim or not loss.requires_grad:
                raise TrainingError(
                    f"{self.name}: the loss must be a scalar that depends on a trainable parameter, "
                    f"but it has shape {tuple(loss.shape)} and requires_grad={loss.requires_grad}"
                )
            metrics = {"loss": float(loss.detach()), **{k: float(v) for k, v in metrics.items() if k != "loss"}}
            self._require_finite(step, metrics)
            weight = metrics.get("tokens", 1.0) if self.config.accumulate > 1 else 1.0
            if weight <= 0:
                raise TrainingError(f"{self.name}/tokens is {weight:g} at step {step}; a batch must have some to learn")
            (loss if weight == 1.0 else loss * weight).backward()
        return metrics

    def _require_finite(self, step: int, metrics: Metrics) -> None:
        for key, value in metrics.items():
            if not math.isfinite(value):
                saved = list_checkpoints(self.checkpoint_dir) if self.checkpoint_dir is not None else []
                rest = f"the last checkpoint is {saved[-1]}" if saved else "nothing was updated in this step"
                raise TrainingError(
                    f"{self.name}/{key} is {value} at step {step}, it must be finite; {rest}, "
                    "a lower learning rate or precision='fp32' may help"
                )

    def _save(self, step: int) -> None:
        if self.checkpoint_dir is not None:
            captured = capture(self.model, self.optimizer, self.config, step, self.history)
            write_checkpoint(self.checkpoint_dir, captured)

    def _resume(self) -> int:
        """Continue from the newest checkpoint; the number of updates already done."""
        self.history = []
        saved = list_checkpoints(self.checkpoint_dir) if self.checkpoint_dir is not None else []
        if not saved:
            return 0
        checkpoint = read_checkpoint(saved[-1])
        self.history = restore(checkpoint, self.model, self.optimizer, self.config, str(saved[-1]))
        return checkpoint.step


def _mean(parts: list[Metrics]) -> tuple[Metrics, float]:
    """Metrics of the whole accumulated batch (means weighted by `tokens`, `tokens` itself summed), and total weight."""
    if len(parts) == 1:
        return dict(parts[0]), 1.0
    if any(part.keys() != parts[0].keys() for part in parts):
        raise TrainingError("the loss function must return the same metrics for every micro-batch of an update")
    weights = [part.get("tokens", 1.0) for part in parts]
    total = math.fsum(weights)
    means = {key: math.fsum(w * p[key] for w, p in zip(weights, parts, strict=True)) / total for key in parts[0]}
    return means | ({"tokens": total} if "tokens" in means else {}), total
