"""`alignlab prefer`: tune a model on preferences directly, with DPO, IPO, KTO, ORPO or SimPO."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.core.config import parse_cli, require

if TYPE_CHECKING:
    from alignlab.align.direct.objectives import DirectConfig
    from alignlab.align.direct.reading import FloatArray
    from alignlab.core.progress import Progress
    from alignlab.core.runs import Run


@dataclass(frozen=True)
class PreferConfig:
    """Tune a model on a file of preferences, without a reward model; whole dialogues are kept back to measure on."""

    data: Path
    """Pairs (prompt, chosen, rejected; HH-RLHF, UltraFeedback, our own export ...), or for kto rated answers: prompt,
    response, and good or label, true or false."""
    method: Literal["dpo", "robust-dpo", "length-dpo", "ipo", "kto", "orpo", "simpo"] = "dpo"
    """What is minimised."""
    model: str = "smollm2-135m-instruct"
    """The model to start from, which is also the reference: a catalogue or registered name, a directory, a .gguf file
    or a hub id."""
    name: str = "preferred"
    """Name under which the result is registered."""
    beta: float = 0.0
    """Tie to the reference, scale of the reward (simpo) or weight of the odds (orpo); 0 takes the method's own."""
    margin: float = 1.0
    """SimPO's gamma: by how much the scaled reward of the chosen side must lead."""
    label_smoothing: float = 0.0
    """Probability that a label is flipped."""
    heldout: float = 0.1
    """Share of the data kept back to measure on, as whole dialogues; 0 keeps none."""
    epochs: float = 1.0
    """Passes over the data."""
    learning_rate: float = 0.0
    """Peak learning rate; 0 takes 2e-4 for an adapter and 5e-6 for all weights."""
    rank: int = 16
    """Rank of the LoRA adapter on every linear layer; 0 trains all weights."""
    batch_size: int = 8
    """Pairs, or rated answers, per forward pass."""
    accumulate: int = 1
    """Forward passes per update."""
    max_length: int = 512
    """Tokens of prompt and response; a longer one loses the start of its prompt."""
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
        for name in ("rank", "warmup_steps", "checkpoint_every", "learning_rate", "beta", "margin"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        require(self.epochs > 0, "epochs", self.epochs, "a positive number")
        require(0 <= self.heldout < 1, "heldout", self.heldout, "0 or a number below 1")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "label_smoothing", smoothing, "a number from 0 to below 0.5")
        require(smoothing == 0 or self.method != "kto", "label_smoothing", smoothing, "0 for kto, which has no pairs")
        require(self.batch_size > 1 or self.method != "kto", "batch_size", self.batch_size, "at least 2 for kto")
        require(self.max_length >= 2, "max_length", self.max_length, "a whole number of at least 2")


@dataclass(frozen=True)
class PreferCommand(PreferConfig):
    """Tune a model on a file of preferences, without a reward model; whole dialogues are kept back to measure on."""

    run: Path | None = None
    """Directory of the run; one that exists is gone on with."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def prefer(argv: list[str]) -> int:
    """The `alignlab prefer` command; returns its exit code."""
    command = parse_cli(PreferCommand, argv, prog="alignlab prefer", first="data")
    from alignlab.align.direct.reading import read_data
    from alignlab.core.progress import Progress
    from alignlab.core.run_choice import run_at
    from alignlab.lm.language_model import resolve

    config = PreferConfig(**{f.name: getattr(command, f.name) for f in fields(PreferConfig)})

    def check() -> None:  # a wrong file or name is refused before there is a run
        read_data(config.data, config.method)
        resolve(config.model)

    with run_at(command.run, config, name="prefer", sinks=command.sinks, check=check) as run:
        output = run.stage("prefer", lambda: tune(config, run, Progress()))
        print(f"{output['learned']} {output['unit']} learned from by {config.method}, {output['steps']} updates")
        if output["lines"]:
            print(f"on {output['measured']} {output['unit']} of other dialogues:")
            print("\n".join(output["lines"]))
        print(f"run  {run.path}")
        print(f"talk to it:  alignlab chat {config.name}")
    return 0


def tune(config: PreferConfig, run: Run, progress: Progress) -> dict[str, Any]:
    """Read, keep some back, train, measure, export and register; what to record about it."""
    from alignlab.align.direct.reading import read_data, split
    from alignlab.align.direct.scoring import score_rows
    from alignlab.lm import registry
    from alignlab.lm.language_model import load
    from alignlab.lm.native import export_model
    from alignlab.lm.quant.adapted import settle_adapters

    dtype = "float32" if config.dtype == "auto" and config.rank == 0 else config.dtype
    lm = load(config.model, dtype=dtype, device=config.device)
    learn, kept = split(read_data(config.data, config.method).for_model(lm), config.heldout, seed=config.seed)
    settings = settings_of(config)
    rows = kept.encoded(lm, min(config.max_length, lm.model.config.n_ctx))

    def scores() -> FloatArray:
        how = {"batch_size": 2 * config.batch_size, "precision": config.precision, "progress": progress}
        return score_rows(lm.model, rows, **how).double().numpy()  # type: ignore[arg-type]

    before = scores()
    result = learn.train(lm, settings, run=run, name=config.method, progress=progress)
    gains = kept.gains(rows, before, scores(), config.method)
    run.write_artifact("measures.json", None if gains is None else gains.as_dict())
    if config.rank:
        settle_adapters(lm.model)
    path = run.path / "model"
    progress.say(str(export_model(lm, path)))
    registry.register(config.name, path, {"base": config.model, "run": str(run.path), "stage": config.method})
    return {
        "learned": len(learn.items),
        "measured": len(kept.items),
        "unit": learn.unit,
        "steps": result.steps,
        "loss": result.final_loss,
        "lines": [] if gains is None else gains.lines(),
        "path": str(path),
    }


def settings_of(config: PreferConfig) -> DirectConfig:
    """The training that the flags ask for."""
    from alignlab.align.direct.objectives import DirectConfig
    from alignlab.lm.lora import ALL_LINEAR, LoraConfig
    from alignlab.train.config import TrainConfig

    adapter = LoraConfig(rank=config.rank or 1, alpha=2.0 * (config.rank or 1), targets=(ALL_LINEAR,), seed=config.seed)
    return DirectConfig(
        method=config.method,
        beta=config.beta or None,
        margin=config.margin,
        label_smoothing=config.label_smoothing,
        epochs=config.epochs,
        batch_size=config.batch_size,
        max_length=config.max_length,
        lora=adapter if config.rank else None,
        train=TrainConfig(
            learning_rate=config.learning_rate or (2e-4 if config.rank else 5e-6),
            warmup_steps=config.warmup_steps,
            accumulate=config.accumulate,
            precision=config.precision,
            checkpoint_every=config.checkpoint_every,
            seed=config.seed,
        ),
    )
