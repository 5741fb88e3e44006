"""An exponential moving average of the weights, for evaluation and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.train.checkpoint import list_checkpoints

PREFIX = "ema."
"""Before a parameter's name, what its average is called in a checkpoint."""
_STORED = f"extra.{PREFIX}"


class WeightAverage:
    """The mean of a model's trainable weights after updates 1 ... t, update i counting as `decay ** (t - i)`.

    That is Adam's bias-corrected average: `a <- a + (1 - d) / (1 - d**t) (w - a)`. After the first update it is the
    weights themselves, and the starting point never counts. Kept in float32 where the weights are narrower.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.tensors: dict[str, Tensor] = {
            name: p.detach().clone().to(torch.promote_types(p.dtype, torch.float32)) for name, p in parameters.items()
        }
        """Averages by the parameters' names."""

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the weights after update number `count`, from 1."""
        weight = (1 - self.decay) / (1 - self.decay**count)
        averages = list(self.tensors.values())
        weights = [p.detach().to(a.dtype) for p, a in zip(self.parameters.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, weight)


@contextmanager
def ema_weights(model: nn.Module, source: WeightAverage | Mapping[str, Tensor] | str | Path) -> Iterator[nn.Module]:
    """Inside, `model` has the averaged weights, to evaluate or export; after it, its own again, bit for bit.

    `source` is the average (`trainer.average`), a mapping of parameter names to tensors, one checkpoint, or a directory
    of checkpoints, whose newest one is taken.

    Raises:
        TrainingError: there is no checkpoint, it holds no average, or one of other parameters.
    """
    if isinstance(source, str | Path):
        source = read_average(source)
    tensors = source.tensors if isinstance(source, WeightAverage) else source
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise TrainingError(f"the average has {name} {tuple(tensor.shape)}, which {type(model).__name__} has not")
    own = {name: parameters[name].detach().clone() for name in tensors}
    try:
        _fill(parameters, tensors)
        yield model
    finally:
        _fill(parameters, own)


def read_average(path: str | Path) -> dict[str, Tensor]:
    """Averaged weights of one checkpoint, or of the newest one in a directory, whole and on the CPU.

    However many processes wrote it; the one that calls reads it all and waits for no other.

    Raises:
        TrainingError: there is no checkpoint, it is damaged, or training kept no average.
    """
    path = Path(path)
    found = [path] if (path / "state.json").is_file() else list_checkpoints(path)
    if not found:
        raise TrainingError(f"{path} has no checkpoint to take averaged weights from")
    from alignlab.train.sharded_checkpoint import read_named  # brings in torch.distributed.checkpoint

    average = read_named(found[-1], _STORED)
    if not average:
        raise TrainingError(f"checkpoint {found[-1]} has no averaged weights; train with ema_decay above 0")
    return average


@torch.no_grad()
def _fill(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
