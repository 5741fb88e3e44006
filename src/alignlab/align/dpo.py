"""Direct preference optimisation (Rafailov et al. 2023): preferences without a reward model and without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from alignlab.align.direct.objectives import DirectConfig
from alignlab.align.direct.training import train_direct
from alignlab.align.losses import PreferenceLossKind
from alignlab.align.pairs import PreferencePair
from alignlab.core.config import require
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig
from alignlab.train.config import TrainConfig
from alignlab.train.trainer import TrainResult


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimisation."""

    beta: float = 0.1
    """Strength of the tie to the reference, in nats of reward per nat of log-ratio."""
    kind: PreferenceLossKind = "sigmoid"
    """`sigmoid` is DPO; `ipo` (Azar et al. 2023) bounds the margin, on log-probabilities averaged over the response."""
    label_smoothing: float = 0.0
    """Probability that a label is flipped (conservative DPO), on top of each pair's own `probability`."""
    epochs: float | None = 1.0
    """Passes over the pairs, which set `train.steps`; none leaves `train.steps` as it is."""
    batch_size: int = 8
    """Pairs per micro-batch."""
    max_length: int = 512
    """Tokens of prompt and response, at most the model's context; a longer one loses the start of its prompt."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """Adapter put on a model that has none; none trains every parameter that asks for a gradient."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a positive number")
        require(self.kind in ("sigmoid", "ipo"), "kind", self.kind, "sigmoid or ipo")
        require(
            0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a number from 0 to below 0.5"
        )
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "none or a positive number")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")
        require(self.max_length >= 2, "max_length", self.max_length, "a whole number of at least 2")


def train_dpo(
    lm: LanguageModel,
    pairs: Sequence[PreferencePair],
    config: DPOConfig | None = None,
    *,
    run: Run | None = None,
    name: str = "dpo",
    progress: Progress | None = None,
) -> TrainResult:
    """Tune `lm` in place towards the chosen responses; with a `run`, logged and resumed under `name`.

    `train_direct` does the work. The reference is the model with its adapter off, or as it comes where it has none; its
    log-probabilities are taken once, before training. Raises DataError for pairs that are empty or never differ.
    """
    config = config or DPOConfig()
    direct = DirectConfig(
        method="ipo" if config.kind == "ipo" else "dpo",
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        epochs=config.epochs,
        batch_size=config.batch_size,
        max_length=config.max_length,
        lora=config.lora,
        train=config.train,
    )
    return train_direct(lm, pairs, direct, run=run, name=name, progress=progress)
