"""Direct preference optimisation (Rafailov et al. 2023): preferences without a reward model and without sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alignlab.align.adapters import ensure_lora, reference_mode
from alignlab.align.batching import LengthBatches, in_length_order
from alignlab.align.losses import PreferenceLossKind, dpo_loss
from alignlab.align.pairs import Batch, PreferencePair, check_pairs, encode_response, pad_masks, pad_rows
from alignlab.align.policy import evaluating, sequence_logprobs
from alignlab.align.sft import with_epochs
from alignlab.core.config import require
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.trainer import Trainer, TrainResult


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

    The reference is the model with its adapter off, or as it comes where it has none; its log-probabilities are taken
    once, before training. Raises DataError for pairs that are empty or never differ.
    """
    config = config or DPOConfig()
    check_pairs(pairs)
    ensure_lora(lm.model, config.lora)
    length = min(config.max_length, lm.model.config.n_ctx)
    rows = [encode_pair(lm, pair, length) for pair in pairs]
    lengths = [max(len(tokens) for tokens, _ in row) for row in rows]
    reference = reference_logprobs(lm.model, rows, config, progress)
    keep = (
        torch.tensor([pair.probability for pair in pairs]) * (1 - 2 * config.label_smoothing) + config.label_smoothing
    )
    order = LengthBatches(lengths, config.batch_size, seed=config.train.seed)

    def batch_at(index: int) -> Batch:
        members = order(index)
        return {**stack_pairs([rows[i] for i in members]), "reference": reference[members], "flip": 1 - keep[members]}

    train = with_epochs(config.train, config.epochs, order.per_epoch)
    trainer = Trainer(lm.model, dpo_objective(config), train, run=run, name=name, progress=progress)
    return trainer.fit(batch_at)


EncodedPair = tuple[tuple[list[int], list[bool]], tuple[list[int], list[bool]]]
"""(tokens, loss mask) of the chosen and of the rejected response, each after its prompt."""


def encode_pair(lm: LanguageModel, pair: PreferencePair, max_length: int) -> EncodedPair:
    """Both responses after the prompt they share."""
    chosen, rejected = (
        encode_response(lm.tokenizer, pair.prompt, response, max_length=max_length)
        for response in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


def stack_pairs(rows: Sequence[EncodedPair]) -> Batch:
    """One batch with the chosen responses in the first half of the rows and the rejected ones in the second."""
    both = [row[0] for row in rows] + [row[1] for row in rows]
    return {"tokens": pad_rows([tokens for tokens, _ in both]), "loss_mask": pad_masks([mask for _, mask in both])}


def response_scores(model: GPTModel, batch: Batch, kind: PreferenceLossKind) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (chosen, rejected) in one pass; per token for `ipo`, whose margin has no length."""
    scores = sequence_logprobs(model, batch["tokens"], batch["loss_mask"])
    if kind == "ipo":
        scores = scores / batch["loss_mask"].sum(dim=1)
    chosen, rejected = scores.chunk(2)
    return chosen, rejected


@torch.no_grad()
def reference_logprobs(
    model: GPTModel, rows: Sequence[EncodedPair], config: DPOConfig, progress: Progress | None = None
) -> Tensor:
    """Scores (n_pairs, 2) of chosen and rejected under the model with its adapter off, longest pairs first."""
    device = model.head_weight.device
    found = torch.zeros(len(rows), 2)
    lengths = [max(len(tokens) for tokens, _ in row) for row in rows]
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")
    with (
        (progress or Progress.silent()).task("reference log-probabilities", len(rows), unit="pairs") as task,
        evaluating(model),
        reference_mode(model),
        bf16,
    ):
        for members in in_length_order(lengths, config.batch_size):
            batch = {key: value.to(device) for key, value in stack_pairs([rows[i] for i in members]).items()}
            found[members] = torch.stack(response_scores(model, batch, config.kind), dim=1).float().cpu()
            task.advance(len(members), tokens=int(batch["loss_mask"].sum()))
    return found


def dpo_objective(config: DPOConfig) -> Callable[[nn.Module, Batch], tuple[Tensor, dict[str, float]]]:
    """The loss function that `Trainer` calls."""

    def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, GPTModel)
        chosen, rejected = response_scores(model, batch, config.kind)
        reference = batch["reference"]
        loss, good, bad = dpo_loss(
            chosen,
            rejected,
            reference[:, 0],
            reference[:, 1],
            beta=config.beta,
            label_smoothing=batch["flip"],
            kind=config.kind,
        )
        metrics = {
            "accuracy": float((good > bad).float().mean()),
            "margin": float((good - bad).mean()),
            "chosen_reward": float(good.mean()),
            "rejected_reward": float(bad.mean()),
        }
        return loss, metrics

    return loss_fn
