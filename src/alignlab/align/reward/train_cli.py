"""`alignlab reward train`: from a file of comparisons to a reward model with measures on dialogues it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.core.config import parse_cli, require

if TYPE_CHECKING:
    from alignlab.align.preference_model import PreferenceModel
    from alignlab.align.reward.encoder import TextEncoder
    from alignlab.align.reward.ensemble import RewardEnsemble
    from alignlab.align.reward.examples import RewardPair
    from alignlab.align.reward.training import RewardConfig
    from alignlab.core.progress import Progress
    from alignlab.core.runs import Run
    from alignlab.lm.language_model import LanguageModel


@dataclass(frozen=True)
class RewardTraining:
    """Train a reward model on a file of comparisons; whole dialogues are kept back to measure it on."""

    data: Path
    """JSON or (gzipped) JSONL: prompt, chosen, rejected; HH-RLHF's dialogues; StackExchange pairs."""
    model: str = "smollm2-135m-instruct"
    """The trunk: `minilm` (extra `retrieval`), a catalogue or registered name, a directory, .gguf file or hub id."""
    validation: Path | None = None
    """Comparisons to measure on; none: a share `heldout` of the dialogues in `data`."""
    heldout: float = 0.2
    """Share of the pairs kept back, as whole dialogues."""
    pretrain: Path | None = None
    """Comparisons of another source to learn from first (preference-model pretraining)."""
    rank: int | None = None
    """Rank of the LoRA adapter on every linear layer; 0 learns heads on the frozen trunk; none: 16 for a language
    model, 0 for an encoder."""
    epochs: float = 1.0
    """Passes over the pairs; more than one soon memorises them."""
    learning_rate: float = 5e-4
    """Peak learning rate of adapter and heads."""
    warmup_steps: int = 10
    """Updates over which the learning rate rises to its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    ridge: float = 0.0
    """Penalty on heads of a frozen trunk; 0 chooses it on dialogues held out of the training."""
    batch_size: int = 8
    """Pairs per forward pass."""
    accumulate: int = 1
    """Forward passes per update."""
    max_length: int = 512
    """Tokens of prompt and response; a longer one loses the start of its prompt."""
    members: int = 1
    """Members of an ensemble, each on its own bootstrap sample of the dialogues."""
    ensemble: Literal["heads", "adapters"] = "heads"
    """Whether members share the adapter and differ in heads, or have an adapter each."""
    objectives: tuple[str, ...] = ("reward",)
    """One head each, for pairs that name their objective."""
    flip_rate: float = 0.0
    """Share of labels taken to be wrong."""
    noise: Literal["conservative", "mixture"] = "conservative"
    """Smooth the labels, or model the flips."""
    ties: Literal["drop", "half", "davidson"] = "half"
    """Leave ties out, count them as half a win for each side, or learn how often judges call them."""
    centre: float = 0.01
    """Weight of the squared sum of both rewards, which keeps their mean near 0."""
    language_weight: float = 0.0
    """Weight of the language-modelling loss on the chosen response, in training and pretraining."""
    length_correction: Literal["none", "remove", "labels"] = "none"
    """Take the slope on length out of the reward: none of it, all of it, or what the labels do not share."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the products of fp32 weights in bfloat16."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the trunk's weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    checkpoint_every: int = 100
    """Updates between checkpoints."""
    seed: int = 0
    """Everything random derives from it."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "members"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("warmup_steps", "checkpoint_every", "weight_decay", "ridge", "centre", "language_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        for name in ("epochs", "learning_rate"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.rank is None or self.rank >= 0, "rank", self.rank, "none, 0 or a positive whole number")
        require(0 < self.heldout < 1, "heldout", self.heldout, "a number between 0 and 1")
        require(0 <= self.flip_rate < 0.5, "flip_rate", self.flip_rate, "a number from 0 to below 0.5")
        require(self.max_length >= 8, "max_length", self.max_length, "a whole number of at least 8")
        adapters = self.ensemble == "heads" or (self.members > 1 and self.rank != 0)
        require(adapters, "ensemble", self.ensemble, "'heads', unless there are several members and an adapter")


@dataclass(frozen=True)
class RewardTrainCommand(RewardTraining):
    """Train a reward model on a file of comparisons; whole dialogues are kept back to measure it on."""

    run: Path | None = None
    """Directory of the run; one that exists is gone on with."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def train(argv: list[str]) -> int:
    """The `alignlab reward train` command; returns its exit code."""
    command = parse_cli(RewardTrainCommand, argv, prog="alignlab reward train", first="data")
    from alignlab.align.reward.readers import read_pairs
    from alignlab.core.progress import Progress
    from alignlab.core.run_choice import run_at

    config = RewardTraining(**{f.name: getattr(command, f.name) for f in fields(RewardTraining)})
    for path in (config.data, config.validation, config.pretrain):
        if path is not None:
            read_pairs(path, most=1)  # a wrong file is refused before there is a run
    with run_at(command.run, config, name="reward", sinks=command.sinks) as run:
        output = run.stage("reward", lambda: train_and_measure(config, run, Progress()))
        print(f"{output['learned']} comparisons learned from; on {output['measured']} of other dialogues:")
        print("\n".join(output["lines"]))
        print(f"run  {run.path}")
        print(f"score answers:  alignlab reward score {run.path} --prompt ... --response ...")
    return 0


