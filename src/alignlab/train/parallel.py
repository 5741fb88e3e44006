"""What `Trainer` asks of the processes it is one of; alone, every answer is the identity.

Gradients that two processes average are those of a *forward pass*: `DistributedDataParallel` and `fully_shard` hook
`Module.forward`. A loss that calls `model.hidden_states(...)` would pass them by, so model and loss are put into one
module, `LossModule`, whose forward takes a batch. An update is then

    compute = parallel.prepare(model, loss_fn)              # before the optimiser: sharding replaces the parameters
    for i, batch in enumerate(micro_batches):
        with parallel.accumulate(compute, last=i == len(micro_batches) - 1):
            loss, metrics = compute(batch)
            (loss * weight).backward()                      # weight: the tokens that the loss is a mean over
    metrics, divisor = parallel.mean(metrics, total_weight) # over ranks
    gradients /= divisor
    norm = parallel.clip(parameters, max_norm)

and its gradient is that of the mean over all tokens of all ranks, however unequal their shares. `model` itself keeps
its class and its parameters' names under every kind; optimiser, averages and checkpoints go on using it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.core.files import append_jsonl

if TYPE_CHECKING:
    from alignlab.train.trainer import Batch, LossFn, Metrics

Kind = Literal["auto", "ddp", "fsdp"]
Number = float | Tensor
Check = Callable[[dict[str, Any], str], None]
"""Looks at a checkpoint's JSON part, and at where it lies, before anything is changed; raises if it is another's."""
T = TypeVar("T")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LossModule(nn.Module):
    """A model and its loss as one module: `forward(batch) -> (loss, metrics)`."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """The loss function's answer about the model on this batch."""
        return self.loss_fn(self.model, batch)


