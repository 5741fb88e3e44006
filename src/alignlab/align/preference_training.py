"""Training a `PreferenceModel` on pairs, and how often it agrees with pairs it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.align.batching import LengthBatches
from alignlab.align.losses import bradley_terry_loss
from alignlab.align.pairs import Batch, PreferencePair, check_pairs, last_index, pad_rows
from alignlab.align.policy import evaluating
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.sft import with_epochs
from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.train.config import TrainConfig
from alignlab.train.trainer import Trainer, TrainResult


@dataclass(frozen=True)
class PreferenceConfig:
    """Training of a preference model."""

    epochs: float | None = 1.0
    """Passes over the pairs, which set `train.steps`; none leaves `train.steps` as it is."""
    batch_size: int = 8
    """Pairs per micro-batch."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""

    def __post_init__(self) -> None:
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "none or a positive number")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")


def train_preference_model(
    model: PreferenceModel,
    pairs: Sequence[PreferencePair],
    config: PreferenceConfig | None = None,
    *,
    run: Run | None = None,
    name: str = "preference_model",
    progress: Progress | None = None,
) -> TrainResult:
    """Fit the model to the pairs in place; with a `run`, logged and resumed under `name`.

    Each pair's `probability` is its soft label. Without an adapter the trunk never changes, so each response goes
    through it once, however many epochs there are. Raises DataError for pairs that are empty or never differ.
    """
    config = config or PreferenceConfig()
    check_pairs(pairs)
    encoded = [(model.encode(pair.prompt, pair.chosen), model.encode(pair.prompt, pair.rejected)) for pair in pairs]
    # Sides that read the same (equal texts, or equal once cut to length) have one loss whatever the reward.
    differing = [i for i, (chosen, rejected) in enumerate(encoded) if chosen != rejected]
    if not differing:
        raise DataError(f"chosen and rejected are equal within max_length={model.max_length} tokens in all pairs")
    rows, labels = [encoded[i] for i in differing], torch.tensor([pairs[i].probability for i in differing])
    lengths = [max(len(chosen), len(rejected)) for chosen, rejected in rows]
    order = LengthBatches(lengths, config.batch_size, seed=config.train.seed)
    fixed = frozen_features(model, rows) if model.lora is None else None

    def batch_at(index: int) -> Batch:
        members = order(index)
        if fixed is not None:
            batch = {"chosen_features": fixed[0][members], "rejected_features": fixed[1][members]}
        else:
            batch = token_batch([rows[i] for i in members])
        return {**batch, "label_probability": labels[members]}

    train = with_epochs(config.train, config.epochs, order.per_epoch)
    return Trainer(model, preference_objective, train, run=run, name=name, progress=progress).fit(batch_at)


def preference_objective(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Bradley-Terry loss with soft labels, as `Trainer` calls it; logs accuracy and mean margin."""
    assert isinstance(model, PreferenceModel)
    sides = [
        {key.removeprefix(side): value for key, value in batch.items() if key.startswith(side)}
        for side in ("chosen_", "rejected_")
    ]
    chosen, rejected = model.both_rewards(sides[0], sides[1])
    loss = bradley_terry_loss(chosen, rejected, label_probability=batch["label_probability"])
    margin = (chosen - rejected).detach()
    return loss, {"accuracy": float((margin > 0).float().mean()), "margin": float(margin.mean())}


def token_batch(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Both sides of some pairs as padded tokens with the position of their last token."""
    batch = {}
    for side, column in (("chosen", 0), ("rejected", 1)):
        tokens = [row[column] for row in rows]
        batch[f"{side}_tokens"] = pad_rows(tokens)
        batch[f"{side}_last_index"] = last_index([len(row) for row in tokens])
    return batch


@torch.no_grad()
def frozen_features(model: PreferenceModel, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Features (n_pairs, d_model) of the chosen and of the rejected side."""
    with evaluating(model):
        found = model.row_features([chosen for chosen, _ in rows] + [rejected for _, rejected in rows])
    chosen, rejected = found.chunk(2)
    return chosen, rejected


def preference_margins(model: PreferenceModel, pairs: Sequence[PreferencePair]) -> Float[Tensor, " pairs"]:
    """Raw reward of the chosen less that of the rejected response, per pair: positive where the model agrees.

    Raises DataError for an empty list.
    """
    if not pairs:
        raise DataError("the list of preference pairs is empty, at least one pair is needed")
    prompts = [pair.prompt for pair in pairs]
    scores = model.raw_scores([*prompts, *prompts], [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    chosen, rejected = scores.chunk(2)
    return chosen - rejected


def preference_accuracy(model: PreferenceModel, pairs: Sequence[PreferencePair]) -> float:
    """Share of pairs on which the model agrees; an exact tie counts one half."""
    margins = preference_margins(model, pairs)
    return float(((margins > 0).double() + 0.5 * (margins == 0).double()).mean())
