"""GGUF files kept packed: Q4_0, Q4_1 and Q8_0 matrices become layers that multiply by the file's own codes.

`load(spec, packed=True)` is the way in. The layers multiply by exactly the numbers that `load` gives in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.architectures import Binding, bindings
from alignlab.lm.config import GPTConfig
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.apply import fill
from alignlab.lm.quant.layers import QuantEmbedding, QuantLinear, QuantMatrix
from alignlab.lm.quant.rounding import CENTRED, WHOLE, Rounded
from alignlab.lm.weights import _check_shapes, _refuse_others, empty_model

BLOCK = 32
PACKED = (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0)


def load_packed(spec: str, *, dtype: str = "auto", device: str = "auto") -> LanguageModel:
    """`load(spec, packed=True)`."""
    return load(spec, dtype=dtype, device=device, packed=True)


def packed_model(config: GPTConfig, source: GGUFFile, dtype: torch.dtype) -> GPTModel:
    """The model of `config`; memory is the file's packed matrices plus the others in `dtype`. Everything is frozen.

    Raises:
        ModelError: the file is not of this model, or none of its matrices is of a kind that can stay packed.
    """
    model = empty_model(config)
    parameters = model.state_dict()
    plan = list(bindings(config, parameters, "gguf"))
    names = {binding.stored: binding.stored for binding in plan}
    _check_shapes(config, source, plan, parameters, names)
    _refuse_others(config, source, set(names.values()), "gguf")
    keep = {b.stored for b in plan if source.tensors[b.stored].kind in PACKED and _movable(b, parameters)}
    if not keep:
        kinds = sorted({tensor.kind.name for tensor in source.tensors.values() if len(tensor.shape) == 2})
        raise ModelError(
            f"{source.path}: its matrices are {', '.join(kinds)}, of which none can stay packed (Q4_0, Q4_1 and Q8_0 "
            "can): load it without `packed`"
        )
    state: dict[str, Tensor] = {}
    packed: dict[str, QuantMatrix] = {}
    for binding in plan:
        shapes = [tuple(parameters[name].shape) for name in binding.parameters]
        if binding.stored in keep:
            packed |= _packed(config, source, binding, shapes, dtype)
            continue
        stored = source.read(binding.stored, torch.float32 if len(shapes[0]) == 1 else dtype)
        parts = binding.layout.split(stored, shapes, config)
        state |= {name: part.to(dtype).contiguous() for name, part in zip(binding.parameters, parts, strict=True)}
    layers: dict[str, QuantLinear | QuantEmbedding] = {}
    for name, matrix in packed.items():
        module = name.removesuffix(".weight")
        is_embedding = name == "embed.weight"
        layers[module] = QuantEmbedding(matrix) if is_embedding else QuantLinear(matrix, state.get(f"{module}.bias"))
    return fill(model, state, layers)


def _movable(binding: Binding, parameters: dict[str, Tensor]) -> bool:
    """Whether the parts of a stored tensor are whole rows of it: then codes can be moved as rows are."""
    return all(parameters[name].ndim == 2 and name != "pos_embed.weight" for name in binding.parameters)


def _packed(
    config: GPTConfig, source: GGUFFile, binding: Binding, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> dict[str, QuantMatrix]:
    whole = read_blocks(source, binding.stored)
    codes = binding.layout.split(whole.codes, shapes, config)
    groups = [(shape[0], shape[1] // BLOCK) for shape in shapes]
    scales = binding.layout.split(whole.scales, groups, config)
    offsets = [None] * len(codes) if whole.offsets is None else binding.layout.split(whole.offsets, groups, config)
    return {
        name: QuantMatrix(Rounded(c, s, o, whole.bits, whole.table), dtype)
        for name, c, s, o in zip(binding.parameters, codes, scales, offsets, strict=True)
    }


def read_blocks(source: GGUFFile, name: str) -> Rounded:
    """Codes, scales and minima of a Q4_0, Q4_1 or Q8_0 tensor, as the file has them."""
    tensor = source.tensors[name]
    n_out, n_in = tensor.shape
    raw = np.array(source._data[tensor.start : tensor.start + tensor.n_bytes])
    n_head = 4 if tensor.kind is Kind.Q4_1 else 2
    blocks = torch.from_numpy(raw.reshape(n_out * n_in // BLOCK, -1))
    head = blocks[:, :n_head].contiguous().view(torch.float16).view(n_out, n_in // BLOCK, n_head // 2)
    body = blocks[:, n_head:].contiguous()
    scales = head[..., 0].contiguous()
    if tensor.kind is Kind.Q8_0:
        return Rounded(body.view(torch.int8).view(n_out, n_in), scales, None, 8)
    codes = torch.cat([body & 15, body >> 4], 1).view(n_out, n_in)
    if tensor.kind is Kind.Q4_0:
        return Rounded(codes, scales, None, 4, CENTRED)
    return Rounded(codes, scales, head[..., 1].contiguous(), 4, WHOLE)
