"""`alignlab sft`: teach a model conversations or completions from a file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.align.sft_filter_settings import FilterSettings
from alignlab.core.config import parse_cli, require
from alignlab.core.errors import ModelError

if TYPE_CHECKING:
    from alignlab.align.conversations import Conversation
    from alignlab.align.sft import SFTExample
    from alignlab.core.progress import Progress
    from alignlab.core.runs import Run


@dataclass(frozen=True)
class FineTuneConfig:
    """Fine-tune a model on a JSONL file of conversations or prompts with answers; the loss is on the answers only."""

    data: Path
    """JSONL: messages (or ShareGPT's conversations), prompt with response or completion, or instruction with output."""
    model: str = "smollm2-135m-instruct"
    """The model to start from: a catalogue or registered name, a directory, a .gguf file or a hub id. A quantised one
    gets its adapter beside the codes (QLoRA); what is exported then is plain."""
    packed: bool = False
    """Keep the Q4_0, Q4_1 and Q8_0 matrices of a GGUF file in their bits (QLoRA)."""
    learn: Literal["all", "last"] = "all"
    """The assistant's turns of a conversation that are learned; a turn with "weight": 0 never is."""
    system: str = ""
    """A system message for conversations that have none."""
    neftune_alpha: float = 0.0
    """NEFTune: noise on the embeddings while training; the paper tries 5, 10 and 15. 0 adds none."""
    filters: tuple[str, ...] = ()
    """Filters that records go through first: exact near length repetition characters ending copy, and with what they
    need language contamination perplexity reward (see `alignlab data filter`)."""
    filter: FilterSettings = field(default_factory=FilterSettings)
    """Where the filters draw their lines."""
    name: str = "fine-tuned"
    """Name under which the result is registered."""
    epochs: float = 1.0
    """Passes over the examples."""
    learning_rate: float = 0.0
    """Peak learning rate; 0 takes 1e-3 for an adapter and 5e-5 for all weights."""
    rank: int = 16
    """Rank of the LoRA adapter on every linear layer; 0 trains all weights."""
    batch_size: int = 8
    """Packed rows per forward pass."""
    accumulate: int = 1
    """Forward passes per update."""
    row_length: int = 256
    """Tokens of a packed row. A longer conversation is divided between turns, a longer prompt loses its start."""
    warmup_steps: int = 3
    """Updates over which the learning rate rises to its peak."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the products of fp32 weights in bfloat16."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; all-weights training takes float32 unless told otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    checkpoint_every: int = 50
    """Updates between checkpoints."""
    seed: int = 0
    """Everything random derives from it."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("rank", "warmup_steps", "checkpoint_every", "learning_rate", "neftune_alpha"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        require(self.epochs > 0, "epochs", self.epochs, "a positive number")
        require(self.rank > 0 or not self.packed, "rank", self.rank, "at least 1 where packed: codes are not trained")
        require(self.row_length >= 2, "row_length", self.row_length, "a whole number of at least 2")


@dataclass(frozen=True)
class FineTuneCommand(FineTuneConfig):
    """Fine-tune a model on a JSONL file of conversations or prompts with answers; the loss is on the answers only."""

    run: Path | None = None
    """Directory of the run; one that exists is gone on with."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def sft(argv: list[str]) -> int:
    """The `alignlab sft` command; returns its exit code."""
    from alignlab.core.progress import Progress
    from alignlab.core.run_choice import run_at

    command = parse_cli(FineTuneCommand, argv, prog="alignlab sft", first="data")
    config = FineTuneConfig(**{f.name: getattr(command, f.name) for f in fields(FineTuneConfig)})

    def check() -> None:
        check_base(config)
        if config.filters:
            from alignlab.align.sft_filters import check_filters

            check_filters(config.filters, config.filter)

    with run_at(command.run, config, name="sft", sinks=command.sinks, check=check) as run:
        output = run.stage("sft", lambda: fine_tune(config, run, Progress()))
        print(f"{output['examples']} examples, {output['steps']} updates, loss {output['loss']:.4f} nats a token")
        print(f"run  {run.path}")
        print(f"talk to it:  alignlab chat {config.name}")
    return 0


def check_base(config: FineTuneConfig) -> None:
    """Raise what is wrong with the model that `config` names before there is a run directory."""
    from alignlab.lm.language_model import holds_codes, refuse_unpackable, resolve

    path = resolve(config.model)
    if config.packed:
        refuse_unpackable(path)
    if not config.rank and holds_codes(path):
        raise ModelError(
            f"{path} is quantised, and codes are not trained: take an adapter (--rank 16), or a model that is not "
            "quantised"
        )


def fine_tune(config: FineTuneConfig, run: Run, progress: Progress) -> dict[str, Any]:
    """Train, put an adapter into the weights, export and register; what to record about it."""
    from alignlab.align.sft import SFTConfig, sft
    from alignlab.lm import registry
    from alignlab.lm.language_model import load
    from alignlab.lm.lora import ALL_LINEAR, LoraConfig
    from alignlab.lm.native import export_model
    from alignlab.lm.quant.adapted import settle_adapters
    from alignlab.train.config import TrainConfig

    examples = examples_for(config, run, progress)
    dtype = "float32" if config.dtype == "auto" and config.rank == 0 else config.dtype
    lm = load(config.model, dtype=dtype, device=config.device, packed=config.packed)
    rate = config.learning_rate or (1e-3 if config.rank else 5e-5)
    settings = SFTConfig(
        epochs=config.epochs,
        row_length=config.row_length,
        batch_size=config.batch_size,
        neftune_alpha=config.neftune_alpha,
        lora=LoraConfig(rank=config.rank, alpha=2.0 * config.rank, targets=(ALL_LINEAR,), seed=config.seed)
        if config.rank
        else None,
        train=TrainConfig(
            learning_rate=rate,
            warmup_steps=config.warmup_steps,
            accumulate=config.accumulate,
            precision=config.precision,
            checkpoint_every=config.checkpoint_every,
            seed=config.seed,
        ),
    )
    result = sft(lm, examples, settings, run=run, progress=progress)
    if config.rank:
        settle_adapters(lm.model)
    path = run.path / "model"
    progress.say(str(export_model(lm, path)))
    registry.register(config.name, path, {"base": config.model, "run": str(run.path), "stage": "sft"})
    return {"examples": len(examples), "steps": result.steps, "loss": result.final_loss, "path": str(path)}


def examples_for(config: FineTuneConfig, run: Run, progress: Progress) -> list[SFTExample | Conversation]:
    """What the file teaches, after the filters; what they dropped is in the run's artifacts."""
    from alignlab.align.sft_data import Reading, read_examples
    from alignlab.align.sft_filter_cli import account, filtered_file, record_filters

    reading = Reading(config.learn, config.system)
    if not config.filters:
        return read_examples(config.data, reading)
    found = filtered_file(config.data, config.filters, config.filter, reading=reading, progress=progress)
    record_filters(run, found)
    progress.say(account(found))
    return [example for record in found.kept for example in record.examples]
