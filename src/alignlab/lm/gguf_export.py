"""Export to a GGUF file that llama.cpp loads: architecture, tokenizer, chat template, weights in few bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.architectures import bindings
from alignlab.lm.config import GPTConfig
from alignlab.lm.ggml_blocks import ExportKind, encode
from alignlab.lm.gguf_config_writer import Announced, check_config, config_to_gguf, rope_divisors
from alignlab.lm.gguf_tokenizer import from_gguf
from alignlab.lm.gguf_tokenizer_writer import PROBE, tokenizer_to_gguf
from alignlab.lm.gguf_writer import StoredTensor, write_gguf
from alignlab.lm.hf_equivalent import exportable_config, exportable_parameters
from alignlab.lm.hf_export import merged_parameters
from alignlab.lm.quant.apply import plain_parameters

if TYPE_CHECKING:
    from alignlab.lm.language_model import LanguageModel

KINDS: tuple[str, ...] = get_args(ExportKind)
_KIND = {"f32": Kind.F32, "f16": Kind.F16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_k": Kind.Q4_K}
_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "q4_0": 2, "q4_k": 14}
_ENDS = ("token_embd.weight", "output.weight")


def export_gguf(lm: LanguageModel, path: str | Path, kind: ExportKind = "f16") -> Path:
    """Write the model as one GGUF file with its matrices in `kind`; returns its path.

    Vectors stay float32. With 4-bit kinds, embedding and unembedding are Q8_0, and a matrix whose rows Q4_K's blocks of
    256 do not fill is Q5_0 (or F16): llama.cpp's own tool likewise gives these more bits. LoRA adapters are merged into
    what is written, quantised layers count with what their codes stand for; the model itself stays as it is.

    Raises:
        ConfigError: an unknown kind.
        ModelError: the format cannot express architecture or tokenizer (checked by reading the metadata back before
            anything is written), a weight cannot be encoded, or the file cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"the kind of GGUF is {kind!r}, allowed: {', '.join(KINDS)}")
    path = Path(path)
    config = exportable_config(lm.model.config)
    parameters = plain_parameters(merged_parameters(lm.model), lm.model)
    parameters = exportable_parameters(lm.model.config, parameters)
    tensors = _stored(config, parameters)
    metadata: dict[str, Any] = config_to_gguf(config) | {
        "general.type": "model",
        "general.name": lm.name,
        "general.file_type": _FILE_TYPE[kind],
        "general.quantization_version": 2,
    }
    metadata |= tokenizer_to_gguf(lm.tokenizer, config.vocab_size)
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in tensors.items()}
    announced = Announced(path, metadata, shapes | rope_divisors(config))
    check_config(config, announced)
    _check_tokenizer(lm, announced)
    ready = [_planned(name, shape, make, kind) for name, (shape, make) in tensors.items()]
    return write_gguf(path, metadata, ready)


Made = tuple[tuple[int, ...], Callable[[], Tensor]]


def _stored(config: GPTConfig, parameters: dict[str, Tensor]) -> dict[str, Made]:
    """Name -> shape and how to make it, in the order of the file."""
    found: dict[str, Made] = {}
    for binding in bindings(config, parameters, "gguf"):
        parts = [parameters[name].detach() for name in binding.parameters]
        shape = tuple(binding.layout.join([part.to("meta") for part in parts], config).shape)
        found[binding.stored] = (shape, partial(_join, binding.layout.join, parts, config))
    for name, divisors in rope_divisors(config).items():
        found[name] = (tuple(divisors.shape), partial(divisors.clone))
    return found


def _join(join: Callable[[list[Tensor], GPTConfig], Tensor], parts: list[Tensor], config: GPTConfig) -> Tensor:
    # Vectors in float32, as they are stored: a layout may do arithmetic on them (Gemma's 1 + weight).
    return join([part.cpu().float() if part.dim() == 1 else part.cpu() for part in parts], config)


def _planned(name: str, shape: tuple[int, ...], make: Callable[[], Tensor], kind: ExportKind) -> StoredTensor:
    chosen = _kind_of(name, shape, kind)
    return StoredTensor(name, shape, chosen, lambda: encode(make(), chosen))


def _kind_of(name: str, shape: tuple[int, ...], kind: ExportKind) -> Kind:
    if len(shape) == 1 or name.startswith("position_embd"):
        return Kind.F32
    wanted = _KIND[kind]
    if wanted in (Kind.Q4_0, Kind.Q4_K) and name in _ENDS:
        wanted = Kind.Q8_0
    if wanted is Kind.Q4_K and shape[-1] % 256:
        wanted = Kind.Q5_0
    return Kind.F16 if wanted in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0) and shape[-1] % 32 else wanted


def _check_tokenizer(lm: LanguageModel, announced: Announced) -> None:
    """`ModelError` where a reader of the file would cut the probe in other pieces."""
    back = from_gguf(announced)
    ours, theirs = lm.tokenizer.encode(PROBE), back.encode(PROBE)
    if ours != theirs:
        raise ModelError(
            "the tokenizer cannot be written as GGUF: read back, it would give other ids for a test sentence "
            f"({len(ours)} and {len(theirs)} tokens)"
        )
