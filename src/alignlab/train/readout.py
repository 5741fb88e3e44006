"""Numbers of an update on their way from the device, read only when somebody needs them.

Asking a GPU for a number waits until it has done everything before. A training that asks in every update leaves the GPU
without work in between, so the numbers of one update are copied while the next one runs, and read after that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignlab.core.errors import TrainingError
from alignlab.train.observer import Metrics


class Readout:
    """Metrics of one update. Tensors among them are copied to the CPU together, without waiting."""

    def __init__(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        self.step = step
        self.local: Readout | None = None  # what this rank alone saw, where there are others
        self._known = {name: float(value) for name, value in metrics.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
        self._names = list(tensors)
        self._event: torch.cuda.Event | None = None
        self._values: Tensor | None = None
        if tensors:
            values = torch.stack([value.detach().double().reshape(()) for value in tensors.values()])
            if values.is_cuda:
                host = torch.empty(len(values), dtype=values.dtype, pin_memory=True)
                values = host.copy_(values, non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record()
            self._values = values

    def add(self, metrics: Mapping[str, float]) -> None:
        """Numbers that came later, such as those of observers and validation.

        Raises:
            TrainingError: a name is taken.
        """
        for name, value in metrics.items():
            if name in self._known or name in self._names:
                raise TrainingError(f"two sources report a metric {name!r} in one update; rename one of them")
            self._known[name] = float(value)

    def read(self) -> Metrics:
        """All numbers by name; waits for those that are still on their way."""
        if self._values is not None:
            if self._event is not None:
                self._event.synchronize()
            self._known = dict(zip(self._names, self._values.tolist(), strict=True)) | self._known
            self._values, self._names = None, []
        return self._known


def mean_of(
    parts: Sequence[Mapping[str, float | Tensor]],
) -> tuple[dict[str, float | Tensor], float | Tensor]:
    """Metrics of the accumulated batch (means weighted by `tokens`, `tokens` itself summed), and the total weight.

    Raises:
        TrainingError: the micro-batches report different metrics.
    """
    if len(parts) == 1:
        return dict(parts[0]), 1.0
    if any(part.keys() != parts[0].keys() for part in parts):
        raise TrainingError("the loss function must return the same metrics for every micro-batch of an update")
    weights = [part.get("tokens", 1.0) for part in parts]
    total = _sum(weights)
    means = {key: _sum([w * p[key] for w, p in zip(weights, parts, strict=True)]) / total for key in parts[0]}
    return means | ({"tokens": total} if "tokens" in means else {}), total


def _sum(values: Sequence[float | Tensor]) -> float | Tensor:
    if all(isinstance(value, float | int) for value in values):
        return math.fsum(values)  # type: ignore[arg-type]
    return sum(values[1:], start=values[0])
