"""The families of pretrained models: one table each says where every parameter of `GPTModel` lies in a file.

The same tables drive loading and export, so what goes out is by construction what comes in. A table maps a module of
ours to a module of the file; weight and bias follow. Where a file stores several of our modules in one tensor, or
stores it in another order, the entry has a `Layout`, which can split what was read and join what is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_equivalent import nearest_family

FileFormat = Literal["hf", "gguf", "native"]
Shape = tuple[int, ...]


class Layout(Protocol):
    """How one stored tensor and the parameters made from it are related; `join(split(x)) == x`."""

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]: ...

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor: ...


class Plain:
    """Stored as it is used."""

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]:
        return [stored]

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor:
        return parameters[0]


class Transposed:
    """Matrices stored input-first (GPT-2's Conv1D); vectors as they are."""

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]:
        return [stored.t() if stored.dim() == 2 else stored]

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor:
        return parameters[0].t() if parameters[0].dim() == 2 else parameters[0]


@dataclass(frozen=True)
class Stacked:
    """Several parameters one after the other along the output dimension, optionally stored input-first."""

    transposed: bool = False

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]:
        rows = stored.t() if self.transposed and stored.dim() == 2 else stored
        return list(rows.split([shape[0] for shape in shapes]))

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor:
        rows = torch.cat(list(parameters))
        return rows.t() if self.transposed and rows.dim() == 2 else rows


class InterleavedHeads:
    """Rows ordered (head, q|k|v, dimension): GPT-NeoX's `query_key_value`."""

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]:
        heads = stored.view(config.n_heads, 3, config.d_head, *stored.shape[1:])
        return [heads[:, i].reshape(-1, *stored.shape[1:]) for i in range(3)]

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor:
        heads = [p.reshape(config.n_heads, config.d_head, *p.shape[1:]) for p in parameters]
        return torch.stack(heads, 1).reshape(-1, *parameters[0].shape[1:])


