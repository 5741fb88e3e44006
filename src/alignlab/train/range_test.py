"""The learning-rate range test: which rates a model learns at, found in one short ramp (Smith 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from alignlab.core.config import require
from alignlab.core.errors import TrainingError
from alignlab.core.progress import SILENT, Progress
from alignlab.core.rng import derive_seed
from alignlab.train.context import seeded, training_mode
from alignlab.train.optim import make_adamw, set_learning_rate, trainable_parameters
from alignlab.train.trainer import Batch, LossFn


@dataclass(frozen=True)
class RangeTestConfig:
    """How the learning rate rises and when the test is over."""

    lowest: float = 1e-7
    """Learning rate of the first update."""
    highest: float = 1.0
    """Learning rate of the last update; each is the same factor above the one before."""
    steps: int = 100
    """Updates from the lowest to the highest rate."""
    smoothing: float = 0.9
    """Decay of the moving average of the loss, corrected for its start."""
    blow_up: float = 2.0
    """Stop once the smoothed loss has risen above its minimum by this many times what it had fallen."""
    weight_decay: float = 0.0
    """Of the default optimiser, AdamW."""
    precision: str = "fp32"
    """`bf16` runs matrix products in bfloat16 (autocast)."""
    seed: int = 0
    """Seed of dropout and of anything else random inside the loss."""

    def __post_init__(self) -> None:
        require(0 < self.lowest < math.inf, "lowest", self.lowest, "a number above 0")
        require(
            self.lowest < self.highest < math.inf, "highest", self.highest, f"a number above lowest ({self.lowest})"
        )
        require(self.steps >= 10, "steps", self.steps, "a whole number of at least 10")
        require(0 <= self.smoothing < 1, "smoothing", self.smoothing, "a number from 0 to below 1")
        require(0 < self.blow_up < math.inf, "blow_up", self.blow_up, "a number above 0")
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32, bf16")


@dataclass(frozen=True)
class RangeTest:
    """What the ramp showed. Arrays are by update, as many as were done."""

    rates: tuple[float, ...]
    """Learning rates, rising."""
    losses: tuple[float, ...]
    """Loss of each update's batch before the update; the last may be infinite or not a number."""
    smoothed: tuple[float, ...]
    """Moving average of the losses that are finite."""
    turning_point: float | None
    """Rate at which the smoothed loss was lowest; None where it never fell below its start."""
    steepest: float | None
    """Rate at which the smoothed loss fell fastest per factor of the rate, before the turning point."""
    blew_up: bool
    """Whether the loss rose away (or was not finite) before the highest rate."""

    @property
    def suggested(self) -> float | None:
        """A tenth of the turning point: smoothing and momentum make the turn come late, and a training runs longer."""
        return None if self.turning_point is None else self.turning_point / 10


def learning_rate_range_test(
    model: nn.Module,
    loss_fn: LossFn,
    batch_at: Callable[[int], Batch],
    config: RangeTestConfig | None = None,
    *,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    progress: Progress = SILENT,
) -> RangeTest:
    """Train for a few updates at exponentially rising learning rates; the model is then put back as it was.

    Weights, buffers, gradients and modes are restored bit for bit, also when the loss raises. `batch_at(i)` is the
    batch of update i; `make_optimizer` gives another optimiser than AdamW. The range test is of Smith 2017 (Cyclical
    learning rates, section 3.3), who lets the rate rise linearly; an exponential ramp covers several orders.

    Raises:
        TrainingError: the model has nothing to train, the loss is not a scalar that depends on it, or the first loss is
            not finite.
    """
    config = RangeTestConfig() if config is None else config
    device = next(iter(trainable_parameters(model).values())).device
    factor = (config.highest / config.lowest) ** (1 / (config.steps - 1))
    rates: list[float] = []
    losses: list[float] = []
    average = _Average(config.smoothing)
    blew_up = False
    with _restored(model), training_mode(model), progress.task("range test", config.steps, unit="steps") as task:
        optimizer = (
            make_optimizer(model)
            if make_optimizer
            else make_adamw(model, learning_rate=config.lowest, weight_decay=config.weight_decay)
        )
        for step in range(config.steps):
            rate = config.lowest * factor**step
            with seeded(derive_seed(config.seed, "range test", step), device):
                loss = _update(model, loss_fn, batch_at(step), optimizer, rate, config.precision == "bf16")
            rates.append(rate)
            losses.append(loss)
            if step == 0 and not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} before the first update of the range test; it must be finite")
            blew_up = not math.isfinite(loss) or average.add(loss, config.blow_up)
            task.advance()
            if blew_up:
                break
    turning_point, steepest = read_ramp(rates, average.values)
    return RangeTest(tuple(rates), tuple(losses), tuple(average.values), turning_point, steepest, blew_up)


def read_ramp(rates: list[float], smoothed: list[float]) -> tuple[float | None, float | None]:
    """(rate of the lowest smoothed loss, rate of its steepest fall before that); None where it never fell."""
    lowest = int(np.argmin(smoothed))
    if lowest < 2:
        return None, None
    logs, values = np.log(rates[: lowest + 1]), np.asarray(smoothed[: lowest + 1])
    return rates[lowest], rates[int(np.argmin(np.gradient(values, logs)))]


class _Average:
    """Moving average of the loss, and whether it has left."""

    def __init__(self, decay: float) -> None:
        self.decay, self.weight, self.mean = decay, 0.0, 0.0
        self.values: list[float] = []

    def add(self, loss: float, blow_up: float) -> bool:
        """Take in one loss; True once the average has risen by more than `blow_up` times its fall."""
        self.weight = self.decay * self.weight + 1 - self.decay
        self.mean = self.decay * self.mean + (1 - self.decay) * loss
        self.values.append(self.mean / self.weight)
        start, lowest = self.values[0], min(self.values)
        # Where it has hardly fallen, noise must not end the test: a tenth of the loss counts as a fall.
        return self.values[-1] > lowest + blow_up * max(start - lowest, 0.1 * abs(start))


def _update(
    model: nn.Module, loss_fn: LossFn, batch: Batch, optimizer: torch.optim.Optimizer, rate: float, bf16: bool
) -> float:
    """One step at `rate`; the loss before it. Weights that a step made non-finite show in the next loss."""
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    device = optimizer.param_groups[0]["params"][0].device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss, _ = loss_fn(model, {key: value.to(device) for key, value in batch.items()})
    if loss.ndim or not loss.requires_grad:
        raise TrainingError(
            "the loss of the range test must be a scalar that depends on a trainable parameter, "
            f"but it has shape {tuple(loss.shape)} and requires_grad={loss.requires_grad}"
        )
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Trainable parameters, buffers and gradients as they were, whatever happens inside."""
    tensors: list[Tensor] = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None  # so that the gradients kept are not written to
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
