"""`alignlab models list | pull | show | export`: which models there are, and what is in one."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from alignlab.lm.chat import Parser


def models(argv: list[str]) -> int:
    """The `alignlab models` command; returns its exit code."""
    parser = Parser(prog="alignlab models", description="List known models, pull one, show what it is, export it.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,pull,show,export}")
    listing = actions.add_parser("list", help="the catalogue and what runs have registered")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    pull = actions.add_parser("pull", help="fetch a model into the cache, checked, for use without a network")
    pull.add_argument("name", help="a catalogue name or a hub id owner/name")
    show = actions.add_parser("show", help="architecture, parameters, context, tokenizer, template, tensor types")
    show.add_argument("model", help="a catalogue name, a registered name, a path or a hub id")
    show.add_argument("--json", action="store_true", help="as one JSON object")
    export = actions.add_parser("export", help="write a model as a directory in Hugging Face's format or ours")
    export.add_argument("model", help="a catalogue name, a registered name, a path or a hub id")
    export.add_argument("directory", type=Path)
    export.add_argument("--format", default="hf", choices=("hf", "native"))
    export.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args(argv)
    {"list": _list, "pull": _pull, "show": _show, "export": _export}[options.action](options)
    return 0


def _list(options: argparse.Namespace) -> None:
    from alignlab.lm import catalogue, registry

    rows = []
    for entry in catalogue.CATALOGUE.values():
        state = "pulled" if catalogue.locate(entry.name) else "not pulled"
        rows.append({"name": entry.name, "state": state, "licence": entry.licence, "description": entry.description})
    for model in registry.registered():
        state = "registered" if (model.path / "config.json").is_file() else "gone"
        described = str(model.info.get("description") or model.path)
        rows.append({"name": model.name, "state": state, "licence": "", "description": described})
    if options.json:
        for row in rows:
            print(json.dumps(row))
        return
    widths = {key: max(len(row[key]) for row in rows) for key in ("name", "state", "licence")}
    for row in rows:
        print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()) + f"  {row['description']}")


def _pull(options: argparse.Namespace) -> None:
    from alignlab.lm import catalogue

    print(catalogue.pull(options.name))


def describe(spec: str) -> dict[str, Any]:
    """What `alignlab models show` says about a model: only metadata are read, no weights."""
    from alignlab.lm.gguf_config import config_from_gguf
    from alignlab.lm.gguf_reader import GGUFFile
    from alignlab.lm.gguf_tokenizer import from_gguf
    from alignlab.lm.language_model import resolve
    from alignlab.lm.llama2c import Llama2cFile
    from alignlab.lm.native import packed_in, read_config
    from alignlab.lm.safetensors_reader import SafetensorsDir
    from alignlab.lm.tokenizer import Tokenizer
    from alignlab.lm.weights import empty_model

    path = resolve(spec)
    tokenizer: Tokenizer | None = None
    packed: dict[str, str] = {}
    if path.is_dir():
        config, packed = read_config(path), packed_in(path)
        tensors = SafetensorsDir(path)
        tokenizer, kinds = Tokenizer.from_hf(path), Counter(tensors.kind(name) for name in tensors.names())
    elif path.suffix == ".bin":
        source = Llama2cFile(path)
        config, kinds = source.config, Counter({"F32": len(source.names())})
    else:
        file = GGUFFile(path)
        config, tokenizer = config_from_gguf(file), from_gguf(file)
        kinds = Counter(tensor.kind.name for tensor in file.tensors.values())
    facts: dict[str, Any] = {
        "model": spec,
        "source": str(path),
        "architecture": "alignlab" if config.architecture == "auto" else config.architecture,
        "parameters": sum(p.numel() for p in empty_model(config).parameters()),
        "context": config.n_ctx,
        "layers": config.n_layers,
        "width": config.d_model,
        "heads": f"{config.n_heads} ({config.n_kv_heads} for keys and values)",
        "vocabulary": config.vocab_size,
        "tensor types": ", ".join(f"{name} × {count}" for name, count in sorted(kinds.items())),
        **packed,
    }
    if tokenizer is not None:
        ends = sorted(str(tokenizer.token(i)) for i in tokenizer.eos_ids)
        facts |= {
            "tokenizer": f"{tokenizer.core.model.__class__.__name__}, {tokenizer.vocab_size} tokens",
            "ends with": " ".join(ends),
            "chat template": tokenizer.chat_template or "none",
        }
    return facts


def _show(options: argparse.Namespace) -> None:
    facts = describe(options.model)
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        print(f"{name:<{width}}  " + text.replace("\n", "\n" + " " * (width + 2)))


def _export(options: argparse.Namespace) -> None:
    from alignlab.lm.hf_export import export_hf
    from alignlab.lm.language_model import load
    from alignlab.lm.native import export_native

    write = export_hf if options.format == "hf" else export_native
    print(write(load(options.model, dtype=options.dtype, device="cpu"), options.directory))