def train_and_measure(config: RewardTraining, run: Run, progress: Progress) -> dict[str, Any]:
    """Read, split, train, correct, measure and save; what to record about it."""
    from dataclasses import asdict

    from alignlab.align.reward.examples import split_dialogues
    from alignlab.align.reward.measures import measure_reward
    from alignlab.align.reward.readers import read_pairs
    from alignlab.align.reward.saved import load_base, plain_prompts, save_reward

    pairs, aside = read_pairs(config.data), []
    if config.validation is not None:
        test = read_pairs(config.validation)
    else:
        learn, kept = split_dialogues(pairs, config.heldout, seed=config.seed)
        pairs, test = [pairs[i] for i in learn], [pairs[i] for i in kept]
    if config.length_correction != "none":  # fitted on pairs that neither training nor measures see
        learn, kept = split_dialogues(pairs, 0.1, seed=config.seed + 1)
        pairs, aside = [pairs[i] for i in learn], [pairs[i] for i in kept]
    base = load_base(config.model, dtype=config.dtype, device=config.device)
    first = build(config, base, config.seed)
    pairs, test, aside = (plain_prompts(first, part) for part in (pairs, test, aside))
    model, details = fit(config, base, pairs, run, progress)
    singles = settle(config, model, pairs, aside)
    measures = measure_reward(model, test)
    run.write_artifact("heldout.jsonl", "".join(line(pair) for pair in test))
    run.write_artifact("measures.json", measures.as_dict())
    info = {"base": config.model, "run": str(run.path), "measures": measures.as_dict(), **details}
    save_reward(model, run.path / "model", info)
    corrections = [asdict(single.correction) if single.correction else None for single in singles]
    sizes = {"learned": len(pairs), "measured": measures.pairs}
    return {**sizes, **details, "corrections": corrections, "lines": measures.lines()}


def build(config: RewardTraining, base: LanguageModel | TextEncoder, seed: int) -> PreferenceModel:
    """An untrained model of this configuration."""
    from alignlab.align.preference_model import PreferenceModel
    from alignlab.align.reward.encoder import TextEncoder
    from alignlab.align.reward.heads import HeadConfig
    from alignlab.lm.lora import ALL_LINEAR, LoraConfig

    rank = (0 if isinstance(base, TextEncoder) else 16) if config.rank is None else config.rank
    members = config.members if config.ensemble == "heads" else 1
    heads = HeadConfig(objectives=config.objectives, members=members, ties=config.ties == "davidson")
    lora = LoraConfig(rank=rank, alpha=2.0 * rank, targets=(ALL_LINEAR,), seed=seed) if rank else None
    batch = 64 if isinstance(base, TextEncoder) else 16
    return PreferenceModel(base, lora=lora, max_length=config.max_length, batch_size=batch, seed=seed, heads=heads)


def settings_of(config: RewardTraining) -> RewardConfig:
    """The training that the flags ask for."""
    from alignlab.align.reward.training import RewardConfig, RewardLoss
    from alignlab.train.config import TrainConfig

    return RewardConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        loss=RewardLoss(
            flip_rate=config.flip_rate,
            noise=config.noise,
            ties=config.ties,
            centre=config.centre,
            language_weight=config.language_weight,
        ),
        train=TrainConfig(
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            accumulate=config.accumulate,
            precision=config.precision,
            checkpoint_every=config.checkpoint_every,
            seed=config.seed,
        ),
    )


def fit(
    config: RewardTraining, base: LanguageModel | TextEncoder, pairs: list[RewardPair], run: Run, progress: Progress
) -> tuple[PreferenceModel | RewardEnsemble, dict[str, Any]]:
    """The trained model, and what to record about its training."""
    from alignlab.align.reward.ensemble import train_ensemble
    from alignlab.align.reward.head_fit import fit_heads
    from alignlab.align.reward.readers import read_pairs
    from alignlab.align.reward.saved import plain_prompts
    from alignlab.align.reward.training import train_reward_model

    settings = settings_of(config)
    model = build(config, base, config.seed)
    earlier = plain_prompts(model, read_pairs(config.pretrain)) if config.pretrain is not None else []

    def ready(seed: int) -> PreferenceModel:
        fresh = build(config, base, seed)
        if earlier and fresh.lora is not None:
            train_reward_model(fresh, earlier, settings, run=run, name=f"pretraining_{seed}", progress=progress)
        return fresh

    if config.ensemble == "adapters":
        together = train_ensemble(ready, pairs, settings, members=config.members, run=run, progress=progress)
        return together, {"steps": None}
    if model.lora is None:
        found = fit_heads(model, [*earlier, *pairs], settings, ridge=config.ridge or None, precision=config.precision)
        return model, {"ridge": found.ridge, "loss": found.loss}
    model = ready(config.seed)
    result = train_reward_model(model, pairs, settings, run=run, progress=progress)
    return model, {"steps": result.steps, "loss": result.final_loss}


def settle(
    config: RewardTraining, model: PreferenceModel | RewardEnsemble, pairs: list[RewardPair], aside: list[RewardPair]
) -> list[PreferenceModel]:
    """Fit length correction and normalisation of the model, or of each member."""
    from alignlab.align.reward.ensemble import RewardEnsemble
    from alignlab.align.reward.length_bias import fit_length_correction
    from alignlab.align.reward.measures import reward_margins

    singles = model.models if isinstance(model, RewardEnsemble) else [model]
    some = pairs[:: max(1, len(pairs) // 128)][:128]
    for single in singles:
        if config.length_correction != "none":
            decided = [pair for pair in aside if not pair.tie]
            margins = reward_margins(single, decided)
            sides = [p.chosen for p in decided], [p.rejected for p in decided]
            single.correction = fit_length_correction(margins, *sides, kind=config.length_correction)
        prompts = [pair.prompt for pair in some]
        single.fit_normalisation([*prompts, *prompts], [p.chosen for p in some] + [p.rejected for p in some])
    return singles


def line(pair: RewardPair) -> str:
    """One pair as a line of JSON that `read_pairs` reads back."""
    import json
    from dataclasses import asdict

    return json.dumps(asdict(pair), ensure_ascii=False) + "\n"
