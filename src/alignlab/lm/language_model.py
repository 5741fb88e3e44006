"""`LanguageModel`, a model with its tokenizer, and `load`, which finds one by whatever name it goes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import torch

from alignlab.core.device import pick_device, pick_dtype
from alignlab.core.errors import ModelError
from alignlab.lm import catalogue, registry
from alignlab.lm.gguf_config import config_from_gguf
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.gguf_tokenizer import from_gguf
from alignlab.lm.hf_config import read_json_object
from alignlab.lm.llama2c import load_llama2c, load_llama2c_tokenizer
from alignlab.lm.model import GPTModel
from alignlab.lm.native import QUANTISED_TYPE, load_directory
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.tokenizer_training import load_tokenizer
from alignlab.lm.weights import load_weights


@dataclass
class LanguageModel:
    """A model and the tokenizer that belongs to it. Raises `ModelError` where they do not fit each other."""

    model: GPTModel
    tokenizer: Tokenizer
    name: str
    source: str
    """Where it came from: a file, a directory or a hub snapshot."""

    def __post_init__(self) -> None:
        rows = self.model.config.vocab_size
        if self.tokenizer.vocab_size > rows:
            raise ModelError(
                f"{self.source}: the tokenizer knows {self.tokenizer.vocab_size} tokens, the model has only {rows}: "
                "they do not belong together"
            )


def load(
    spec: str, *, dtype: str = "auto", device: str = "auto", download: bool = True, packed: bool = False
) -> LanguageModel:
    """The model that `spec` names.

    A path: a directory in Hugging Face's format or ours (also of a quantised model), a `.gguf`, a llama2.c `.bin` (its
    tokenizer beside it as `tokenizer.bin` or `tok*.bin`), or a run directory (the model it registered). A name: from
    the catalogue, registered by a run, "latest" (registered last), or a hub id `owner/name`. Catalogued and hub models
    are pulled unless `download` is false. `packed` keeps a GGUF file's Q4_0, Q4_1 and Q8_0 matrices in their bits; the
    model is then frozen. Raises `ModelError` for everything else, naming what is near.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    path = resolve(spec, download=download)
    lm = _load_path(path, precision, target, packed)
    named = "/" not in spec or not Path(spec).expanduser().exists()
    lm.name = spec if named and spec != "latest" else path.stem if path.is_file() else path.name
    return lm


def resolve(spec: str, *, download: bool = True) -> Path:
    """The file or model directory behind `spec`, as `load` understands it."""
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _resolve_directory(path)
    model = registry.find(spec)
    if model is not None:
        return registry.resolve(spec)
    if spec in catalogue.CATALOGUE or (catalogue.HUB_ID.fullmatch(spec) and path.suffix not in (".gguf", ".bin")):
        found = catalogue.locate(spec)
        if found is None and not download:
            raise ModelError(f"model {spec!r} is not on this machine; `alignlab models pull {spec}` fetches it")
        return found or catalogue.pull(spec)
    known = [*catalogue.CATALOGUE, *(m.name for m in registry.registered())]
    near = difflib.get_close_matches(spec, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`alignlab models list` shows the known ones"
    raise ModelError(f"unknown model {spec!r}: no such file, directory or name; {hint}")


def _resolve_directory(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    if (path / "status.json").is_file():
        inside = path.resolve()
        made = [m for m in registry.registered() if inside in m.path.parents or m.info.get("run") == str(inside)]
        if made:
            return registry.resolve(made[-1].name)
        raise ModelError(f"{path}: this run has registered no model; `alignlab runs show {path}` says how far it came")
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    raise ModelError(f"{path}: neither a model directory (no config.json) nor a run directory (no status.json)")


def holds_codes(path: Path) -> bool:
    """Whether a resolved path is the directory of a quantised model, which loads packed whether asked for or not."""
    return path.is_dir() and read_json_object(path / "config.json").get("model_type") == QUANTISED_TYPE


def refuse_unpackable(path: Path) -> None:
    """`ModelError` where `packed` has nothing to keep: only GGUF files and quantised models have packed weights."""
    if not holds_codes(path) and (path.is_dir() or path.suffix == ".bin"):
        raise ModelError(
            f"{path} has no packed weights to keep: GGUF files have; `alignlab quantise` writes other models packed"
        )


def _load_path(path: Path, dtype: torch.dtype, device: torch.device, packed: bool) -> LanguageModel:
    if packed:
        refuse_unpackable(path)
    if path.is_dir():
        tokenizer = load_tokenizer(path)
        return LanguageModel(load_directory(path, dtype=dtype, device=device), tokenizer, path.name, str(path))
    if path.suffix == ".bin":
        return _load_llama2c(path, dtype, device)
    with path.open("rb") as start:
        if path.suffix != ".gguf" and start.read(4) != b"GGUF":
            raise ModelError(f"{path}: unknown kind of file; allowed: .gguf, llama2.c .bin, or a model directory")
    source = GGUFFile(path)
    tokenizer, config = from_gguf(source), config_from_gguf(source)
    if packed:
        from alignlab.lm.quant.gguf_packed import packed_model  # seldom needed

        model = packed_model(config, source, dtype).to(device)
    else:
        model = load_weights(config, source, "gguf", dtype=dtype, device=device)
    return LanguageModel(model, tokenizer, path.stem, str(path))


def _load_llama2c(path: Path, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    model = load_llama2c(path, dtype=dtype, device=device)
    beside = [path.with_name("tokenizer.bin"), *sorted(path.parent.glob("tok*.bin"))]
    file = next((f for f in beside if f.is_file()), None)
    if file is None:
        raise ModelError(f"{path}: its tokenizer is missing; put it beside the checkpoint as tokenizer.bin")
    return LanguageModel(model, load_llama2c_tokenizer(file, model.config.vocab_size), path.stem, str(path))
