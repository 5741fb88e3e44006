"""One update of the weights: micro-batches in, a step of the optimiser out.

`Updater.gradients` runs the micro-batches and returns the update's numbers; `Updater.step` changes the weights. Between
the two the trainer looks at the numbers and may refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.core.rng import derive_seed
from alignlab.train.config import TrainConfig
from alignlab.train.context import seeded
from alignlab.train.ema import WeightAverage
from alignlab.train.losses import check_mask
from alignlab.train.observer import Metrics, Observer, UpdateView, micro_gradients_due
from alignlab.train.optim import make_optimizer, set_learning_rate, trainable_parameters
from alignlab.train.parallel import Parallel
from alignlab.train.precision import AUTOCAST, LossScale
from alignlab.train.readout import Readout, mean_of

if TYPE_CHECKING:
    from alignlab.train.trainer import Batch, LossFn

Numbers = dict[str, float | Tensor]


class Updater:
    """Model, loss, optimiser and what goes with them: loss scale, average of the weights, observers.

    On GPUs without observers nothing here waits for the device (`lazy`): metrics stay tensors, and an update whose
    numbers are not finite is left out on the device itself.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        config: TrainConfig,
        name: str,
        *,
        parallel: Parallel,
        observers: Sequence[Observer] = (),
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.config, self.name, self.parallel, self.observers = model, config, name, parallel, observers
        self.compute = parallel.prepare(model, loss_fn)
        self.parameters = trainable_parameters(model)
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = make_optimizer(model, config, scales)
        self.scale = LossScale(self.device) if config.precision == "fp16" else None
        self.average = WeightAverage(self.parameters, config.ema_decay) if config.ema_decay else None
        self.lazy = self.device.type == "cuda" and not observers
        self._view: UpdateView | None = None
        self._overflowed: Tensor | None = None

    def gradients(self, step: int, slot: int, rate: float, batch_at: Callable[[int], Batch]) -> Readout:
        """Run the micro-batches of data slot `slot`; leaves clipped gradients of their mean loss in the parameters.

        Raises:
            TrainingError: an empty mask, a loss without gradient, or micro-batches that report different metrics.
        """
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        apart = micro_gradients_due(self.observers, step)
        first, count = slot * self.config.accumulate, self.config.accumulate
        parts: list[Numbers] = []
        norms: list[float] = []
        tokens: list[float] = []
        total: list[Tensor | None] = [None] * len(self.parameters)
        for number in range(count):
            last = number == count - 1
            with self.parallel.accumulate(self.compute, apart or last):
                parts.append(self._backward(step, first + number, batch_at(first + number)))
            if apart:
                square, size = self._square_norm(parts[-1])
                norms.append(square)
                tokens.append(size)
                self._set_aside(total, last)
        metrics, local = self._finish(parts)
        self._view = UpdateView(self.model, self.parameters, step, rate, norms, tokens)
        seen, norm = self._clip()
        self._overflowed = norm.isfinite().logical_not()
        if self.lazy and isinstance(metrics["loss"], Tensor):
            self._overflowed |= metrics["loss"].isfinite().logical_not()
        readout = Readout(step, {**metrics, "grad_norm": self._number(norm), "learning_rate": rate})
        if local is not None:
            readout.local = Readout(step, local)
        for report in seen:
            readout.add(report)
        return readout

    def step(self, readout: Readout) -> None:
        """Update the weights with the gradients at hand, and what follows them: scale, average, observers.

        In fp16 gradients that overflowed change nothing but the scale.
        """
        overflowed = self._overflowed
        if self.lazy:
            assert overflowed is not None
            self.optimizer.found_inf = overflowed.float()  # type: ignore[attr-defined]  # as torch's GradScaler does
            self.optimizer.step()
        elif self.scale is None or not bool(overflowed):
            self.optimizer.step()
        if self.scale is not None and overflowed is not None:
            self.scale.update(overflowed)
        if self.average is not None:
            self.average.update(readout.step)
        assert self._view is not None
        for observer in self.observers:
            readout.add(observer.after_update(self._view))

    def _backward(self, step: int, index: int, batch: Batch) -> Numbers:
        """Add one micro-batch's gradient, times its weight and the loss scale, to the parameters' `grad`."""
        if "loss_mask" in batch:
            check_mask(batch["loss_mask"], f"{self.name} at step {step}: loss_mask")
        batch = {key: self._place(value) for key, value in batch.items()}
        stream = (self.name, index) if self.parallel.rank == 0 else (self.name, index, self.parallel.rank)
        precision = self.config.precision
        with seeded(derive_seed(self.config.seed, *stream), self.device):
            with torch.autocast(self.device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                loss, reported = self.compute(batch)
            if loss.ndim or not loss.requires_grad:
                raise TrainingError(
                    f"{self.name}: the loss must be a scalar that depends on a trainable parameter, "
                    f"but it has shape {tuple(loss.shape)} and requires_grad={loss.requires_grad}"
                )
            metrics: Numbers = {"loss": loss, **{key: value for key, value in reported.items() if key != "loss"}}
            metrics = {key: self._number(value) for key, value in metrics.items()}
            weight = self._weight(step, metrics)
            if self.scale is not None:
                weight = weight * self.scale.value
            (loss if isinstance(weight, float) and weight == 1.0 else loss * weight).backward()
        return metrics

    def _place(self, value: Tensor) -> Tensor:
        if self.device.type == "cuda" and value.device.type == "cpu":
            return value.pin_memory().to(self.device, non_blocking=True)
        return value.to(self.device)

    def _number(self, value: float | Tensor) -> float | Tensor:
        value = value.detach() if isinstance(value, Tensor) else value
        return value if self.lazy and isinstance(value, Tensor) else float(value)

    def _weight(self, step: int, metrics: Numbers) -> float | Tensor:
        """What this micro-batch's mean loss counts in the update's."""
        if self.config.accumulate == 1 and self.parallel.world == 1:
            return 1.0
        weight = metrics.get("tokens", 1.0)
        if isinstance(weight, float) and weight <= 0:
            raise TrainingError(f"{self.name}/tokens is {weight:g} at step {step}; a batch must have some to learn")
        return weight

    def _finish(self, parts: list[Numbers]) -> tuple[Numbers, Numbers | None]:
        """Metrics of the update and of this rank's part; gradients divided by what their sum was weighted with."""
        metrics, total = mean_of(parts)
        local = metrics if self.parallel.world > 1 else None
        if local is not None:
            metrics, total = self.parallel.mean(local, local.get("tokens", float(len(parts))))
        if self.scale is not None:
            total = total * self.scale.value
            metrics["loss_scale"] = self._number(self.scale.value)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if isinstance(total, Tensor):
            torch._foreach_div_(gradients, total.to(gradients[0].dtype))  # of another type it would go one by one
        elif total != 1.0:
            torch._foreach_div_(gradients, total)
        return metrics, local

    def _clip(self) -> tuple[list[Metrics], Tensor]:
        """Let observers see the gradients (unless they overflowed), then clip them; returns the norm they had."""
        parameters, seen = list(self.parameters.values()), []
        if self.observers:
            norm = self.parallel.clip(parameters, math.inf)
            if self.scale is None or bool(norm.isfinite()):
                assert self._view is not None
                seen = [observer.before_update(self._view) for observer in self.observers]
        return seen, self.parallel.clip(parameters, self.config.grad_clip or math.inf)

    def _square_norm(self, part: Numbers) -> tuple[float, float]:
        """Squared norm of the gradient at hand, of one micro-batch's mean loss over all ranks, and its tokens."""
        norm = float(self.parallel.clip(list(self.parameters.values()), math.inf))
        local = {key: float(value) for key, value in part.items()}
        weight = local.get("tokens", 1.0)
        means, divisor = self.parallel.mean({"tokens": weight}, weight)
        if self.config.accumulate == 1 and self.parallel.world == 1:
            divisor = 1.0  # the loss was not weighted
        if self.scale is not None:
            divisor *= float(self.scale.value)
        return (norm / float(divisor)) ** 2, float(means["tokens"]) if "tokens" in local else 1.0

    def _set_aside(self, total: list[Tensor | None], last: bool) -> None:
        """Move the gradients at hand into `total`, added up as autograd would have; put the sum back after the last."""
        for i, parameter in enumerate(self.parameters.values()):
            gradient, before = parameter.grad, total[i]
            if gradient is not None:
                total[i] = gradient.clone() if before is None else before.add_(gradient)
            parameter.grad = total[i] if last else None
