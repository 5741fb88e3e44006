"""One loop for every method that learns from pairs: encode, score the reference once, minimise the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alignlab.align.adapters import ensure_lora
from alignlab.align.batching import LengthBatches
from alignlab.align.direct.kto import rated_of_pairs, train_kto
from alignlab.align.direct.objectives import OBJECTIVES, DirectConfig
from alignlab.align.direct.scoring import batch_pairs, encode_pair, pair_lengths, pair_scores, reference_scores
from alignlab.align.pairs import Batch, PreferencePair, check_pairs
from alignlab.align.sft import with_epochs
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.train.trainer import Trainer, TrainResult


def train_direct(
    lm: LanguageModel,
    pairs: Sequence[PreferencePair],
    config: DirectConfig | None = None,
    *,
    run: Run | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Tune `lm` in place towards the chosen responses; with a `run`, logged and resumed under `name` (the method's).

    The reference is the model with its adapter off, or as it comes where it has none; its log-probabilities are taken
    once, before training, and only for methods that have a reference. KTO takes the two sides of a pair as a good and a
    bad example, and no notice of the pair's probability. Raises DataError for pairs that are empty or never differ.
    """
    config = config or DirectConfig()
    check_pairs(pairs)
    name = name or config.method
    if config.method == "kto":
        return train_kto(lm, rated_of_pairs(pairs), config, run=run, name=name, progress=progress)
    ensure_lora(lm.model, config.lora)
    length = min(config.max_length, lm.model.config.n_ctx)
    rows = [encode_pair(lm, pair, length) for pair in pairs]
    reference = torch.zeros(len(rows), 2)
    if OBJECTIVES[config.method].needs_reference:
        how = {"batch_size": config.batch_size, "precision": config.train.precision}
        reference = reference_scores(lm.model, rows, progress=progress, **how)  # type: ignore[arg-type]
    probability = torch.tensor([pair.probability for pair in pairs])
    order = LengthBatches(pair_lengths(rows), config.batch_size, seed=config.train.seed)

    def batch_at(index: int) -> Batch:
        at = order(index)
        scores = {"reference": reference[at], "probability": probability[at]}
        return batch_pairs(lm.model, [rows[i] for i in at]) | scores

    train = with_epochs(config.train, config.epochs, order.per_epoch)
    return Trainer(lm.model, pair_objective(config), train, run=run, name=name, progress=progress).fit(batch_at)


def pair_objective(config: DirectConfig) -> Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]:
    """The loss function that `Trainer` calls."""
    objective = OBJECTIVES[config.method]

    def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, GPTModel)
        scores = pair_scores(model, batch)
        loss, good, bad = objective.loss(scores.means() if objective.per_token else scores, config)
        metrics = {
            "accuracy": (good > bad).float().mean(),
            "margin": (good - bad).mean(),
            "chosen_reward": good.mean(),
            "rejected_reward": bad.mean(),
            # These methods may make the chosen response less likely too, as long as the other one falls faster.
            "chosen_logprob": scores.chosen.detach().mean(),
            "rejected_logprob": scores.rejected.detach().mean(),
        }
        return loss, metrics

    return loss_fn
