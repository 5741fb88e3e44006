"""States that hold while training and are put back after."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.train.config import TrainConfig

WHOLE_BLOCKS = 16
"""Deeper models are compiled a block at a time: compiling 30 blocks with adapters at once takes three minutes."""


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
    with replaced([(block, "forward") for block in blocks], lambda f: partial(checkpoint, f, use_reentrant=False)):
        yield


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Inside, the model's `hidden_states` (or `forward`, where it has none) goes through `torch.compile`.

    Of a model of more than `WHOLE_BLOCKS` blocks each block is compiled for itself. They are alike, so the compiler
    works once and not once a block; what it could fuse across two blocks is lost. Beside replicas on the same host the
    program stays whole as well: cut where buckets of gradients are full, it could send while it computes, and
    loses more by the cuts than sending takes (`bench/gpu_scaling.py`).

    Raises:
        TrainingError: the compiler is missing or fails; the message says what it said.
    """
    import torch._dynamo.config as compiler  # slow, and needed here only

    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.ModuleList) and len(blocks) > WHOLE_BLOCKS:
        parts: list[tuple[nn.Module, str]] = [(block, "forward") for block in blocks]
    else:
        parts = [(model, "hidden_states" if hasattr(model, "hidden_states") else "forward")]
    try:
        with replaced(parts, torch.compile), compiler.patch(optimize_ddp=not on_one_host()):
            yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        what = f"{type(model).__name__}.{parts[0][1]}"
        raise TrainingError(
            f"torch.compile could not compile {what}: {said[0]}; a C++ compiler is needed on "
            "the CPU and Triton on a GPU, or set compile=False"
        ) from error


def on_one_host() -> bool:
    """Whether all processes that train together run on this machine, as `torchrun` tells them; one alone does."""
    return os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")


@contextmanager
def replaced(methods: list[tuple[nn.Module, str]], change: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """Inside, `change(method)` stands where each module's method of that name did."""
    before = [vars(module).get(name) for module, name in methods]
    for module, name in methods:
        setattr(module, name, change(getattr(module, name)))
    try:
        yield
    finally:
        for (module, name), own in zip(methods, before, strict=True):
            delattr(module, name)  # the class's own comes back
            if own is not None:
                setattr(module, name, own)


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
