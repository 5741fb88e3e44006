"""Quantised models as directories: `alignlab quantise MODEL --scheme int4 --output DIR` writes, `load(DIR)` reads one.

    config.json         {"model_type": "alignlab-quantised", "format_version": 1, "model": {as a native config.json},
                         "matrices": {LAYER: {"kind": "linear", "rule": "nf4", "group_size": 64, "offsets": false}}}
    model.safetensors   LAYER.codes, LAYER.scales, LAYER.offsets, and the other parameters under `GPTModel`'s names
    tokenizer.json, …   what the Hugging Face export writes

Codes lie row by row, as (out, in) bytes for 8 bits and (out, in / 2) for 4, the left one of two columns in the low half
of its byte; scales and offsets are (out, groups). So the files do not depend on how codes lie in memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignlab.core.config import to_dict
from alignlab.core.errors import ConfigError, ModelError
from alignlab.core.files import atomic_write
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_config import read_json_object
from alignlab.lm.hf_export import remove_shards, save_tensors, write_tokenizer
from alignlab.lm.lora import LoRALinear
from alignlab.lm.model import GPTModel
from alignlab.lm.native import MODEL_TYPE, QUANTISED_TYPE, VERSION, config_from_native, require_version
from alignlab.lm.quant.adapted import AdaptedLinear
from alignlab.lm.quant.apply import fill
from alignlab.lm.quant.layers import QuantEmbedding, QuantLinear, QuantMatrix
from alignlab.lm.quant.layout import unpack_codes, unpack_rows
from alignlab.lm.quant.rounding import CENTRED, NF4, WHOLE, Rounded
from alignlab.lm.safetensors_reader import SafetensorsDir
from alignlab.lm.weights import empty_model

if TYPE_CHECKING:
    from alignlab.lm.language_model import LanguageModel

FORMAT_VERSION = 1
RULES: dict[str, tuple[int, tuple[float, ...] | None]] = {
    "int8": (8, None),
    "int4": (4, CENTRED),
    "uint4": (4, WHOLE),
    "nf4": (4, NF4),
}
"""Bits of a code and what the codes stand for, by name; `int4` counts from -8, `uint4` (GGUF's Q4_1) from 0."""
_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_WIDE = {*_FLOATS, "F64"}


@dataclass(frozen=True)
class Stored:
    """How one matrix is stored."""

    kind: str
    """`linear` or `embedding`."""
    rule: str
    group_size: int
    offsets: bool


def save_quantised(lm: LanguageModel, directory: str | Path) -> Path:
    """Write a model with quantised layers, its codes as they are; returns the directory.

    `config.json` comes last, so a directory that an interruption left incomplete does not load.

    Raises:
        ModelError: no layer is quantised, there are adapters, a rule has no name here, or the directory holds another
            kind of model or cannot be written.
    """
    directory, model = Path(directory), lm.model
    layers = quantised_layers(model)
    check_target(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").unlink(missing_ok=True)
    remove_shards(directory)
    inside = tuple(f"{name}.matrix." for name in layers)
    tensors = {n: v.detach().cpu().contiguous() for n, v in model.state_dict().items() if not n.startswith(inside)}
    matrices = {}
    for name, layer in layers.items():
        matrices[name], parts = _stored(name, layer)
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    save_tensors(tensors, directory / "model.safetensors")
    write_tokenizer(lm, directory)
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    native = {"model_type": MODEL_TYPE, "format_version": VERSION, "dtype": dtype, "config": to_dict(model.config)}
    raw = {
        "model_type": QUANTISED_TYPE, "format_version": FORMAT_VERSION, "model": native,
        "matrices": {name: vars(stored) for name, stored in matrices.items()},
    }  # fmt: skip
    atomic_write(directory / "config.json", json.dumps(raw, indent=2) + "\n")
    return directory


def quantised_layers(model: GPTModel) -> dict[str, QuantLinear | QuantEmbedding]:
    """The layers that `save_quantised` keeps in codes, by name; `ModelError` where it cannot keep the model."""
    found: dict[str, QuantLinear | QuantEmbedding] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear | AdaptedLinear):
            raise ModelError(
                f"layer {name} has an adapter, which codes cannot take in: save the adapter by itself, or export the "
                "model unquantised"
            )
        if isinstance(module, QuantLinear | QuantEmbedding):
            found[name] = module
    if not found:
        raise ModelError("no layer of the model is quantised; quantise it first, or export it as it is")
    return found


def check_target(directory: Path) -> None:
    """`ModelError` where writing a quantised model to `directory` would replace something else."""
    if directory.exists() and not directory.is_dir():
        raise ModelError(f"{directory} is a file; a quantised model is written as a directory")
    config = directory / "config.json"
    if config.is_file() and read_json_object(config).get("model_type") != QUANTISED_TYPE:
        raise ModelError(f"{directory} holds another model, which would be lost; name a new directory")


def _stored(name: str, layer: QuantLinear | QuantEmbedding) -> tuple[Stored, dict[str, Tensor]]:
    matrix = layer.matrix
    rule = next((rule for rule, means in RULES.items() if means == (matrix.bits, matrix.rule)), None)
    if rule is None:
        raise ModelError(f"layer {name} has a rule of its own for its codes, allowed: {', '.join(RULES)}")
    n = matrix.out_features
    codes = unpack_codes(matrix.codes.cpu(), matrix.bits, n)
    if matrix.bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    parts = {"codes": codes.contiguous(), "scales": unpack_rows(matrix.scales.cpu(), n).contiguous()}
    if matrix.offsets is not None:
        parts["offsets"] = unpack_rows(matrix.offsets.cpu(), n).contiguous()
    kind = "embedding" if isinstance(layer, QuantEmbedding) else "linear"
    return Stored(kind, rule, matrix.group_size, matrix.offsets is not None), parts


def load_quantised(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> GPTModel:
    """The model in a directory that `save_quantised` wrote, frozen; codes, scales and offsets are bit for bit the same.

    `dtype` is what activations and the parameters that are not quantised are in. All is checked before it is read.

    Raises:
        ModelError: the directory is of another version or kind, a file is damaged, or a tensor is missing, too many, of
            another type or of another shape than `config.json` says.
    """
    directory = Path(directory)
    where = str(directory / "config.json")
    raw = read_json_object(directory / "config.json")
    config, matrices = manifest(raw, where)
    source = SafetensorsDir(directory)
    try:
        model = empty_model(config)
    except (ConfigError, RuntimeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{where}: the model it describes cannot be built: {error}") from None
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _check_tensors(source, _expected(shapes, matrices, where))
    layers: dict[str, QuantLinear | QuantEmbedding] = {}
    state: dict[str, Tensor] = {}
    with _opened(source) as file:
        for name, stored in matrices.items():
            matrix = _matrix(file, source, name, stored, dtype)
            biased = f"{name}.bias" in shapes
            bias = _read(file, source, f"{name}.bias").to(dtype) if biased else None
            layers[name] = QuantEmbedding(matrix) if stored.kind == "embedding" else QuantLinear(matrix, bias)
        inside = tuple(f"{name}." for name in matrices)
        for name in shapes:
            if not name.startswith(inside):
                state[name] = _read(file, source, name).to(dtype)
    return fill(model, state, layers).to(device)


def manifest(raw: dict[str, Any], where: str) -> tuple[GPTConfig, dict[str, Stored]]:
    """Architecture and matrices that a `config.json` describes; `ModelError` for what cannot be one of ours."""
    if raw.get("model_type") != QUANTISED_TYPE:
        raise ModelError(f"{where}: model_type is {raw.get('model_type')!r}, allowed: {QUANTISED_TYPE!r}")
    require_version(raw, FORMAT_VERSION, where)
    inner, described = raw.get("model"), raw.get("matrices")
    if not isinstance(inner, dict) or not isinstance(described, dict) or not described:
        raise ModelError(f"{where}: 'model' and 'matrices' must be objects, 'matrices' with an entry a quantised layer")
    config = config_from_native(inner, f"{where}, 'model'")
    matrices = {}
    for name, entry in described.items():
        keys = {"kind": str, "rule": str, "group_size": int, "offsets": bool}
        if not isinstance(entry, dict) or {k: type(v) for k, v in entry.items()} != keys:
            raise ModelError(f"{where}: matrix {name!r} must have kind, rule, group_size and offsets, and no more")
        stored = Stored(**entry)
        if stored.kind not in ("linear", "embedding") or stored.rule not in RULES:
            raise ModelError(
                f"{where}: matrix {name!r} is a {stored.kind!r} by the rule {stored.rule!r}, allowed: linear or "
                f"embedding by {', '.join(RULES)}"
            )
        matrices[name] = stored
    return config, matrices


def _expected(
    shapes: dict[str, tuple[int, ...]], matrices: dict[str, Stored], where: str
) -> dict[str, tuple[set[str], tuple[int, ...]]]:
    """Types and shape of every tensor that must be there."""
    wanted = {name: (_WIDE, shape) for name, shape in shapes.items()}
    for name, stored in matrices.items():
        weight = f"{name}.weight"
        if (stored.kind == "embedding") != (name == "embed") or len(shapes.get(weight, ())) != 2:
            raise ModelError(f"{where}: {name!r} is no {stored.kind} layer of the model that it describes")
        del wanted[weight]
        n_out, n_in = shapes[weight]
        if stored.group_size < 8 or stored.group_size % 8 or n_in % stored.group_size:
            raise ModelError(f"{where}: matrix {name!r} has groups of {stored.group_size}, which do not fill {n_in}")
        bits = RULES[stored.rule][0]
        wanted[f"{name}.codes"] = ({"I8" if bits == 8 else "U8"}, (n_out, n_in * bits // 8))
        for part in ("scales", "offsets") if stored.offsets else ("scales",):
            wanted[f"{name}.{part}"] = (set(_FLOATS), (n_out, n_in // stored.group_size))
    return wanted


def _check_tensors(source: SafetensorsDir, wanted: dict[str, tuple[set[str], tuple[int, ...]]]) -> None:
    names = source.names()
    for name, (kinds, shape) in wanted.items():
        if name not in names:
            raise ModelError(f"{source.path}: tensor {name!r} is missing")
        if source.kind(name) not in kinds or source.shape(name) != shape:
            raise ModelError(
                f"{source.path}: tensor {name!r} is {source.kind(name)} of shape {source.shape(name)}, expected "
                f"{' or '.join(sorted(kinds))} of {shape}"
            )
    unexpected = sorted(names - wanted.keys())
    if unexpected:
        raise ModelError(
            f"{source.path}: tensor {unexpected[0]!r} has no place in the model that its config.json describes "
            f"({len(unexpected)} unexpected)"
        )


def _opened(source: SafetensorsDir) -> Any:
    try:
        return safe_open(source.path / "model.safetensors", framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{source.path}: model.safetensors cannot be read: {error}") from None


def _read(file: Any, source: SafetensorsDir, name: str) -> Tensor:
    """A copy: a view would pin the mapping of the whole file."""
    try:
        tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{source.path}: tensor {name!r} cannot be read: {error}") from None
    return tensor.clone()


def _matrix(file: Any, source: SafetensorsDir, name: str, stored: Stored, dtype: torch.dtype) -> QuantMatrix:
    bits, table = RULES[stored.rule]
    codes = _read(file, source, f"{name}.codes")
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    scales = _read(file, source, f"{name}.scales")
    offsets = _read(file, source, f"{name}.offsets") if stored.offsets else None
    for numbers in (scales, offsets):
        if numbers is not None and not bool(torch.isfinite(numbers).all()):
            raise ModelError(f"{source.path}: matrix {name!r} has scales or offsets that are not finite: damaged file")
    return QuantMatrix(Rounded(codes, scales, offsets, bits, table), dtype)