class Parallel:
    """One process on its own. `DataParallel` and `FullyShardedParallel` answer the same questions for several."""

    rank: int = 0
    """This process's number, from 0."""
    world: int = 1
    """How many processes train together."""
    device: torch.device | None = None
    """This process's device; None where it is the model's own."""
    _log: Path | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes the run."""
        return self.rank == 0

    def prepare(self, model: nn.Module, loss_fn: LossFn) -> nn.Module:
        """`compute`, a module: `compute(batch)` stands for `loss_fn(model, batch)` and is what to differentiate.

        Call it before making the optimiser. The model moves to this process's device, and rank 0's weights are
        everybody's.
        """
        return LossModule(model, loss_fn)

    @contextmanager
    def accumulate(self, compute: nn.Module, last: bool) -> Iterator[None]:
        """Around the forward and the backward of one micro-batch: gradients meet in the `last` of an update only."""
        yield

    @contextmanager
    def gathered(self, compute: nn.Module) -> Iterator[None]:
        """Inside, the model can be called without its loss (validation, sampling); every rank has to enter."""
        yield

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale all gradients together to at most `max_norm` (inf: leave them); returns the norm they had."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def mean(self, metrics: Mapping[str, Number], weight: Number) -> tuple[dict[str, Number], Number]:
        """Metrics over all ranks, and what to divide the gradients by that were summed with weights adding to `weight`.

        Metrics are means over ranks weighted by each one's `weight`; `tokens` is their sum. The divisor accounts for
        the averaging over ranks that the gradients have gone through already. Where a number is still on its way from
        a device, so are the answers.
        """
        return dict(metrics), weight

    def save(
        self,
        directory: str | Path,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write the checkpoint `directory/step_<step>`, whole or not at all, and keep the newest two.

        `extra` is JSON; `tensors` is other state, such as averaged weights, in the shapes that the parameters have.

        Raises:
            TrainingError: it cannot be written; earlier checkpoints are as they were.
        """
        from alignlab.train.sharded_checkpoint import save_single

        return save_single(Path(directory), step, model, optimizer, extra, tensors or {})

    def load(
        self,
        directory: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        check: Check | None = None,
    ) -> dict[str, Any] | None:
        """Continue from the newest checkpoint in `directory`, whoever wrote it; its `extra` with `step`, None without.

        A checkpoint of one process, of replicas or of shards loads into each of them at every world size. `tensors`
        are filled in place. `check(extra, where)` runs before anything is changed.

        Raises:
            TrainingError: the checkpoint is damaged or of another model.
        """
        from alignlab.train.sharded_checkpoint import load_newest

        return load_newest(Path(directory), model, optimizer, tensors or {}, check, self)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, which must be plain data."""
        return value

    def collect(self, value: T) -> list[T]:
        """What every rank gave, by rank; plain data. All of them have to call it."""
        return [value]

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` with the parts of all ranks put together, in rank 0's host memory; empty on the others.

        For export: `parallel.whole(model.state_dict())`. One tensor at a time is whole on the device.
        """
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def barrier(self) -> None:
        """Wait until every process is here."""

    def rows(self, batch: Batch) -> Batch:
        """This rank's rows of a batch that every rank has whole.

        Raises:
            ConfigError: the number of ranks does not divide the number of rows.
        """
        size = next(iter(batch.values())).shape[0]
        self.check_batch_size(size)
        own = slice(self.rank * size // self.world, (self.rank + 1) * size // self.world)
        return {key: value[own] for key, value in batch.items()}

    def check_batch_size(self, batch_size: int) -> None:
        """Raises ConfigError unless each rank can get the same number of a batch's rows."""
        if batch_size % self.world:
            divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
            raise ConfigError(
                f"{self.world} processes cannot share a batch of {batch_size} rows evenly; "
                f"start {', '.join(map(str, divisors))} of them, or take a batch size that {self.world} divides"
            )

    def open_log(self, directory: str | Path) -> None:
        """Let ranks other than 0 record their own metrics in `directory/metrics-rank-<rank>.jsonl`."""
        if not self.is_main:
            self._log = Path(directory) / f"metrics-rank-{self.rank}.jsonl"

    def log_local(self, step: int, metrics: Metrics) -> None:
        """Record what this rank alone saw, where `open_log` said; rank 0's part is in the run's own metrics."""
        if self._log is not None:
            append_jsonl(self._log, [{"step": step, **metrics}])

    def fail(self, error: Exception) -> None:
        """What to do before an error is raised: nothing alone; one of several processes ends here."""

    def close(self) -> None:
        """Leave the group of processes."""


def parallel_from_env(kind: Kind = "auto", *, precision: str = "fp32", timeout_seconds: float = 1800.0) -> Parallel:
    """The processes that `torchrun` started this one among, or `Parallel()` where it did not.

    `auto` is one process alone, or replicas (`ddp`) under torchrun. `precision="bf16"` makes `fsdp` gather its shards
    in bfloat16 and reduce in fp32.

    Raises:
        ConfigError: torchrun's variables are missing in part or contradict each other, `kind` needs torchrun and it is
            not there, or this torch lacks the backend for the device.
    """
    require(kind in get_args(Kind), "parallel", kind, ", ".join(get_args(Kind)))
    present = [name for name in _VARIABLES if name in os.environ]
    if not present:
        if kind == "auto":
            return Parallel()
        raise ConfigError(f"parallel {kind!r} needs several processes; start it with torchrun --nproc-per-node N")
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{', '.join(present)} set but {', '.join(missing)} not: torchrun sets all five of its variables, "
            "start it with torchrun, or unset them to train in one process"
        )
    rank, world, local = (_whole(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world < 1 or rank >= world:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {world}; ranks go from 0 to WORLD_SIZE - 1")
    if kind == "auto" and world == 1:
        return Parallel()
    from alignlab.train.ddp import DataParallel
    from alignlab.train.fsdp import FullyShardedParallel

    if kind == "fsdp":
        return FullyShardedParallel(local_rank=local, timeout_seconds=timeout_seconds, precision=precision)
    return DataParallel(local_rank=local, timeout_seconds=timeout_seconds)


@contextmanager
def leaving(parallel: Parallel) -> Iterator[Parallel]:
    """Inside, an error of one of several processes is told and ends that process at once; at the end all part."""
    try:
        yield parallel
    except Exception as error:
        parallel.fail(error)
        raise
    parallel.close()


def restarted() -> bool:
    """Whether torchrun has started these processes again, which then go on with the run that they were in."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _whole(name: str) -> int:
    text = os.environ[name]
    if not text.isdigit():
        raise ConfigError(f"{name} is {text!r}; torchrun sets a whole number")
    return int(text)
