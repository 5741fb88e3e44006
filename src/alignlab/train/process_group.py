"""What `DataParallel` and `FullyShardedParallel` share: joining the group, means over ranks, checkpoints, leaving.

Tensors on the GPU meet through NCCL; numbers, plain objects and barriers go through gloo, so that a metric that is
already on the host never waits for the device.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignlab.core.config import require
from alignlab.core.errors import AlignlabError, ConfigError, RunError
from alignlab.train.parallel import Check, Number, Parallel
from alignlab.train.sharded_checkpoint import load_newest, save_sharded

T = TypeVar("T")


class Ranks(Parallel):
    """One of several processes. It joins the group that torchrun's variables describe, unless there is one already."""

    device: torch.device

    def __init__(self, *, local_rank: int = 0, device: str = "auto", timeout_seconds: float = 1800.0) -> None:
        """`local_rank` numbers the processes of one machine; each takes the CUDA device of its number.

        Raises:
            ConfigError: there is no such device, or this torch lacks the backend for it.
            RunError: the other processes cannot be reached within the time-out.
        """
        self.device = _own_device(device, local_rank)
        self._ours = not dist.is_initialized()
        if self._ours:
            _join(self.device, timeout_seconds)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def mean(self, metrics: Mapping[str, Number], weight: Number) -> tuple[dict[str, Number], Number]:
        """As `Parallel.mean` says, in one all-reduce of doubles: on the host, or where some of them still are."""
        names = sorted(metrics)
        local = [weight, *(metrics[name] * (1.0 if name == "tokens" else weight) for name in names)]
        waiting = [value.device for value in local if isinstance(value, Tensor)]
        if waiting:
            # Filled in there: a copy from the host would wait for the device.
            wide = [torch.full((), v, dtype=torch.float64, device=waiting[0]) if isinstance(v, float | int) else v
                    for v in local]  # fmt: skip
            sums = torch.stack([value.detach().double() for value in wide])
        else:
            sums = torch.tensor(local, dtype=torch.float64)
        dist.all_reduce(sums)
        total, *rest = sums.unbind() if waiting else sums.tolist()
        summed = dict(zip(names, rest, strict=True))
        means = {name: summed[name] if name == "tokens" else summed[name] / total for name in metrics}
        return means, total / self.world

    def save(
        self,
        directory: str | Path,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """As `Parallel.save` says; each rank writes its part, rank 0 makes it a checkpoint once all have."""
        for buffer in model.buffers():
            dist.broadcast(buffer.detach(), 0)  # running means, say, which every rank takes of its own batches
        return save_sharded(self, Path(directory), step, model, optimizer, extra, tensors or {})

    def load(
        self,
        directory: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        check: Check | None = None,
    ) -> dict[str, Any] | None:
        """As `Parallel.load` says; rank 0 decides which checkpoint is the newest."""
        return load_newest(Path(directory), model, optimizer, tensors or {}, check, self)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, which must be plain data."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collect(self, value: T) -> list[T]:
        """What every rank gave, by rank."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Parallel.whole` says."""
        kept = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # every rank takes part
            if self.is_main:
                kept[name] = full.detach().cpu()
        return kept

    def barrier(self) -> None:
        """Wait until every process is here."""
        dist.all_reduce(torch.zeros(1))  # on the host; dist.barrier would wait for a GPU

    def fail(self, error: Exception) -> None:
        """Tell the error and end this process at once.

        One that unwinds instead can hang: what torch.distributed holds may wait for processes that are gone.
        """
        known = isinstance(error, AlignlabError)
        if known:
            print(f"alignlab: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if known else 1)

    def close(self) -> None:
        """Leave the group, if this object joined it."""
        if self._ours and dist.is_initialized():
            dist.destroy_process_group()


def _own_device(name: str, local_rank: int) -> torch.device:
    require(name in ("auto", "cpu", "cuda"), "device", name, "auto, cpu, cuda")
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if local_rank >= count:
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own, there are {count}; "
            f"start at most {count} with torchrun --nproc-per-node, or train on the cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(device: torch.device, timeout_seconds: float) -> None:
    """Create the default group over the rendezvous that the environment names."""
    check_backends(device.type)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
            **_agents_store(timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} cannot join the others at {where}: "
            f"{str(error).splitlines()[0]}; all of them must be started, and reach that address"
        ) from error


def _agents_store(timeout: datetime.timedelta) -> dict[str, Any]:
    """Arguments of `init_process_group` where torchrun itself keeps the store; none where it does not.

    Such a store outlives a restart, and with it the addresses of processes that are gone: processes that read them wait
    for nobody. (torch 2.13 reuses it as it is.) So each start of all processes gets a part of it to itself.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timeout,
        wait_for_workers=False,
    )
    part = agree_on_start(store, rank, world, timeout.total_seconds())
    return {"store": dist.PrefixStore(part, store), "rank": rank, "world_size": world}


def agree_on_start(store: dist.Store, rank: int, world: int, timeout_seconds: float) -> str:
    """A name for this start of `world` processes, the same on all and never used before.

    A counter will not do: after a failure the machines have restarted different numbers of times. Rank 0 makes the name
    up. The others greet it with a word of their own, and believe only an answer that has their word in it; rank 0
    answers until each has confirmed the name. What an earlier start left behind has other words and another name.

    Raises:
        RuntimeError: somebody was not there in time.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout_seconds
    answer = ""
    if rank:
        store.set(f"alignlab/greeting/{rank}", own)
    while time.monotonic() < deadline:
        if rank == 0:
            words = [_read(store, f"alignlab/greeting/{other}") for other in range(1, world)]
            if answer != (answer := json.dumps([own, *words])):
                store.set("alignlab/answer", answer)
            if all(_read(store, f"alignlab/confirmed/{other}") == own for other in range(1, world)):
                return own
        else:
            name, *words = json.loads(_read(store, "alignlab/answer") or '[""]')
            if own in words:
                store.set(f"alignlab/confirmed/{rank}", name)
                return str(name)
        time.sleep(0.02)
    late = [other for other in range(1, world) if _read(store, f"alignlab/confirmed/{other}") != own]
    raise RuntimeError(f"no word from rank {', '.join(map(str, late)) if rank == 0 else 0} in {timeout_seconds:g} s")


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def check_backends(device_type: str) -> None:
    """Raises ConfigError unless this torch can pass tensors of such a device between processes."""
    if not dist.is_available():
        raise ConfigError("this torch was built without torch.distributed; install an official build of torch")
    needed = {"gloo": dist.is_gloo_available, **({"nccl": dist.is_nccl_available} if device_type == "cuda" else {})}
    missing = [name for name, available in needed.items() if not available()]
    if missing:
        raise ConfigError(
            f"this torch has no {' and no '.join(missing)} backend, which training on several {device_type} devices "
            "needs; install an official build of torch for this platform"
        )
