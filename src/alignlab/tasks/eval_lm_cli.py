"""`alignlab eval-lm`: how well a model predicts a text, and what its own text is like."""

from __future__ import annotations

import argparse
import json
import math
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import ConfigError
from alignlab.lm.chat import PACKED_HELP, Parser

if TYPE_CHECKING:
    from alignlab.core.progress import Progress
    from alignlab.lm.local import LocalSampler


def eval_lm(argv: list[str]) -> int:
    """The `alignlab eval-lm` command; returns its exit code."""
    options = _parser().parse_args(argv)
    for name in ("window", "samples", "sample_tokens", "limit"):
        if getattr(options, name) is None:
            continue
        least = {"window": 2, "sample_tokens": 4}.get(name, 0)
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {getattr(options, name)}, allowed: a whole number of at least {least}")
    from alignlab.core.progress import Progress
    from alignlab.lm.language_model import load
    from alignlab.lm.local import LocalSampler

    progress = Progress()
    texts = read_texts(options.text, options.field, options.limit)
    lm = load(options.model, dtype=options.dtype, device=options.device, packed=options.packed)
    sampler = LocalSampler(lm)
    facts = measure(sampler, texts, options, progress)
    if options.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in facts.items()))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="alignlab eval-lm", description="Score a model on text: perplexity, bits per byte, quality.")
    parser.add_argument("model", help="a registered or catalogue name, a path or a hub id")
    parser.add_argument(
        "text", help="a pulled text, a file or directory of text, or a tokenised corpus (its validation)"
    )
    parser.add_argument("--field", default="text", help="field or column with the text (default: text)")
    parser.add_argument("--limit", type=int, default=0, help="most documents to score (default: all)")
    parser.add_argument("--window", type=int, help="tokens of a window (default: the context, at most 1024)")
    parser.add_argument("--samples", type=int, default=0, help="samples to write and measure (default: none)")
    parser.add_argument("--sample-tokens", type=int, default=128, help="tokens of a sample (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of samples and intervals (default: 0)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--packed", action="store_true", help=PACKED_HELP)
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def read_texts(what: str, field: str, limit: int) -> list[str]:
    """The documents to score: a text by name or path, or the validation part of a tokenised corpus."""
    from alignlab.data.corpus import Corpus
    from alignlab.lm.text_download import resolve_text

    path = Path(what).expanduser()
    if (path / "validation" / "manifest.json").is_file():
        return list(islice(_validation_texts(path), limit or None))
    return list(islice(Corpus(resolve_text(what), field), limit or None))


def _validation_texts(path: Path) -> Any:
    from alignlab.lm.tokenized_corpus import open_tokenized

    corpus = open_tokenized(path)
    starts = [int(start) for start in corpus.validation.document_starts] + [len(corpus.validation)]
    for start, stop in pairwise(starts):
        yield corpus.tokenizer.decode(corpus.validation.slice(start, stop))


def measure(sampler: LocalSampler, texts: list[str], options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """What the command prints, by name; intervals as [low, high]."""
    from alignlab.tasks.language_modelling import score_windows

    longest = sampler.lm.model.config.n_ctx
    if options.window and options.window > longest:
        raise ConfigError(
            f"--window is {options.window}, but {sampler.lm.name} reads at most {longest} tokens; lower it"
        )
    window = options.window or min(1024, longest)
    scores = score_windows(sampler, texts, window=window, progress=progress)
    loss = scores.interval("loss", seed=options.seed)
    bits = scores.interval("bits_per_byte", seed=options.seed)
    facts: dict[str, Any] = {
        "model": sampler.lm.name,
        "documents": len(texts),
        "tokens": int(scores.tokens.sum()),
        "windows": f"{len(scores.nats)} of {window} tokens",
        "nats per token": loss.estimate,
        "nats per token, 95 %": [loss.low, loss.high],
        "perplexity": math.exp(min(loss.estimate, 700.0)),
        "bits per byte": bits.estimate,
        "bits per byte, 95 %": [bits.low, bits.high],
    }
    if options.samples:
        facts |= quality(sampler, texts, options)
    return facts


def quality(sampler: LocalSampler, texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Diversity and repetition of the model's continuations of the texts' beginnings, in its own tokens."""
    from alignlab.lm.types import SamplingParams
    from alignlab.tasks.text_quality import distinct_n, repetition_rate, self_bleu

    tokenizer, longest = sampler.lm.tokenizer, min(64, max(1, sampler.lm.model.config.n_ctx // 4))
    start = [tokenizer.decode(tokenizer.encode(text[:400])[:longest]) for text in texts]
    start = [text for text in start if text.strip()]
    if not start:
        raise ConfigError("no document has text to begin a sample with; leave --samples out")
    prompts = [start[i % len(start)] for i in range(options.samples)]
    sampling = SamplingParams(max_tokens=options.sample_tokens, temperature=1.0, seed=options.seed)
    written = [completion.tokens for completion in sampler.generate(prompts, sampling)]
    written = [tokens for tokens in written if len(tokens) >= 4]
    facts: dict[str, Any] = {"samples of 4 tokens or more": len(written)}
    if written:
        facts |= {"distinct-2": distinct_n(written, 2), "repetition of 4-grams": repetition_rate(written)}
    if len(written) >= 2:
        facts["self-BLEU"] = self_bleu(written)
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{x:.4f}" for x in value)
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
