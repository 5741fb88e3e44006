"""The language-modelling loss: next tokens of packed rows, where the loss mask says so."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from alignlab.data.packing import next_token_targets
from alignlab.train.losses import chunked_lm_loss


def language_model_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Mean negative log-likelihood (nats per token) of the masked tokens; a `LossFn` for a `GPTModel`.

    The batch has `tokens` (batch, pos) and may have `loss_mask` and `segments` as `alignlab.data.packing` makes them.
    Metrics: `tokens`, how many the mean is over.

    Raises:
        TrainingError: no token can be learned: the mask is empty once first tokens are left out.
    """
    targets, mask = next_token_targets(batch)
    segments = batch.get("segments")
    if segments is not None and int(segments.max()) <= 1:
        segments = None  # one example a row with padding after it: plain causal attention says the same and is faster
    hidden = model.hidden_states(batch["tokens"], segments=segments)
    loss = chunked_lm_loss(
        hidden.flatten(0, 1),
        model.head_weight,
        targets.flatten(),
        mask.flatten(),
        softcap=model.config.logit_softcap,
    )
    return loss, {"tokens": float(mask.sum())}
