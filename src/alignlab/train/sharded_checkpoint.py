"""Checkpoints that several processes write together and any number of them reads.

    checkpoints/step_00000200/
        shard-00001-model-00001-of-00001.safetensors    what rank 0 held, one such file a rank
        state.json                                      step, number of ranks, the trainer's own state
        SHA256SUMS                                      of all of them

Tensors go through `torch.distributed.checkpoint`, which knows the part that each rank has of a `DTensor` and writes a
replicated tensor once; its safetensors storage is used because its default one keeps an index in pickle. Reading asks
for the parts that the reader needs, so that two ranks' shards become one process's tensors and the reverse. A
checkpoint that one process wrote alone (`alignlab.train.checkpoint`) is read by the same functions.

All ranks must see the directory. It is written under a temporary name and renamed by rank 0 once every rank is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.core.files import sha256_file, sync_directory
from alignlab.train.checkpoint import KEEP, SUMS, Checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from alignlab.train.checkpoint_contents import (
    Shards,
    Source,
    Whole,
    empty_states,
    named_tensors,
    require_same,
    sharded_storage,
    split_state_name,
    weights_of,
)
from alignlab.train.optim import trainable_parameters
from alignlab.train.parallel import Check, Parallel

T = TypeVar("T")
_CAUGHT = (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError)


def save_single(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any],
    tensors: Mapping[str, Tensor],
) -> Path:
    """What `Parallel.save` does in one process: the format of `alignlab.train.checkpoint`."""
    weights = weights_of(model)
    others = {
        name.removeprefix("optimizer."): tensor
        for name, tensor in named_tensors(model, optimizer, tensors).items()
        if not name.startswith("model.")
    }
    return write_checkpoint(directory, Checkpoint(step, weights, others, extra))


def save_sharded(
    parallel: Parallel,
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any],
    tensors: Mapping[str, Tensor],
) -> Path:
    """What `Parallel.save` does with several processes; all of them call it, and fail together.

    Raises:
        TrainingError: a rank cannot write, or does not see the directory; earlier checkpoints are as they were.
    """
    _, writer = sharded_storage()
    final = directory / f"step_{step:08d}"
    temporary = directory / f".writing_{final.name}"
    named = {name: tensor.detach() for name, tensor in named_tensors(model, optimizer, tensors).items()}
    scalars = [name for name, tensor in named.items() if tensor.ndim == 0]
    flat = {name: tensor if tensor.ndim else tensor.reshape(1) for name, tensor in named.items()}
    state = {"step": step, "ranks": parallel.world, "scalars": scalars, "extra": extra}
    main = parallel.is_main
    try:
        _together(parallel, lambda: _begin(directory, temporary) if main else None)
        _together(parallel, lambda: _require_visible(temporary))
        _together(parallel, lambda: dcp.save(flat, storage_writer=writer(path=str(temporary), save_distributed=True)))
        sums = _sums_of(temporary, parallel)
        _together(parallel, lambda: _finish(temporary, final, sums, state) if main else None)
    except _Failed as failure:
        if main:
            with suppress(OSError):
                shutil.rmtree(temporary)
        kept = list_checkpoints(directory)
        rest = f"{kept[-1].name} is intact" if kept else "there is no earlier checkpoint"
        raise TrainingError(f"cannot write checkpoint {final}: {failure}; {rest}") from failure
    return final


def load_newest(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    check: Check | None,
    parallel: Parallel,
) -> dict[str, Any] | None:
    """What `Parallel.load` does, in one process or several.

    Raises:
        TrainingError: the checkpoint is damaged, or of another model, or this torch cannot write one of several
            processes; then nothing has changed.
    """
    if parallel.world > 1:
        sharded_storage()  # what cannot be saved later must be known before hours of training
    saved = list_checkpoints(directory)
    newest = parallel.broadcast(str(saved[-1]) if saved else "")
    if not newest:
        return None
    path = Path(newest)
    source = _open(path, parallel)
    if check is not None:
        check(source.extra, str(path))
    parameters = trainable_parameters(model)
    wanted = {f"model.{name}": tensor.detach() for name, tensor in weights_of(model).items()}
    wanted |= {f"extra.{name}": tensor.detach() for name, tensor in tensors.items()}
    require_same(path, source, wanted, parameters)
    states = empty_states(source, parameters)
    try:
        _together(parallel, lambda: source.read_into({**wanted, **states}))
    except _Failed as failure:
        raise TrainingError(f"checkpoint {path} cannot be read: {failure}") from failure
    optimizer.state.clear()
    for name, value in states.items():
        key, parameter = split_state_name(name)
        optimizer.state[parameters[parameter]][key] = value
    return {**source.extra, "step": source.step}


def read_named(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of one checkpoint whose names begin with `prefix`, by the rest of their names, whole, on the CPU.

    Whichever way it was written; other processes are not waited for.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    alone = Parallel()
    source = _open(path, alone)
    found = {
        name: torch.empty(shape, dtype=dtype)
        for name, (dtype, shape) in source.shapes.items()
        if name.startswith(prefix)
    }
    try:
        _together(alone, lambda: source.read_into(found, alone=True))
    except _Failed as failure:
        raise TrainingError(f"checkpoint {path} cannot be read: {failure}") from failure
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def _open(path: Path, parallel: Parallel) -> Source:
    """Find out which kind of checkpoint it is, and check every file against its SHA-256."""
    whole = False
    try:
        _together(parallel, lambda: _require_visible(path))
        # Either file tells: the other may be what is missing.
        whole = any((path / name).exists() for name in ("weights.safetensors", "optimizer.safetensors"))
        if whole:
            return _together(parallel, lambda: Whole(read_checkpoint(path)))
        sums = _sums_of(path, parallel)
        return _together(parallel, lambda: Shards(path, sums))
    except _Failed as failure:
        if whole:  # read_checkpoint has said it all
            raise TrainingError(str(failure)) from failure
        others = [other for other in list_checkpoints(path.parent) if other != path]
        advice = f"delete it to go on from {others[-1].name}" if others else "delete it to start again"
        raise TrainingError(f"checkpoint {path} is damaged: {failure}; {advice}") from failure


class _Failed(Exception):
    """Some rank could not do its part; says why and which."""


def _together(parallel: Parallel, action: Callable[[], T]) -> T:
    """Do something on every rank, and fail on all if one fails: nobody waits for a rank that gave up."""
    result: list[T] = []
    problem = None
    try:
        result.append(action())
    except (*_CAUGHT, dcp.CheckpointException) as error:
        problem = _reason(error)
    except TrainingError as error:
        problem = str(error)
    for rank, text in enumerate(parallel.collect(problem)):
        if text is not None:
            raise _Failed(f"{text} (rank {rank})" if parallel.world > 1 else text)
    return result[0]


def _reason(error: BaseException) -> str:
    """One line about what went wrong, from wherever it went wrong."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0]


def _begin(directory: Path, temporary: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for left_over in directory.glob(".writing_*"):  # from processes that were killed
        shutil.rmtree(left_over)
    temporary.mkdir()


def _require_visible(path: Path) -> None:
    if not path.is_dir():
        raise ValueError("this rank does not see the directory, which must lie where all machines can write")


def _finish(temporary: Path, final: Path, sums: Mapping[str, str], state: dict[str, Any]) -> None:
    """Make the complete parts a checkpoint, and let the oldest go."""
    body = temporary / "state.json"
    body.write_text(json.dumps(state, indent=1, allow_nan=False))
    lines = {**sums, body.name: sha256_file(body)}
    (temporary / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(lines.items())))
    for path in (body, temporary / SUMS):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
    sync_directory(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync_directory(final.parent)
    for old in list_checkpoints(final.parent)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _sums_of(path: Path, parallel: Parallel) -> dict[str, str]:
    """SHA-256 of every tensor file and of the state, each rank taking its share of the files."""
    names = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", ".json"))
    own = _together(
        parallel, lambda: {name: sha256_file(path / name) for name in names[parallel.rank :: parallel.world]}
    )
    return {name: digest for part in parallel.collect(own) for name, digest in part.items()}
