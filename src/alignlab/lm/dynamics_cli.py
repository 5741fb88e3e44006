"""`alignlab dynamics RUN`: what happened inside a training, as one page; and what its model says when measured now."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.core.errors import ConfigError, ModelError
from alignlab.core.run_status import find_run
from alignlab.core.runs import Run
from alignlab.lm.chat import Parser

if TYPE_CHECKING:
    from alignlab.core.progress import Progress
    from alignlab.data.loader import TokenLoader
    from alignlab.lm.model import GPTModel
    from alignlab.train.dynamics_report import Measured
    from alignlab.train.range_test import RangeTest

REPORT = "dynamics.html"
LONGEST = 512
RAMP_ROWS = 8


def dynamics(argv: list[str]) -> int:
    """The `alignlab dynamics` command; returns its exit code."""
    options = _parser().parse_args(argv)
    _check(options)
    from alignlab.train.dynamics_records import DECAY, Dynamics
    from alignlab.train.dynamics_report import build_report

    run = Run.read(find_run(options.run))
    records = Dynamics(run, options.name)
    measured = None
    if options.measure is None:
        records.require_observed()
    else:
        from alignlab.core.progress import Progress

        measured = measure(options, run.path, Progress())
    page = build_report(records, measured=measured, decay=DECAY if options.decay is None else options.decay)
    print(page.save(options.out if options.out is not None else run.path / REPORT))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="alignlab dynamics",
        description="Write a report of a run's training dynamics: loss, gradient noise scale and critical batch size, "
        "updates and activations by layer, gradient spikes.",
    )
    parser.add_argument("run", nargs="?", default="latest", help="path, name or part of it (default: latest)")
    parser.add_argument("--name", help="which training of the run, such as pretrain (default: the observed one)")
    parser.add_argument("--decay", type=float, help="decay of the moving averages, 0 to below 1 (default: 0.98)")
    parser.add_argument("--out", type=Path, help=f"where to write the page (default: {REPORT} in the run)")
    group = parser.add_argument_group("measuring on the run's model")
    group.add_argument("--measure", type=Path, metavar="CORPUS", help="a tokenised corpus: noise scale from examples")
    group.add_argument("--model", help="model to measure (default: the one that the run registered)")
    group.add_argument("--examples", type=int, default=64, help="rows whose gradients are taken (default: 64)")
    group.add_argument("--length", type=int, help=f"tokens of a row (default: the context, at most {LONGEST})")
    group.add_argument("--range-test", action="store_true", help="also a learning-rate range test from new weights")
    group.add_argument("--seed", type=int, default=0, help="which rows, and the new weights (default: 0)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Wrong values are told before anything is loaded."""
    if options.decay is not None and not 0 <= options.decay < 1:
        raise ConfigError(f"--decay is {options.decay}, allowed: a number from 0 to below 1")
    if options.examples < 3:
        raise ConfigError(f"--examples is {options.examples}, allowed: a whole number of at least 3")
    if options.length is not None and options.length < 2:
        raise ConfigError(f"--length is {options.length}, allowed: a whole number of at least 2")
    if options.measure is None and (options.range_test or options.model):
        raise ConfigError("--range-test and --model need --measure CORPUS, a corpus that `alignlab tokenize` wrote")


def measure(options: argparse.Namespace, run: Path, progress: Progress) -> Measured:
    """Noise scale of the run's model on rows of the corpus, and the range test where asked."""
    from alignlab.data.loader import TokenLoader
    from alignlab.data.shards import TokenShards
    from alignlab.lm.language_model import load
    from alignlab.train.dynamics_report import Measured
    from alignlab.train.language import language_model_loss
    from alignlab.train.per_example import per_example_noise_scale

    lm = load(options.model or str(run), dtype="float32", device=options.device)
    corpus = options.measure / "train" if (options.measure / "train").is_dir() else options.measure
    shards = TokenShards.open(corpus)
    vocabulary = shards.manifest.tokenizer.vocab_size
    if vocabulary > lm.model.config.vocab_size:
        raise ModelError(
            f"{corpus} was made by a tokenizer of {vocabulary} tokens, but {lm.name} has {lm.model.config.vocab_size}; "
            "measure on the corpus that the model was trained on"
        )
    length = options.length or min(lm.model.config.n_ctx, LONGEST)
    loader = TokenLoader(shards, length=length, batch_size=1, seed=options.seed)
    # Repeated rows would count as independent ones.
    rows = min(options.examples, loader.rows)
    lm.model.requires_grad_(True)
    noise = per_example_noise_scale(
        lm.model, language_model_loss, [loader(i) for i in range(rows)], seed=options.seed, progress=progress
    )
    ramp = _range_test(lm.model, loader, options.seed, progress) if options.range_test else None
    text = f"{rows} rows of {length} tokens from {corpus.parent.name if corpus.name == 'train' else corpus.name}"
    return Measured(text, noise, ramp)


def _range_test(model: GPTModel, loader: TokenLoader, seed: int, progress: Progress) -> RangeTest:
    from alignlab.data.loader import TokenLoader
    from alignlab.lm.model import GPTModel
    from alignlab.train.language import language_model_loss
    from alignlab.train.range_test import learning_rate_range_test

    new = GPTModel(model.config, seed=seed).to(next(model.parameters()).device)
    batches = TokenLoader(loader.shards, length=loader.length, batch_size=RAMP_ROWS, seed=seed)
    return learning_rate_range_test(new, language_model_loss, batches, progress=progress)
