"""`CpuStep`: a pass of a model over new tokens as one call of the program, without torch operations in between."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.lm.cache import KVCache, RaggedCache
from alignlab.lm.cpu_step import structures
from alignlab.lm.cpu_step.adapters import Adapter, PackedAdapters, Place, states
from alignlab.lm.cpu_step.pack import Packer, packed_bytes
from alignlab.lm.cpu_step.program import program
from alignlab.lm.cpu_step.reading import Reading
from alignlab.lm.cpu_step.supported import (
    ACTIVATIONS,
    Weight,
    adapters_in,
    head_of,
    is_supported,
    linear_layers,
    norms,
    weight_of,
)
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.layers import QuantMatrix
from alignlab.lm.quant.layout import LANES

SOURCE = Path(__file__).with_name("step.cpp")
FEW_TOKENS = 3
"""Up to so many, codes are multiplied as they are; beyond, on a matrix unit, they are unpacked on the way."""
MANY_TOKENS = 512
"""Beyond so many in one pass, torch multiplies faster, except on the matrix unit."""
TILE_ROWS = 32


class PackedModel:
    """A model's weights as the program reads them; stale once a weight is written to or replaced."""

    def __init__(self, model: GPTModel) -> None:
        self.sources = sources(model)
        self.state = states(self.sources)
        config = model.config
        head = head_of(model)
        blocks = [(linear_layers(block), norms(block)) for block in model.blocks]  # type: ignore[arg-type]
        weights = [weight_of(layer) for linear, _ in blocks for layer in linear.values() if layer is not None]
        self.packer = Packer(sum(packed_bytes(weight) for weight in [head, *weights]))
        self.layers = (structures.Layer * config.n_layers)()
        for i, (layer, (linear, norm)) in enumerate(zip(self.layers, blocks, strict=True)):
            for name, part in linear.items():
                if part is not None:
                    setattr(layer, name, self.packer.matrix(weight_of(part), part.bias))  # type: ignore[arg-type]
            for name, found in norm.items():
                setattr(layer, name, self.packer.norm(found))
            layer.window = config.window if config.is_windowed(i) and config.window else 0
            layer.table = int(config.is_windowed(i))
        self.model = structures.Model(
            layers=self.layers, head=self.packer.matrix(head), final=self.packer.norm(model.final_norm),  # type: ignore[arg-type]
            n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads,
            d_head=config.d_head, d_mlp=config.d_mlp, rotary_dim=config.rotary_dim,
            centred=config.norm == "layernorm", activation=ACTIVATIONS.index(config.activation),
            gated=config.gated_mlp, parallel=config.parallel_block, half=model.embed.weight.dtype is torch.bfloat16,
            eps=config.norm_eps, scale=config.score_scale, softcap=config.attn_softcap or 0,
            multiplier=config.output_multiplier,
        )  # fmt: skip
        self.has_codes = any(isinstance(weight, QuantMatrix) for weight in [head, *weights])
        self.adapters: PackedAdapters | None = None

    def is_fresh(self) -> bool:
        """Whether no weight has been written to."""
        return states(self.sources) == self.state

    def with_adapters(self, adapters: dict[Place, list[Adapter]]) -> PackedAdapters:
        """The model with these beside its weights; kept until others are wanted, or they change."""
        if self.adapters is None or not self.adapters.are(adapters):
            self.adapters = PackedAdapters(self.model, self.layers, adapters)
        return self.adapters


def sources(model: GPTModel) -> list[Tensor]:
    """Every tensor that a `PackedModel` copies or points into."""
    found: list[Tensor] = []

    def add(weight: Weight) -> None:
        if isinstance(weight, QuantMatrix):
            found.extend(buffer for buffer in weight.buffers() if buffer is not None)
        else:
            found.append(weight)

    add(head_of(model))
    for block in model.blocks:
        for layer in linear_layers(block).values():  # type: ignore[arg-type]
            if layer is not None:
                add(weight_of(layer))
                if layer.bias is not None:
                    add(layer.bias)  # type: ignore[arg-type]
        for norm in norms(block).values():  # type: ignore[arg-type]
            if norm is not None:
                found.extend(norm.parameters())
    found.extend(model.final_norm.parameters())
    return found


