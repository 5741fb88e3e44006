"""Checkpoints on disk: a directory of safetensors and JSON that is whole or not there, and is checked when read.

    checkpoints/step_00000200/
        weights.safetensors     trainable parameters and persistent buffers
        optimizer.safetensors   the optimiser's state, `exp_avg.<parameter>` and so on; averaged weights
        state.json              step, configuration, fingerprint of the model, history
        SHA256SUMS              of the three; `sha256sum -c` understands it

Written to a temporary directory, synced, then renamed: a crash or a full disk leaves the previous one untouched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.core.errors import TrainingError
from alignlab.core.files import sha256_file, sync_directory

SUMS = "SHA256SUMS"
KEEP = 2
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in memory."""

    step: int
    """Updates done."""
    weights: dict[str, Tensor]
    """Trainable parameters and persistent buffers by name."""
    optimizer: dict[str, Tensor]
    """Optimiser state, named `<key>.<parameter>`."""
    state: dict[str, Any]
    """Everything else, as JSON holds it."""


def write_checkpoint(directory: str | Path, checkpoint: Checkpoint, *, keep: int = KEEP) -> Path:
    """Save atomically as `directory/step_<step>` and then delete all but the newest `keep`.

    Raises:
        TrainingError: it cannot be written (disk full, no permission); earlier checkpoints are as they were.
    """
    directory = Path(directory)
    final = directory / f"step_{checkpoint.step:08d}"
    temporary = directory / f".writing_{final.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left_over in directory.glob(".writing_*"):  # from a process that was killed
            shutil.rmtree(left_over)
        temporary.mkdir()
        save_file(_storable(checkpoint.weights), temporary / "weights.safetensors")
        save_file(_storable(checkpoint.optimizer), temporary / "optimizer.safetensors")
        body = json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1, allow_nan=False)
        (temporary / "state.json").write_text(body)
        names = ("weights.safetensors", "optimizer.safetensors", "state.json")
        (temporary / SUMS).write_text("".join(f"{sha256_file(temporary / name)}  {name}\n" for name in names))
        for path in temporary.iterdir():
            _sync_file(path)
        sync_directory(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync_directory(directory)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            shutil.rmtree(temporary)
        kept = list_checkpoints(directory)
        rest = f"the checkpoint of step {_step(kept[-1])} is intact" if kept else "there is no earlier checkpoint"
        raise TrainingError(f"cannot write checkpoint {final}: {_reason(error)}; {rest}") from error
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(directory: str | Path) -> list[Path]:
    """Complete checkpoints in `directory`, oldest first; empty where the directory does not exist."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Load one checkpoint after checking every file against its SHA-256.

    Raises:
        TrainingError: a file is missing, damaged or not what was written.
    """
    path = Path(path)
    try:
        sums = dict(line.split("  ")[::-1] for line in (path / SUMS).read_text().splitlines())
        for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
            if sums.get(name) != sha256_file(path / name):
                raise ValueError(f"{name} is not what was written (SHA-256 differs)")
        state = json.loads((path / "state.json").read_bytes())
        step = int(state.pop("step"))
        weights = load_file(path / "weights.safetensors")
        optimizer = load_file(path / "optimizer.safetensors")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        others = [other for other in list_checkpoints(path.parent) if other != path]
        advice = f"delete it to go on from step {_step(others[-1])}" if others else "delete it to start again"
        raise TrainingError(f"checkpoint {path} is damaged: {_reason(error)}; {advice}") from error
    return Checkpoint(step, weights, optimizer, state)


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with its own storage, as safetensors wants them."""
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        own[name] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    return own


def _sync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _reason(error: Exception) -> str:
    """The system's words without the path or number around them."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = re.sub(r"^(Error while \w+: )?(I/O error: )?", "", text)
    return re.sub(r" \(os error \d+\)$", "", text).strip()
