"""Replicas: every process has the whole model, and gradients are averaged while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alignlab.train.parallel import LossModule
from alignlab.train.process_group import Ranks

if TYPE_CHECKING:
    from alignlab.train.trainer import LossFn


class DataParallel(Ranks):
    """DistributedDataParallel (Li et al. 2020) around model and loss."""

    unused_parameters: bool = False
    """Set it where some trainable parameter may have no part in a loss; costs a walk over the graph each time."""

    def prepare(self, model: nn.Module, loss_fn: LossFn) -> nn.Module:
        """As `Parallel.prepare` says."""
        model.to(self.device)
        return DistributedDataParallel(
            LossModule(model, loss_fn),
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=self.unused_parameters,
            gradient_as_bucket_view=True,
        )

    @contextmanager
    def accumulate(self, compute: nn.Module, last: bool) -> Iterator[None]:
        """As `Parallel.accumulate` says."""
        assert isinstance(compute, DistributedDataParallel)
        if last:
            yield
        else:
            with compute.no_sync():
                yield
