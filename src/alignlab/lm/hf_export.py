"""Export to a Hugging Face directory that `transformers` loads with equal logits, and the way back in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.core.files import atomic_write
from alignlab.lm.architectures import bindings
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_config import config_from_hf, read_json_object
from alignlab.lm.hf_config_writer import config_to_hf
from alignlab.lm.hf_equivalent import exportable_config, exportable_parameters
from alignlab.lm.lora import LoRALinear
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.apply import plain_parameters
from alignlab.lm.safetensors_reader import SafetensorsDir
from alignlab.lm.weights import load_weights

if TYPE_CHECKING:
    from alignlab.lm.language_model import LanguageModel

SHARD_BYTES = 4 * 2**30


def load_hf(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> GPTModel:
    """The model in a Hugging Face directory: `config.json` and safetensors, sharded or not."""
    directory = Path(directory)
    config = config_from_hf(read_json_object(directory / "config.json"), str(directory / "config.json"))
    if any(directory.glob("pytorch_model*.bin")) and not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory}: its weights are pickles, which are never loaded; convert them to safetensors")
    return load_weights(config, SafetensorsDir(directory), "hf", dtype=dtype, device=device)


def export_hf(lm: LanguageModel, directory: str | Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write `config.json`, safetensors (in shards above `shard_bytes`) and tokenizer files; returns the directory.

    LoRA adapters are merged into what is written; the model itself stays as it is.

    The weights are written before `config.json`, so a directory that an interruption left incomplete does not load.
    Raises `ModelError` where the architecture's format cannot express the model.
    """
    directory = Path(directory)
    config = exportable_config(lm.model.config)
    raw = config_to_hf(config) | _special_ids(lm)
    parameters = exportable_parameters(lm.model.config, merged_parameters(lm.model))
    directory.mkdir(parents=True, exist_ok=True)
    raw["dtype"] = raw["torch_dtype"] = str(lm.model.embed.weight.dtype).removeprefix("torch.")
    (directory / "config.json").unlink(missing_ok=True)
    _write_weights(config, parameters, directory, shard_bytes)
    write_tokenizer(lm, directory)
    atomic_write(directory / "config.json", json.dumps(raw, indent=2, sort_keys=True) + "\n")
    return directory


def merged_parameters(model: GPTModel) -> dict[str, Tensor]:
    """The state dict of the plain model: a layer with a LoRA adapter counts with its effective weight, a quantised one
    with the weight that its codes stand for."""
    parameters = plain_parameters(model.state_dict(), model)
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            parameters = {key: value for key, value in parameters.items() if not key.startswith(f"{name}.")}
            parameters[f"{name}.weight"] = layer.effective_weight()
            if layer.bias is not None:
                parameters[f"{name}.bias"] = layer.bias.detach()
    return parameters


def write_tokenizer(lm: LanguageModel, directory: Path) -> None:
    """The tokenizer's files, and `generation_config.json`, which says what ends a completion."""
    lm.tokenizer.save(directory)
    generation = {"eos_token_id": sorted(lm.tokenizer.eos_ids), "pad_token_id": lm.tokenizer.pad_id}
    atomic_write(directory / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file, which appears only when it is whole; `ModelError` where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.replace(path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        raise ModelError(f"{path}: cannot be written: {error}") from error


def remove_shards(directory: Path) -> None:
    """Remove the shards and their index of a model that was written here before."""
    for stale in (*directory.glob("model-*-of-*.safetensors"), directory / "model.safetensors.index.json"):
        stale.unlink(missing_ok=True)


def _special_ids(lm: LanguageModel) -> dict[str, int | None]:
    tokenizer = lm.tokenizer
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def _write_weights(config: GPTConfig, parameters: dict[str, Tensor], directory: Path, shard_bytes: int) -> None:
    plan = list(bindings(config, parameters, "hf"))
    shards: list[list[int]] = [[]]
    used = 0
    for i, binding in enumerate(plan):
        n_bytes = sum(parameters[p].numel() * parameters[p].element_size() for p in binding.parameters)
        if shards[-1] and used + n_bytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(i)
        used += n_bytes
    remove_shards(directory)
    weight_map: dict[str, str] = {}
    for number, members in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for i in members:
            parts = [parameters[p].detach().cpu() for p in plan[i].parameters]
            tensors[plan[i].stored] = plan[i].layout.join(parts, config).contiguous()
            weight_map[plan[i].stored] = name
        save_tensors(tensors, directory / name)
    if len(shards) > 1:
        (directory / "model.safetensors").unlink(missing_ok=True)
        total = sum(parameters[p].numel() * parameters[p].element_size() for b in plan for p in b.parameters)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        atomic_write(directory / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