class PairedRotary:
    """Rotary dimensions stored as neighbours (2i, 2i+1), where we pair (i, i + d_head/2): llama.cpp's Llama."""

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]:
        pairs = stored.reshape(-1, config.d_head // 2, 2, *stored.shape[1:])
        return [pairs.transpose(1, 2).reshape(stored.shape)]

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor:
        halves = parameters[0].reshape(-1, 2, config.d_head // 2, *parameters[0].shape[1:])
        return halves.transpose(1, 2).reshape(parameters[0].shape)


class OneAdded:
    """Norm weights stored as `1 + weight`: llama.cpp's Gemma."""

    def split(self, stored: Tensor, shapes: Sequence[Shape], config: GPTConfig) -> list[Tensor]:
        return [stored - 1]

    def join(self, parameters: Sequence[Tensor], config: GPTConfig) -> Tensor:
        return parameters[0] + 1


PLAIN = Plain()


@dataclass(frozen=True)
class Entry:
    """A module of the file and the modules of ours it holds; `{i}` stands for the layer."""

    stored: str
    ours: tuple[str, ...]
    layout: Layout = PLAIN


@dataclass(frozen=True)
class Family:
    """What a family is called in each format and where its parameters lie."""

    name: str
    hf_class: str
    gguf_name: str
    hf: tuple[Entry, ...]
    gguf: tuple[Entry, ...]
    hf_prefixes: tuple[str, ...] = ("model.",)
    """Leading parts of stored names that some checkpoints leave out."""
    ignored: tuple[str, ...] = field(default=())
    """Regular expressions of stored tensors that carry no parameters (old buffers, vision towers)."""


def _entries(table: Mapping[str, str], layouts: Mapping[str, Layout] | None = None) -> tuple[Entry, ...]:
    layouts = layouts or {}
    return tuple(Entry(stored, tuple(ours.split(" + ")), layouts.get(ours, PLAIN)) for ours, stored in table.items())


_QKV = "blocks.{i}.attn.q + blocks.{i}.attn.k + blocks.{i}.attn.v"

_LLAMA_HF = {
    "embed": "model.embed_tokens",
    "blocks.{i}.norm1": "model.layers.{i}.input_layernorm",
    "blocks.{i}.attn.q": "model.layers.{i}.self_attn.q_proj",
    "blocks.{i}.attn.k": "model.layers.{i}.self_attn.k_proj",
    "blocks.{i}.attn.v": "model.layers.{i}.self_attn.v_proj",
    "blocks.{i}.attn.o": "model.layers.{i}.self_attn.o_proj",
    "blocks.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_norm",
    "blocks.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_norm",
    "blocks.{i}.norm2": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
_GEMMA2_HF = _LLAMA_HF | {
    "blocks.{i}.post_attn_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.norm2": "model.layers.{i}.pre_feedforward_layernorm",
    "blocks.{i}.post_mlp_norm": "model.layers.{i}.post_feedforward_layernorm",
}
_GPT2_HF = {
    "embed": "transformer.wte",
    "pos_embed": "transformer.wpe",
    "blocks.{i}.norm1": "transformer.h.{i}.ln_1",
    _QKV: "transformer.h.{i}.attn.c_attn",
    "blocks.{i}.attn.o": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.norm2": "transformer.h.{i}.ln_2",
    "blocks.{i}.mlp.up": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.down": "transformer.h.{i}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
_GPT2_LAYOUTS: dict[str, Layout] = {
    _QKV: Stacked(transposed=True),
    "blocks.{i}.attn.o": Transposed(),
    "blocks.{i}.mlp.up": Transposed(),
    "blocks.{i}.mlp.down": Transposed(),
}
_NEOX_HF = {
    "embed": "gpt_neox.embed_in",
    "blocks.{i}.norm1": "gpt_neox.layers.{i}.input_layernorm",
    _QKV: "gpt_neox.layers.{i}.attention.query_key_value",
    "blocks.{i}.attn.o": "gpt_neox.layers.{i}.attention.dense",
    "blocks.{i}.norm2": "gpt_neox.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "blocks.{i}.mlp.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}

_LLAMA_GGUF = {
    "embed": "token_embd",
    "blocks.{i}.norm1": "blk.{i}.attn_norm",
    "blocks.{i}.attn.q": "blk.{i}.attn_q",
    "blocks.{i}.attn.k": "blk.{i}.attn_k",
    "blocks.{i}.attn.v": "blk.{i}.attn_v",
    "blocks.{i}.attn.o": "blk.{i}.attn_output",
    "blocks.{i}.attn.q_norm": "blk.{i}.attn_q_norm",
    "blocks.{i}.attn.k_norm": "blk.{i}.attn_k_norm",
    "blocks.{i}.norm2": "blk.{i}.ffn_norm",
    "blocks.{i}.mlp.gate": "blk.{i}.ffn_gate",
    "blocks.{i}.mlp.up": "blk.{i}.ffn_up",
    "blocks.{i}.mlp.down": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}
_GEMMA2_GGUF = _LLAMA_GGUF | {
    "blocks.{i}.post_attn_norm": "blk.{i}.post_attention_norm",
    "blocks.{i}.post_mlp_norm": "blk.{i}.post_ffw_norm",
}
_FUSED_GGUF = {
    "embed": "token_embd",
    "pos_embed": "position_embd",
    "blocks.{i}.norm1": "blk.{i}.attn_norm",
    _QKV: "blk.{i}.attn_qkv",
    "blocks.{i}.attn.o": "blk.{i}.attn_output",
    "blocks.{i}.norm2": "blk.{i}.ffn_norm",
    "blocks.{i}.mlp.up": "blk.{i}.ffn_up",
    "blocks.{i}.mlp.down": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}
_PAIRED: dict[str, Layout] = {"blocks.{i}.attn.q": PairedRotary(), "blocks.{i}.attn.k": PairedRotary()}
_GEMMA_NORMS: dict[str, Layout] = {
    ours: OneAdded() for ours in _GEMMA2_GGUF if ours.endswith(("norm", "norm1", "norm2"))
}

# Gemma 3's multimodal checkpoints put the language model under a prefix of its own, next to the vision tower.
_VISION = (r".*vision_tower\..*", r".*multi_modal_projector\..*")
_INV_FREQ = (r".*rotary_emb\.inv_freq",)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt2", "GPT2LMHeadModel", "gpt2",
            _entries(_GPT2_HF, _GPT2_LAYOUTS), _entries(_FUSED_GGUF, {_QKV: Stacked()}),
            ("transformer.",), (r".*h\.\d+\.attn\.(masked_)?bias",),
        ),
        Family(
            "gpt_neox", "GPTNeoXForCausalLM", "gptneox",
            _entries(_NEOX_HF, {_QKV: InterleavedHeads()}), _entries(_FUSED_GGUF, {_QKV: Stacked()}),
            ("gpt_neox.",), (r".*attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
        ),
        Family(
            "llama", "LlamaForCausalLM", "llama", _entries(_LLAMA_HF), _entries(_LLAMA_GGUF, _PAIRED),
            ignored=_INV_FREQ,
        ),
        Family("qwen2", "Qwen2ForCausalLM", "qwen2", _entries(_LLAMA_HF), _entries(_LLAMA_GGUF)),
        Family("qwen3", "Qwen3ForCausalLM", "qwen3", _entries(_LLAMA_HF), _entries(_LLAMA_GGUF)),
        Family("gemma", "GemmaForCausalLM", "gemma", _entries(_LLAMA_HF), _entries(_LLAMA_GGUF, _GEMMA_NORMS)),
        Family("gemma2", "Gemma2ForCausalLM", "gemma2", _entries(_GEMMA2_HF), _entries(_GEMMA2_GGUF, _GEMMA_NORMS)),
        Family(
            "gemma3_text", "Gemma3ForCausalLM", "gemma3", _entries(_GEMMA2_HF), _entries(_GEMMA2_GGUF, _GEMMA_NORMS),
            ignored=_VISION,
        ),
    )
}  # fmt: skip


def family_of(config: GPTConfig) -> Family:
    """The family named by `config.architecture`, or the nearest one where that is auto."""
    name = nearest_family(config) if config.architecture == "auto" else config.architecture
    if name not in FAMILIES:
        raise ModelError(f"unknown architecture {name!r}, known: auto, {', '.join(FAMILIES)}")
    return FAMILIES[name]


@dataclass(frozen=True)
class Binding:
    """One stored tensor and the parameters of ours that it holds."""

    stored: str
    parameters: tuple[str, ...]
    layout: Layout


def bindings(config: GPTConfig, parameters: Mapping[str, Tensor], file_format: FileFormat) -> Iterator[Binding]:
    """Every stored tensor of a model with these parameters, by the table of its family; natively each is its own.

    Raises `ModelError` when a parameter has no place in the family's files.
    """
    if file_format == "native":
        yield from (Binding(name, (name,), PLAIN) for name in parameters)
        return
    family = family_of(config)
    placed: set[str] = set()
    for entry in family.hf if file_format == "hf" else family.gguf:
        for i in range(config.n_layers if "{i}" in entry.stored else 1):
            for suffix in (".weight", ".bias"):
                names = tuple(module.format(i=i) + suffix for module in entry.ours)
                if all(name in parameters for name in names):
                    placed.update(names)
                    yield Binding(entry.stored.format(i=i) + suffix, names, entry.layout)
    homeless = [name for name in parameters if name not in placed]
    if homeless:
        raise ModelError(
            f"parameter {homeless[0]!r} has no place in {file_format} files of architecture {family.name!r}"
        )