_PACKED: WeakKeyDictionary[nn.Module, PackedModel] = WeakKeyDictionary()


def open_step(model: GPTModel) -> CpuStep | None:
    """A `CpuStep` for `model`, or None where the program does not serve it; weights are packed once and kept.

    They are packed again once one of them has been written to. Beside bfloat16 and float32 weights that costs as much
    memory as they take; codes are read where they are. Adapters are packed apart: training them leaves the rest as is.
    """
    functions = loaded()
    if functions is None or not (functions.alignlab_step_threads() or torch.get_num_threads() == 1):
        return None
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not is_supported(model):
        return None
    held = _PACKED.get(model)
    found = sources(model)
    if held is None or [id(t) for t in found] != [id(t) for t in held.sources] or not held.is_fresh():
        held = _PACKED[model] = PackedModel(model)
    return CpuStep(model, held, held.with_adapters(adapters_in(model)), functions)


def loaded() -> Any | None:
    """The program, its functions declared; None where it cannot be had."""
    functions = program(SOURCE)
    if functions is None:
        return None
    functions.alignlab_step.restype = functions.alignlab_unembed.restype = None
    functions.alignlab_step_memory.restype = ctypes.c_int64
    return functions


class CpuStep:
    """Passes of one model, with buffers of their own: for one caller, who is done with a `Reading` before the next.

    Weights of bfloat16 are multiplied on the processor's matrix unit where it has one (then activations are rounded to
    bfloat16 where they meet a weight, and sums are in float32), elsewhere and with codes of few bits in float32. Norms,
    attention's softmax and the residual stream are in float32. In a float32 model a row's result is the same, bit for
    bit, whatever stands beside it.
    """

    def __init__(self, model: GPTModel, packed: PackedModel, adapters: PackedAdapters, functions: Any) -> None:
        self.model, self.packed, self.adapters, self.functions = model, packed, adapters, functions
        self.has_tiles = bool(functions.alignlab_step_tiles())
        self.scratch = torch.empty(0, dtype=torch.uint8)
        self.logits = torch.empty(0)

    def is_fresh(self) -> bool:
        """Whether nothing happened since that needs torch's way."""
        return not self.model.taps and self.packed.is_fresh() and self.adapters.is_fresh()

    def serves(self, cache: KVCache | RaggedCache, n_tokens: int = 1) -> bool:
        """Whether the program can read on from `cache` now, and so many tokens fast."""
        if n_tokens > MANY_TOKENS and not (self.packed.model.half and self.has_tiles):
            return False
        fits = type(cache) is KVCache and cache.keys.is_contiguous() and cache.values.is_contiguous()
        return fits and self.is_fresh()

    def read(self, tokens: Int[Tensor, " batch"], cache: KVCache) -> Reading:
        """What follows one more token of each row, as `model(tokens[:, None], cache=cache)` says it."""
        wanted = self.logits_for(len(tokens))
        self.run(tokens[:, None], cache, None, wanted)
        return self.reading(*wanted)

    def unembed(self, hidden: Float[Tensor, "batch d_model"]) -> Reading:
        """As `model.unembed(hidden)`, in float32."""
        wanted = self.logits_for(len(hidden))
        wide = hidden.float().contiguous()
        passed = structures.Pass(hidden=wide.data_ptr(), batch=len(hidden), width=1)
        self.go(self.functions.alignlab_unembed, passed, wanted)
        return self.reading(*wanted)

    def logits_for(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for logits, best and total of `n` rows."""
        room, wide = -(-n // TILE_ROWS) * TILE_ROWS, -(-self.model.config.vocab_size // LANES) * LANES
        if self.logits.shape[0] < room:
            self.logits = torch.empty(room, wide)
        return self.logits, torch.empty(n, dtype=torch.long), torch.empty(n)

    def reading(self, logits: Tensor, best: Tensor, total: Tensor) -> Reading:
        """What the program found, as the rest of generation wants it."""
        vocab, cap = self.model.config.vocab_size, self.model.config.logit_softcap
        logits = logits[: len(best), :vocab]
        if cap is not None:
            return Reading(cap * torch.tanh(logits / cap))
        return Reading(logits.contiguous(), best, total)

    def hidden_states(
        self, tokens: Int[Tensor, "batch pos"], cache: KVCache, segments: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """As `model.hidden_states(tokens, cache=cache, segments=segments)`."""
        return self.run(tokens, cache, segments, None).to(self.model.embed.weight.dtype)

    @torch.no_grad()
    def run(
        self, tokens: Tensor, cache: KVCache, segments: Tensor | None, wanted: tuple[Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        """One pass; `wanted` are logits, best and total to be filled."""
        model, config = self.model, self.model.config
        positions, length = model.positions_of(tokens, cache, segments)
        batch, width = tokens.shape
        room = -(-batch * width // TILE_ROWS) * TILE_ROWS
        x = torch.empty(room, config.d_model)
        x[: batch * width] = self.embedded(tokens, positions, length).view(batch * width, -1)
        hidden = torch.empty(batch, width, config.d_model)
        passed = structures.Pass(
            x=x.data_ptr(), positions=cache.positions.data_ptr(), keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(), hidden=hidden.data_ptr(), batch=batch, width=width,
            columns=cache.positions.shape[1], shared=cache.shared, end=cache.length, capacity=cache.keys.shape[3],
        )  # fmt: skip
        if cache.prefix_keys is not None and cache.prefix_values is not None:
            passed.far_keys, passed.far_values = cache.prefix_keys.data_ptr(), cache.prefix_values.data_ptr()
        if config.positions == "rotary":
            for i, table in enumerate((model.rotary, model.rotary_local)):
                table(positions[:1, :1].clamp(min=0), length, torch.float32)  # grown as needed
                rotation = table.tables[tokens.device, torch.float32]
                passed.cos[i], passed.sin[i] = rotation.cos.data_ptr(), rotation.sin.data_ptr()
        self.go(self.functions.alignlab_step, passed, wanted)
        return hidden

    def go(self, function: Any, passed: structures.Pass, wanted: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """Call the program with the memory that it needs."""
        packed, n = self.adapters.model, passed.batch * passed.width
        few = self.packed.has_codes and n <= FEW_TOKENS
        passed.tiles = bool(packed.half and self.has_tiles and not few)
        passed.threads = torch.get_num_threads()
        if wanted is not None:
            passed.logits, passed.best, passed.total = (tensor.data_ptr() for tensor in wanted)
        needed = self.functions.alignlab_step_memory(ctypes.byref(packed), ctypes.byref(passed))
        if len(self.scratch) < needed:
            self.scratch = torch.empty(needed * 3 // 2, dtype=torch.uint8)
        passed.scratch = self.scratch.data_ptr()
        function(ctypes.byref(packed), ctypes.byref(passed))

    def embedded(self, tokens: Tensor, positions: Tensor, length: int) -> Tensor:
        """What the first block reads, in float32."""
        model = self.model
        x: Tensor = model.embed(tokens).float()
        if model.config.embed_scale != 1.0:
            dtype = model.embed.weight.dtype
            x = x * torch.tensor(model.config.embed_scale, dtype=dtype).float()
        if model.pos_embed is not None:
            x = x + model.pos_embed(positions.clamp(min=0))
        elif model.sinusoids is not None:
            x = x + model.sinusoids(positions.clamp(min=0), length, torch.float32)
        return x
