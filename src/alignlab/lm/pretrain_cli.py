"""`alignlab pretrain`: train a model of your own from a tokenised corpus."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.core.config import parse_cli
from alignlab.lm.pretrain_config import PretrainConfig, resolved

if TYPE_CHECKING:
    from alignlab.core.runs import Run
    from alignlab.train.trainer import TrainResult


@dataclass(frozen=True)
class PretrainCommand(PretrainConfig):
    """Train a language model from scratch on a corpus that `alignlab tokenize` made.

    Started again with the same settings it goes on where it stopped. Under torchrun all processes train together.
    """

    run: Path | None = None
    """Directory of the run; none makes one below ./runs, or goes on with the last unfinished one of these settings."""
    fresh: bool = False
    """Start a new run even where one of these settings exists."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def pretrain(argv: list[str]) -> int:
    """The `alignlab pretrain` command; returns its exit code."""
    command = parse_cli(PretrainCommand, argv, prog="alignlab pretrain", first="data")
    config = PretrainConfig(**{f.name: getattr(command, f.name) for f in fields(PretrainConfig)})
    return train(config, place=command.run, fresh=command.fresh, sinks=command.sinks)


def train(config: PretrainConfig, *, place: Path | None, fresh: bool, sinks: tuple[str, ...]) -> int:
    """Train in a new run or in the one that was interrupted; returns the exit code."""
    from alignlab.core.progress import Progress
    from alignlab.core.run_choice import open_or_create
    from alignlab.lm.pretrain import pretrain, start_parallel
    from alignlab.lm.tokenized_corpus import open_tokenized
    from alignlab.train.parallel import leaving, restarted

    config = resolved(config, open_tokenized(config.data).tokenizer.vocab_size)
    with leaving(start_parallel(config)) as parallel:
        if not parallel.is_main:
            pretrain(config, None, progress=Progress.silent(), parallel=parallel)
            return 0
        progress = Progress()
        run = open_or_create(
            config, name="pretrain", seed=config.train.seed, path=place, fresh=fresh and not restarted(), sinks=sinks,
            progress=progress,
        )  # fmt: skip
        with run:
            result = pretrain(config, run, progress=progress, parallel=parallel)
            print(summary(config, run, result))
    return 0


def summary(config: PretrainConfig, run: Run, result: TrainResult) -> str:
    """What came out, in a few lines."""
    last = result.history[-1]
    lines = [f"{result.steps} updates, training loss {result.final_loss:.4f} nats a token"]
    if "validation_loss" in last:
        bits = last["validation_bits_per_byte"]
        lines.append(f"validation loss {last['validation_loss']:.4f} nats a token, {bits:.4f} bits a byte")
    lines.append(f"run  {run.path}")
    if run.stage_record("export") is not None:
        lines += [f"write with it:  alignlab chat {config.name}", f"its dynamics:   alignlab dynamics {run.path.name}"]
    return "\n".join(lines)
