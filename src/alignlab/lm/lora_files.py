"""Adapters in PEFT's file format: `adapter_config.json` and `adapter_model.safetensors`.

What is saved here loads with `peft.PeftModel.from_pretrained` on the Hugging Face model of the same weights, and what
PEFT saved (plain LoRA) loads here. Our layers' names become Hugging Face's by the family's table in
`alignlab.lm.architectures`. `A` is (rank, in) and `B` (out, rank) in the file too, also beside GPT-2's input-first
weights.

PEFT has no place for some adapters: on a projection that a family keeps fused with others, or on a model that no family
holds. `store_adapter` writes those under our own names (`"peft_type": "ALIGNLAB"`), which only `load_adapter` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, DataError, ModelError
from alignlab.core.files import atomic_write, read_json
from alignlab.lm.architectures import Entry, Transposed, family_of
from alignlab.lm.lora import ALL_LINEAR, LoraConfig, lora_layers, refuse_adapters, wrap_linear
from alignlab.lm.model import GPTModel
from alignlab.lm.native import hf_refusal
from alignlab.lm.quant.layers import ConstantLinear

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight"
_PEFT, _OWN = "LORA", "ALIGNLAB"
_UNSUPPORTED = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora",
)  # fmt: skip
_UNCHANGED_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base weights as they were; others (PiSSA, OLoRA, ...) need a changed base."""


