"""From stored tensors to a `GPTModel`: complete, one tensor at a time, in the requested precision."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.architectures import Binding, FileFormat, bindings, family_of
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel


class TensorSource(Protocol):
    """A file or directory of named tensors whose shapes are known before they are read."""

    path: Path

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor: ...


def empty_model(config: GPTConfig) -> GPTModel:
    """The model with parameters that have shapes and no memory."""
    # Drawing initial values costs nothing there, but its first call imports torch's compiler: seconds, for nothing.
    with torch.device("meta"), _no_initial_values():
        return GPTModel(config)


@contextmanager
def _no_initial_values() -> Iterator[None]:
    """Layers made inside keep whatever their memory holds."""
    kinds: tuple[Any, ...] = (nn.Linear, nn.Embedding)
    originals = [kind.reset_parameters for kind in kinds]
    for kind in kinds:
        kind.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.reset_parameters = original


def load_weights(
    config: GPTConfig,
    source: TensorSource,
    file_format: FileFormat,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GPTModel:
    """The model of `config` with the weights of `source`.

    Everything is checked before the first byte is read: every parameter is filled, every stored tensor is used, every
    shape agrees; the first that does not is named in a `ModelError`. Peak memory is the model plus one tensor.
    """
    try:
        model = empty_model(config)
    except (ConfigError, RuntimeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{source.path}: the model it describes cannot be built: {error}") from None
    parameters = model.state_dict()
    plan = list(bindings(config, parameters, file_format))
    stored_name = _resolve_names(config, source, plan, file_format)
    _check_shapes(config, source, plan, parameters, stored_name)
    _refuse_others(config, source, set(stored_name.values()), file_format)
    state: dict[str, Tensor] = {}
    for binding in plan:
        shapes = [tuple(parameters[name].shape) for name in binding.parameters]
        name = stored_name[binding.stored]
        # Vectors go through float32 so that arithmetic of a layout (Gemma's 1 + weight) happens before rounding.
        stored = source.read(name, torch.float32 if len(source.shape(name)) == 1 else dtype)
        for ours, part in zip(binding.parameters, binding.layout.split(stored, shapes, config), strict=True):
            part = part.to(device=device, dtype=dtype)
            # A slice or a transpose would keep the whole stored tensor alive.
            whole = part.is_contiguous() and part.untyped_storage().nbytes() == part.numel() * part.element_size()
            state[ours] = part if whole else part.clone(memory_format=torch.contiguous_format)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _resolve_names(
    config: GPTConfig, source: TensorSource, plan: Sequence[Binding], file_format: FileFormat
) -> dict[str, str]:
    """Name in the table → name in the source: some checkpoints leave a prefix out, others put one before."""
    names = source.names()
    renames = [lambda stored: stored]
    if file_format == "hf":
        for prefix in family_of(config).hf_prefixes:
            renames.append(lambda stored, p=prefix: stored.removeprefix(p))  # type: ignore[misc]
            renames.append(lambda stored, p=prefix: stored.replace(p, f"{p}language_model.", 1))  # type: ignore[misc]
        renames.append(lambda stored: f"language_model.{stored}")
    best = max(renames, key=lambda rename: sum(rename(b.stored) in names for b in plan))
    return {binding.stored: best(binding.stored) for binding in plan}


def _check_shapes(
    config: GPTConfig,
    source: TensorSource,
    plan: Sequence[Binding],
    parameters: dict[str, Tensor],
    stored_name: dict[str, str],
) -> None:
    names = source.names()
    for binding in plan:
        name = stored_name[binding.stored]
        if name not in names:
            raise ModelError(f"{source.path}: tensor {name!r} is missing")
        # On meta tensors, joining costs nothing and says which shape must be stored.
        expected = tuple(binding.layout.join([parameters[p] for p in binding.parameters], config).shape)
        if source.shape(name) != expected:
            raise ModelError(f"{source.path}: tensor {name!r} has shape {source.shape(name)}, expected {expected}")


def _refuse_others(config: GPTConfig, source: TensorSource, used: set[str], file_format: FileFormat) -> None:
    """`ModelError` for a stored tensor that no parameter is made of, unless the family is known to store such."""
    native = file_format == "native"
    ignored = [] if native else [*family_of(config).ignored, r"rope_freqs\.weight"]
    if config.tie_embeddings and not native:
        ignored += [r"(language_model\.)?lm_head\.weight", r"embed_out\.weight"]
    unexpected = sorted(
        name for name in source.names() - used if not any(re.fullmatch(pattern, name) for pattern in ignored)
    )
    if unexpected:
        where = "the model that its config.json describes" if native else f"architecture {config.architecture!r}"
        raise ModelError(
            f"{source.path}: tensor {unexpected[0]!r} has no place in {where} ({len(unexpected)} unexpected)"
        )
