"""Model directories in our own format, for what no family of Hugging Face files can hold (ALiBi, SoLU, post-norm, …).

    config.json         {"model_type": "alignlab", "format_version": 1, "dtype": …, "config": {GPTConfig's fields}}
    model.safetensors   the parameters under `GPTModel`'s own names, as they are
    tokenizer.json, …   what the Hugging Face export writes

Such a directory says everything that is needed to build the model again; nothing in it is guessed or left to a default.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignlab.core.config import from_dict, to_dict
from alignlab.core.errors import ConfigError, ModelError
from alignlab.core.files import atomic_write
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_config import config_from_hf, read_json_object
from alignlab.lm.hf_config_writer import config_to_hf
from alignlab.lm.hf_equivalent import exportable_config
from alignlab.lm.hf_export import export_hf, load_hf, merged_parameters, remove_shards, save_tensors, write_tokenizer
from alignlab.lm.model import GPTModel
from alignlab.lm.safetensors_reader import SafetensorsDir
from alignlab.lm.weights import load_weights

if TYPE_CHECKING:
    from alignlab.lm.language_model import LanguageModel

MODEL_TYPE = "alignlab"
QUANTISED_TYPE = "alignlab-quantised"
"""`model_type` of the directories of `alignlab.lm.quant.saved`."""
VERSION = 1
"""Version of the format. A new field of `GPTConfig` makes a new one and has a line in `ADDED_IN`."""
ADDED_IN: dict[str, int] = {}
"""Fields that older versions of the format do not have; their default must mean what was done before they came."""


@dataclass(frozen=True)
class Exported:
    """Where a model was written, in which format, and why not in Hugging Face's."""

    path: Path
    format: str
    """`hf` or `native`."""
    why: str = ""
    """The choice that no family has, for `native`."""

    def __str__(self) -> str:
        if self.format == "hf":
            return f"model written in Hugging Face format: {self.path}"
        return f"model written in alignlab's own format, because {self.why}: {self.path}"


def export_model(lm: LanguageModel, directory: str | Path) -> Exported:
    """Write the model in Hugging Face format where a family fits it, else in ours; `str` of the result says which."""
    why = hf_refusal(lm.model.config)
    if why is None:
        return Exported(export_hf(lm, directory), "hf")
    return Exported(export_native(lm, directory), "native", why)


def hf_refusal(config: GPTConfig) -> str | None:
    """Why no family of Hugging Face files holds such a model; None where one does."""
    try:
        config_to_hf(exportable_config(config))
    except ModelError as error:
        return str(error)
    return None


def export_native(lm: LanguageModel, directory: str | Path) -> Path:
    """Write the model in our own format; returns the directory.

    LoRA adapters are merged into what is written. `config.json` comes last, so a directory that an interruption left
    incomplete does not load. Raises `ModelError` or `RunError` where the directory cannot be written.
    """
    directory, config = Path(directory), lm.model.config
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").unlink(missing_ok=True)
    remove_shards(directory)
    tensors = {name: value.detach().cpu().contiguous() for name, value in merged_parameters(lm.model).items()}
    save_tensors(tensors, directory / "model.safetensors")
    write_tokenizer(lm, directory)
    raw = {
        "model_type": MODEL_TYPE,
        "format_version": VERSION,
        "dtype": str(lm.model.embed.weight.dtype).removeprefix("torch."),
        "config": to_dict(config),
    }
    atomic_write(directory / "config.json", json.dumps(raw, indent=2) + "\n")
    return directory


def load_native(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> GPTModel:
    """The model in a directory that `export_native` wrote.

    Raises `ModelError` for a newer version, a field of the configuration that is unknown, missing or impossible, and a
    tensor that is missing, too many, or of another shape than the configuration says.
    """
    directory = Path(directory)
    config = config_from_native(read_json_object(directory / "config.json"), str(directory / "config.json"))
    return load_weights(config, SafetensorsDir(directory), "native", dtype=dtype, device=device)


def load_directory(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> GPTModel:
    """The model in a directory of any format, which its `config.json` tells: Hugging Face's, ours, or ours in codes."""
    kind = read_json_object(Path(directory) / "config.json").get("model_type")
    if kind == QUANTISED_TYPE:
        from alignlab.lm.quant.saved import load_quantised  # which needs this module

        return load_quantised(directory, dtype=dtype, device=device)
    return (load_native if kind == MODEL_TYPE else load_hf)(directory, dtype=dtype, device=device)


def read_config(directory: str | Path) -> GPTConfig:
    """The architecture in a model directory of any format."""
    path = Path(directory) / "config.json"
    raw = read_json_object(path)
    if raw.get("model_type") == QUANTISED_TYPE:
        from alignlab.lm.quant.saved import manifest

        return manifest(raw, str(path))[0]
    return (config_from_native if raw.get("model_type") == MODEL_TYPE else config_from_hf)(raw, str(path))


def packed_in(directory: str | Path) -> dict[str, str]:
    """What a quantised model's directory says of its matrices, as a line to show; nothing for another directory."""
    path = Path(directory) / "config.json"
    raw = read_json_object(path)
    if raw.get("model_type") != QUANTISED_TYPE:
        return {}
    from alignlab.lm.quant.saved import manifest

    rules = Counter(
        f"{stored.rule} in groups of {stored.group_size}" for stored in manifest(raw, str(path))[1].values()
    )
    return {"quantised": ", ".join(f"{count} × {rule}" for rule, count in sorted(rules.items()))}


def config_from_native(raw: dict[str, Any], where: str = "config.json") -> GPTConfig:
    """The configuration in a `config.json` of ours; see `load_native` for errors."""
    version, fields = require_version(raw, VERSION, where), raw.get("config")
    if not isinstance(fields, dict):
        raise ModelError(f"{where}: 'config' is a {type(fields).__name__}, allowed: an object of GPTConfig's fields")
    expected = [f.name for f in dataclasses.fields(GPTConfig) if ADDED_IN.get(f.name, 1) <= version]
    missing = [name for name in expected if name not in fields]
    if missing:
        raise ModelError(f"{where}: field {missing[0]!r} is missing from 'config', which names every field")
    try:
        return from_dict(GPTConfig, fields)
    except ConfigError as error:
        raise ModelError(f"{where}: {error}") from None


def require_version(raw: dict[str, Any], newest: int, where: str) -> int:
    """The `format_version` of a `config.json`; ModelError where it is none from 1 to `newest`."""
    version = raw.get("format_version")
    if type(version) is not int or version < 1:
        raise ModelError(f"{where}: format_version is {version!r}, allowed: a whole number from 1 to {newest}")
    if version > newest:
        raise ModelError(
            f"{where}: format_version is {version}, this alignlab reads versions up to {newest}; install a newer one"
        )
    return version