def save_adapter(model: GPTModel, directory: str | Path, *, base_model: str | None = None) -> Path:
    """Write the adapters of `model` for PEFT; `base_model` is the hub id or path that PEFT should find the base under.

    Raises:
        ModelError: the model has no adapters, or one on a query, key or value projection that the family's Hugging Face
            files hold fused in one matrix (GPT-2, GPT-NeoX), where PEFT has no place for it.
    """
    stored = {name: _hf_name(model, name) for name in lora_layers(model)}
    config = {
        "peft_type": _PEFT,
        "task_type": "CAUSAL_LM",
        "target_modules": _target_modules(model, stored.values()),
        "fan_in_fan_out": any(isinstance(entry.layout, Transposed) for entry in family_of(model.config).hf),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return _write(
        model, Path(directory), {ours: _PREFIX + theirs for ours, theirs in stored.items()}, config, base_model
    )


def store_adapter(model: GPTModel, directory: str | Path, *, base_model: str | None = None) -> Path:
    """Write the adapters of `model` for `load_adapter`: for PEFT where it has a place for each, else by our own names.

    Raises `ModelError` where the model has no adapters.
    """
    layers = lora_layers(model)
    if hf_refusal(model.config) is None and layers.keys() <= {*_placed(model)}:
        return save_adapter(model, directory, base_model=base_model)
    return _write(model, Path(directory), {name: name for name in layers}, {"peft_type": _OWN}, base_model)


def _write(
    model: GPTModel, directory: Path, stored: dict[str, str], config: dict[str, Any], base_model: str | None
) -> Path:
    """The two files, with each layer's matrices under its name in `stored`."""
    layers, tensors = lora_layers(model), dict[str, Tensor]()
    for name, layer in layers.items():
        for matrix, value in (("A", layer.lora_A), ("B", layer.lora_B)):
            tensors[f"{stored[name]}.lora_{matrix}.weight"] = value.detach().cpu().contiguous()
    lora = next(iter(layers.values())).config
    config = {
        **config,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
    }
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
    atomic_write(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    return directory


def load_adapter(model: GPTModel, directory: str | Path) -> GPTModel:
    """Freeze `model` and add the adapters that PEFT or this module wrote to `directory`; returns `model`.

    Raises:
        ModelError: the model already has adapters, a file is missing or damaged, the adapter is of another kind than
            plain LoRA, or it does not fit this model. The model is then as it was.
    """
    directory = Path(directory)
    refuse_adapters(model)
    config, own = _read_config(directory)
    pairs = _read_pairs(directory, "" if own else _PREFIX)
    ours = {name: name for name in _linear(model)} if own else {_hf_name(model, name): name for name in _placed(model)}
    for module, (a, b) in pairs.items():
        if module not in ours:
            raise ModelError(f"adapter {directory} has weights for {module}, which {model.config.architecture} has not")
        layer = model.get_submodule(ours[module])
        assert isinstance(layer, nn.Linear | ConstantLinear)
        expected = ((config.rank, layer.in_features), (layer.out_features, config.rank))
        if (tuple(a.shape), tuple(b.shape)) != expected:
            raise ModelError(
                f"adapter {directory} has {tuple(a.shape)} and {tuple(b.shape)} for {module}, where this model "
                f"and rank {config.rank} need {expected[0]} and {expected[1]}"
            )
    model.requires_grad_(False)
    for module, (a, b) in pairs.items():
        wrapped = wrap_linear(model, ours[module], config)
        with torch.no_grad():
            wrapped.lora_A.copy_(a)
            wrapped.lora_B.copy_(b)
    return model


def _placed(model: GPTModel) -> list[str]:
    """Names of our linear layers that stand alone in the family's Hugging Face files."""
    fused = {ours for entry in family_of(model.config).hf if len(entry.ours) > 1 for ours in entry.ours}
    return [name for name in _linear(model) if _template(name) not in fused]


def _linear(model: GPTModel) -> list[str]:
    """Names of our linear layers."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | ConstantLinear)]
    return [name.removesuffix(".base") for name in names]  # the layer inside a LoRALinear


def _template(name: str) -> str:
    """`blocks.3.attn.q` -> `blocks.{i}.attn.q`."""
    return re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name)


def _hf_name(model: GPTModel, name: str) -> str:
    entry = _entry(model, name)
    found = re.match(r"blocks\.(\d+)\.", name)
    return entry.stored.format(i=found[1]) if found else entry.stored


def _entry(model: GPTModel, name: str) -> Entry:
    family = family_of(model.config)
    for entry in family.hf:
        if _template(name) in entry.ours:
            if len(entry.ours) > 1:
                alone = sorted({n.rpartition(".")[2] for n in _placed(model)} - {"head"})
                raise ModelError(
                    f"{name} has an adapter, but Hugging Face's {family.name} keeps query, key and value in one "
                    f"matrix, so PEFT has no place for it; for PEFT use the targets {', '.join(alone)}, or merge and "
                    "export the model"
                )
            return entry
    raise ModelError(f"{name} has no place in Hugging Face's {family.name}")


def _target_modules(model: GPTModel, stored: Iterable[str]) -> list[str]:
    """What PEFT should wrap: short endings where all layers have the adapter, full names otherwise."""
    stored = list(stored)
    templates: dict[str, list[str]] = {}
    for name in stored:
        templates.setdefault(re.sub(r"\.\d+\.", ".{i}.", name, count=1), []).append(name)
    last = [entry.stored.rpartition(".")[2] for entry in family_of(model.config).hf]
    targets = []
    for template, names in templates.items():
        tail = template.rpartition(".")[2]
        if "{i}" not in template or len(names) < model.config.n_layers:
            targets += names
        else:
            targets.append(tail if last.count(tail) == 1 else template.split("{i}.")[1])
    return sorted(targets)


def _read_config(directory: Path) -> tuple[LoraConfig, bool]:
    """The configuration, and whether the file is one of our own names."""
    path = directory / CONFIG_FILE
    try:
        raw: Any = read_json(path)
    except DataError as error:
        raise ModelError(f"{directory} is no adapter: {error}") from error
    if not isinstance(raw, dict) or raw.get("peft_type") not in (_PEFT, _OWN):
        kind = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        raise ModelError(f"{path} describes {kind!r}, allowed: an adapter of peft_type 'LORA'")
    changed = [key for key in _UNSUPPORTED if raw.get(key)]
    changed += ["bias"] if raw.get("bias", "none") != "none" else []
    changed += ["init_lora_weights"] if raw.get("init_lora_weights") not in _UNCHANGED_BASE else []
    if changed:
        raise ModelError(f"{path} uses {changed[0]} ({raw[changed[0]]!r}), only plain LoRA can be loaded")
    rank, alpha, dropout = raw.get("r"), raw.get("lora_alpha"), raw.get("lora_dropout", 0.0)
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not isinstance(dropout, int | float):
        raise ModelError(f"{path} has r={rank!r}, lora_alpha={alpha!r}, lora_dropout={dropout!r}, allowed: numbers")
    try:
        # Which layers have adapters is read from the weights: endings of Hugging Face names mean nothing here.
        lora = LoraConfig(rank, float(alpha), (ALL_LINEAR,), float(dropout), bool(raw.get("use_rslora")))
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from error
    return lora, raw["peft_type"] == _OWN


def _read_pairs(directory: Path, prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    path = directory / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot read adapter weights {path}: {error}".splitlines()[0]) from error
    matrices: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        found = re.fullmatch(re.escape(prefix) + _KEY, key)
        if found is None:
            raise ModelError(f"{path} has tensor {key!r}, allowed: {prefix}<module>.lora_A.weight and lora_B")
        matrices.setdefault(found["module"], {})[found["matrix"]] = value
    for module, both in matrices.items():
        if both.keys() != {"A", "B"}:
            raise ModelError(f"{path} has only lora_{next(iter(both))} for {module}, both matrices are needed")
    if not matrices:
        raise ModelError(f"{path} holds no adapter weights")
    return {module: (both["A"], both["B"]) for module, both in matrices.items()}
