"""`alignlab quantise`: weights of few bits, what they cost, and GGUF files for llama.cpp."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import ConfigError
from alignlab.lm.chat import Parser

if TYPE_CHECKING:
    from alignlab.lm.language_model import LanguageModel

IN_MEMORY = ("int8", "int4", "nf4")
GGUF = ("f32", "f16", "q8_0", "q4_0", "q4_k")


def quantise(argv: list[str]) -> int:
    """The `alignlab quantise` command; returns its exit code."""
    options = _parser().parse_args(argv)
    _check(options)
    from alignlab.lm.language_model import load
    from alignlab.lm.quant.measure import heldout_tokens, perplexity
    from alignlab.lm.quant.saved import check_target
    from alignlab.lm.registry import check_name

    if options.scheme in IN_MEMORY and options.output is not None:
        check_target(options.output)
    if options.name is not None:
        check_name(options.name)
    lm = load(options.model, dtype=options.dtype, device=options.device)
    documents = heldout_tokens(lm, options.tokens) if options.tokens else []
    before = perplexity(lm.model, documents) if documents else None
    facts, details = (_in_memory if options.scheme in IN_MEMORY else _gguf)(lm, options, documents)
    if before is not None:
        facts["tokens"] = sum(map(len, documents))
        facts["perplexity before"] = before
        facts["perplexity change"] = facts["perplexity after"] / before - 1
    if options.json:
        print(json.dumps(facts | {"layers": details["layers"]}))
        return 0
    if options.layers and details["table"]:
        print(details["table"] + "\n")
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {_shown(name, value)}" for name, value in facts.items()))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="alignlab quantise",
        description="Put weights into few bits: errors by layer, perplexity, memory; a directory or a GGUF file.",
    )
    parser.add_argument("model", help="a registered or catalogue name, a path or a hub id")
    parser.add_argument(
        "--scheme", required=True, choices=(*IN_MEMORY, *GGUF),
        help="int8, int4 and nf4 are ours (written where --output says); the others write a GGUF file",
    )  # fmt: skip
    parser.add_argument(
        "--output", "--out", type=Path, metavar="PATH", help="the directory (int8, int4, nf4) or .gguf file to write"
    )
    parser.add_argument("--name", help="register the written directory under this name")
    parser.add_argument("--group-size", type=int, help="columns that share a scale (default: 64; int4: 32)")
    parser.add_argument("--embeddings", action="store_true", help="also put embedding and head into int8")
    parser.add_argument("--layers", action="store_true", help="print the errors of every layer")
    parser.add_argument(
        "--tokens", type=int, default=4096, help="held-out tokens for perplexity and outputs; 0: none (default: 4096)"
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", action="store_true", help="as JSON, every layer included")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.tokens < 0 or options.tokens == 1:
        raise ConfigError(f"--tokens is {options.tokens}, allowed: 0, or a whole number of at least 2")
    if options.name is not None and (options.scheme not in IN_MEMORY or options.output is None):
        raise ConfigError("--name registers the directory that --scheme int8, int4 or nf4 writes with --output")
    if options.scheme in IN_MEMORY:
        if options.output is not None and options.output.suffix == ".gguf":
            raise ConfigError(
                f"--output is {str(options.output)!r}, but --scheme {options.scheme} writes a directory; for GGUF "
                f"files: {', '.join(GGUF)}"
            )
        return
    if options.output is None:
        raise ConfigError(f"--scheme {options.scheme} writes a GGUF file: --output says where")
    if options.output.suffix != ".gguf":
        raise ConfigError(f"--output is {str(options.output)!r}, its name must end in .gguf")
    if options.group_size is not None or options.embeddings or options.layers:
        raise ConfigError("--group-size, --embeddings and --layers are for int8, int4 and nf4, not for GGUF files")


def _in_memory(lm: LanguageModel, options: argparse.Namespace, documents: list[Any]) -> tuple[dict[str, Any], Any]:
    from alignlab.lm.quant.apply import quantise as apply
    from alignlab.lm.quant.measure import perplexity
    from alignlab.lm.quant.saved import save_quantised
    from alignlab.lm.registry import register

    calibration = documents[0][None, :512] if documents else None
    report = apply(lm.model, options.scheme, options.group_size, calibration=calibration, embeddings=options.embeddings)
    errors = [layer.weight_error for layer in report.layers]
    worst = report.worst(1)[0]
    facts: dict[str, Any] = {
        "scheme": report.scheme,
        "group size": report.group_size,
        "matrices": len(report.layers),
        "kept as they were": len(report.kept),
        "mean weight error": sum(errors) / len(errors),
        "worst layer": f"{worst.name} ({worst.output_error or worst.weight_error:.4f})",
        "bytes before": report.bytes_before,
        "bytes after": report.bytes_after,
    }
    if documents:
        facts["perplexity after"] = perplexity(lm.model, documents)
    if options.output is not None:
        path = save_quantised(lm, options.output)
        facts |= {"directory": str(path), "bytes on disk": (path / "model.safetensors").stat().st_size}
        if options.name is not None:
            info = {"base": options.model, "scheme": report.scheme, "group_size": report.group_size}
            facts["registered as"] = register(options.name, path, info).name
    return facts, {"table": report.table(), "layers": report.to_dict()["layers"]}


def _gguf(lm: LanguageModel, options: argparse.Namespace, documents: list[Any]) -> tuple[dict[str, Any], Any]:
    from alignlab.lm.gguf_export import export_gguf
    from alignlab.lm.language_model import load
    from alignlab.lm.quant.apply import memory
    from alignlab.lm.quant.measure import perplexity

    path = export_gguf(lm, options.output, options.scheme)
    facts: dict[str, Any] = {
        "scheme": options.scheme,
        "file": str(path),
        "bytes before": memory(lm.model),
        "bytes after": path.stat().st_size,
    }
    if documents:
        facts["perplexity after"] = perplexity(
            load(str(path), dtype=options.dtype, device=options.device).model, documents
        )
    return facts, {"table": "", "layers": []}


def _shown(name: str, value: Any) -> str:
    if name == "perplexity change":
        return f"{value:+.2%}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
