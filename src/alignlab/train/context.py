"""States that hold while training and are put back after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.train.config import TrainConfig


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Train mode inside, each module's own mode after."""
    with _mode(model, True):
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside, each module's own mode after."""
    with _mode(model, False), torch.no_grad():
        yield


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it inside, put it back after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # noqa: TID251  (F.dropout takes no generator)
        yield


@contextmanager
def checkpointed_blocks(model: nn.Module) -> Iterator[None]:
    """Inside, each of `model.blocks` keeps only its input for the backward pass and is computed again there.

    Chen et al. 2016 with one segment a block: memory for one block's activations instead of all, for about a third
    more computation. The numbers stay the same, dropout included.

    Raises:
        ConfigError: the model has no `blocks`.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
        raise ConfigError(
            f"gradient_checkpointing is on, but {type(model).__name__} has no `blocks` to apply it to; switch it off"
        )
    for block in blocks:
        cast(Any, block).forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del cast(Any, block).forward  # the class's own comes back


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Inside, the model's `hidden_states` (or `forward`, where it has none) goes through `torch.compile`.

    Raises:
        TrainingError: the compiler is missing or fails; the message says what it said.
    """
    name = "hidden_states" if hasattr(model, "hidden_states") else "forward"
    original: Callable[..., Any] = getattr(model, name)
    setattr(model, name, torch.compile(original))
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainingError(
            f"torch.compile could not compile {type(model).__name__}.{name}: {said[0]}; a C++ compiler is needed on "
            "the CPU and Triton on a GPU, or set compile=False"
        ) from error
    finally:
        delattr(model, name)


@contextmanager
def memory_errors_explained(name: str, step: int, config: TrainConfig) -> Iterator[None]:
    """Inside, a GPU out of memory is a TrainingError that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        checkpointing = "" if config.gradient_checkpointing else ", or set gradient_checkpointing=True"
        raise TrainingError(
            f"{name} ran out of GPU memory at step {step}: lower the batch size and raise accumulate "
            f"(now {config.accumulate}) by the same factor, lower the length{checkpointing}; checkpoints are intact. "
            f"The device said: {str(error).splitlines()[0]}"
        ) from error
