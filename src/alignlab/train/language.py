"""The language-modelling loss: next tokens of packed rows, where the loss mask says so."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from alignlab.data.packing import next_token_targets
from alignlab.train.losses import chunked_lm_losses


def language_model_loss(
    model: Any, batch: dict[str, Tensor], *, z_loss: float = 0.0
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Mean negative log-likelihood (nats per token) of the tokens to learn; a `LossFn` for a `GPTModel`.

    The batch is one of two kinds. Of fine-tuning: `tokens` (batch, pos), and maybe `loss_mask` and `segments`, as
    `alignlab.data.packing` makes them; what to predict follows from the tokens. Of pretraining: `tokens` and `targets`,
    where `loss_mask` says which targets count; without it all do, or with `segments` those in the document they are
    predicted from.

    `z_loss` times the mean squared log-partition is added to the loss (Chowdhery et al. 2022, section 5). Metrics:
    `tokens`, how many the mean is over; with `z_loss` also `nll`, the loss without it.

    Raises:
        TrainingError: no token can be learned: the mask is empty once first tokens are left out.
    """
    targets, mask = _targets(batch)
    segments = batch.get("segments")
    on_host = batch["tokens"].device.type == "cpu"
    # Looking at segments on a GPU means to wait for it; packed pretraining data have several documents a row anyway.
    if segments is not None and (on_host or "targets" not in batch) and int(segments.max()) <= 1:
        segments = None  # one example a row with padding after it: plain causal attention says the same and is faster
    hidden = model.hidden_states(batch["tokens"], segments=segments)
    loss, penalty = chunked_lm_losses(
        hidden.flatten(0, 1),
        model.head_weight,
        targets.flatten(),
        None if mask is None else mask.flatten(),
        softcap=model.config.logit_softcap,
        z_loss=z_loss,
    )
    count = float(targets.numel()) if mask is None else mask.sum()
    metrics: dict[str, float | Tensor] = {"tokens": float(count) if on_host else count}
    if z_loss:
        metrics["nll"] = loss.detach() - penalty
    return loss, metrics


def _targets(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What each position should predict, and where that counts (None: everywhere)."""
    if "targets" not in batch:
        return next_token_targets(batch)
    mask, segments = batch.get("loss_mask"), batch.get("segments")
    if mask is None and segments is not None:
        mask = segments > 0
        mask[:, :-1] &= segments[:, 1:] == segments[:, :-1]
    return batch["targets"], mask
