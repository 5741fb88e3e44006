"""What a checkpoint holds, by name, whichever way it was written: `model.`, `optimizer.<key>.` and `extra.` tensors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from alignlab.core.errors import TrainingError
from alignlab.train.checkpoint import SUMS, Checkpoint
from alignlab.train.optim import trainable_parameters
from alignlab.train.resume import first_difference, persistent_buffers


class Source(Protocol):
    """Tensors of a checkpoint by their names here (`model.`, `optimizer.<key>.`, `extra.`), not yet read."""

    step: int
    extra: dict[str, Any]
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]

    def read_into(self, targets: Mapping[str, Tensor], *, alone: bool = False) -> None:
        """Fill `targets`, whatever part of each this rank has; `alone`, no other rank takes part."""
        ...


class Whole:
    """A checkpoint of one process, in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.step, self.extra = checkpoint.step, checkpoint.state
        self.tensors = {f"model.{name}": tensor for name, tensor in checkpoint.weights.items()}
        for name, tensor in checkpoint.optimizer.items():
            self.tensors[name if name.startswith("extra.") else f"optimizer.{name}"] = tensor
        self.shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()}

    def read_into(self, targets: Mapping[str, Tensor], *, alone: bool = False) -> None:
        for name, target in targets.items():
            value = self.tensors[name]
            if isinstance(target, DTensor):  # every rank has read it all, so each takes its part without asking another
                value = distribute_tensor(
                    value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
                )
            target.copy_(value)


class Shards:
    """A checkpoint of several processes, whose files were found to be what was written."""

    def __init__(self, path: Path, sums: Mapping[str, str]) -> None:
        written = dict(line.split("  ")[::-1] for line in (path / SUMS).read_text().splitlines())
        difference = first_difference(written, dict(sums))
        if difference is not None:
            raise ValueError(f"its files are not what was written (SHA-256 of {difference})")
        state = json.loads((path / "state.json").read_bytes())
        self.path, self.step, self.extra = path, int(state["step"]), dict(state["extra"])
        scalars = set(state["scalars"])
        reader, _ = sharded_storage()
        stored = reader(str(path)).read_metadata().state_dict_metadata
        self.shapes = {
            name: (entry.properties.dtype, () if name in scalars else tuple(entry.size))
            for name, entry in stored.items()
        }

    def read_into(self, targets: Mapping[str, Tensor], *, alone: bool = False) -> None:
        reader, _ = sharded_storage()
        flat = {name: target if target.ndim else target.reshape(1) for name, target in targets.items()}
        with warnings.catch_warnings():  # one process reads what several wrote, and that is meant
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(flat, storage_reader=reader(str(self.path)), no_dist=alone)


def sharded_storage() -> tuple[Any, Any]:
    """Reader and writer of sharded safetensors."""
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
    except ImportError:
        raise TrainingError(f"sharded checkpoints need torch 2.9 or newer, this is {torch.__version__}") from None
    return HuggingFaceStorageReader, HuggingFaceStorageWriter


def named_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Everything that a checkpoint holds as tensors."""
    states = {
        f"optimizer.{key}.{name}": torch.as_tensor(value)
        for name, parameter in trainable_parameters(model).items()
        for key, value in optimizer.state[parameter].items()
    }
    weights = {f"model.{name}": tensor for name, tensor in weights_of(model).items()}
    return {**weights, **states, **{f"extra.{name}": tensor for name, tensor in tensors.items()}}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {**trainable_parameters(model), **persistent_buffers(model)}


def require_same(path: Path, source: Source, wanted: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose tensors are not this model's, by the first that differs."""
    saved = {name: _describe(*shape) for name, shape in source.shapes.items() if not name.startswith("optimizer.")}
    own = {name: _describe(tensor.dtype, tuple(tensor.shape)) for name, tensor in wanted.items()}
    difference = first_difference(saved, own)
    if difference is None:
        foreign = {
            split_state_name(name)[1] for name in source.shapes if name.startswith("optimizer.")
        } - parameters.keys()
        difference = (
            f"it has an optimiser state of {min(foreign)}, which is no trainable parameter" if foreign else None
        )
    if difference is not None:
        raise TrainingError(f"checkpoint {path} is of another model: {difference}")


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def split_state_name(name: str) -> tuple[str, str]:
    """`optimizer.exp_avg.blocks.0.weight` -> (`exp_avg`, `blocks.0.weight`)"""
    _, key, parameter = name.split(".", 2)
    return key, parameter


def empty_states(source: Source, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Optimiser state to be filled: sharded like its parameter where it has its shape, whole where not."""
    states: dict[str, Tensor] = {}
    for name, (dtype, shape) in source.shapes.items():
        if name.startswith("optimizer."):
            parameter = parameters[split_state_name(name)[1]].detach()
            alike = shape == tuple(parameter.shape) and bool(shape)
            states[name] = (
                torch.empty_like(parameter, dtype=dtype)
                if alike
                else torch.empty(shape, dtype=dtype, device=parameter.device)
            )
    return states
