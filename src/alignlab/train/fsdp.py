"""Shards: parameters, gradients and optimiser state are divided over the processes, and met a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.train.parallel import LossModule
from alignlab.train.process_group import Ranks

if TYPE_CHECKING:
    from alignlab.train.trainer import Batch, LossFn


class _Sharded(LossModule):
    """A `LossModule` that can be entered without a batch, which lets the root of the sharding set itself up."""

    def forward(self, batch: Batch | None) -> tuple[Tensor, Mapping[str, float | Tensor]] | None:  # type: ignore[override]
        return None if batch is None else super().forward(batch)


class FullyShardedParallel(Ranks):
    """`fully_shard` (FSDP2; Zhao et al. 2023) for each block of the model, and for what is left around them.

    Parameters become `DTensor`s that keep their names and global shapes. A block is gathered when its forward pass
    starts and, with `reshard_after_forward`, dropped after it and gathered again for its backward pass: memory for one
    block at a time. False keeps it in between; a number gathers from that many neighbouring ranks only.
    """

    def __init__(
        self,
        *,
        local_rank: int = 0,
        device: str = "auto",
        timeout_seconds: float = 1800.0,
        precision: str = "fp32",
        reshard_after_forward: bool | int = True,
    ) -> None:
        """`precision="bf16"` gathers and computes in bfloat16, reduces in fp32; the weights that are updated stay fp32.

        Raises as `Ranks` does.
        """
        require(precision in ("fp32", "bf16"), "precision", precision, "fp32 or bf16 with sharded parameters")
        super().__init__(local_rank=local_rank, device=device, timeout_seconds=timeout_seconds)
        self.precision, self.reshard_after_forward = precision, reshard_after_forward

    def prepare(self, model: nn.Module, loss_fn: LossFn) -> nn.Module:
        """As `Parallel.prepare` says. A model on the CPU goes to the GPU block by block, each rank keeping its part."""
        if self.device.type == "cpu" and not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ConfigError(f"shards on the CPU need torch 2.9 or newer, this is {torch.__version__}")
        compute = _Sharded(model, loss_fn)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0)
        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in repeated_blocks(model):
            fully_shard(
                block, mesh=mesh, mp_policy=self._policy(True), reshard_after_forward=self.reshard_after_forward
            )
        fully_shard(compute, mesh=mesh, mp_policy=self._policy(False))
        for module in compute.modules():
            if self.device.type == "cpu" and isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo adds, it cannot average
        compute(None)
        _sharding(compute).reshard()
        return compute

    def _policy(self, cast_inputs: bool) -> MixedPrecisionPolicy:
        if self.precision == "fp32":
            return MixedPrecisionPolicy()
        # Not at the root: a batch's rewards or advantages keep their precision, the embeddings are bfloat16 anyway.
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=cast_inputs
        )

    @contextmanager
    def accumulate(self, compute: nn.Module, last: bool) -> Iterator[None]:
        """As `Parallel.accumulate` says; until the last one each rank holds whole gradients."""
        _sharding(compute).set_requires_gradient_sync(last)
        yield

    @contextmanager
    def gathered(self, compute: nn.Module) -> Iterator[None]:
        """As `Parallel.gathered` says; blocks still come and go one at a time."""
        root = _sharding(compute)
        root.unshard()
        try:
            yield
        finally:
            root.reshard()

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """As `Parallel.clip` says: squares of the local shards, one all-reduce, the shards scaled in place."""
        shards = [_local(p.grad) for p in parameters if p.grad is not None]
        if not shards:
            return torch.zeros((), device=self.device)
        square = torch.stack([norm.double() for norm in torch._foreach_norm(shards, 2.0)]).square().sum()
        dist.all_reduce(square)
        norm = square.sqrt().float()
        if max_norm < math.inf:
            torch._foreach_mul_(shards, (max_norm / (norm + 1e-6)).clamp(max=1.0))  # as clip_grad_norm_ does
        return norm


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """What to shard one by one: the items of the outermost `ModuleList`s and `Sequential`s that have parameters."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found.extend(item for item in child if any(True for _ in item.parameters()))
        else:
            found.extend(repeated_blocks(child))
    return found


def _sharding(compute: nn.Module) -> FSDPModule:
    assert isinstance(compute, FSDPModule)
    return compute


def _local(gradient: Any) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
