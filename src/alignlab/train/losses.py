"""Cross-entropy over a large vocabulary without its logits in memory, and the checks that refuse an empty lesson.

Both losses walk over the positions a chunk at a time, so that the largest temporary is (chunk, vocab) and not
(positions, vocab): at 2048 positions and 49 152 tokens that is 50 MB instead of 400 MB a copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.train.fused_loss import ChunkedCrossEntropy, FusedLoss, Sweeping, accumulator_of

R = TypeVar("R")

CHUNK_ROWS = 256
CHUNK_LOGITS = 2**27
"""How many logits to hold at a time on a GPU, which needs large products to be busy: 256 MiB in bfloat16."""
CHUNK_LOGITS_WEIGHT = 2**30
"""The same where the unembedding learns: every chunk adds a gradient of its whole size to the sum. 2 GiB."""


def chunked_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    *,
    chunk: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, " n"]:
    """Negative log-likelihood of each target, in nats: `logsumexp(z) - z[target]` with `z = hidden @ weight.T`.

    Log-sum-exp is taken in float32 (float64 for float64 input); the result has that type. Where only `hidden` learns,
    its gradient is made while each chunk's logits exist; else the backward pass computes them again. With `softcap`,
    `z` becomes `softcap * tanh(z / softcap)` (Gemma 2). Under autocast the matrix product runs in autocast's type.
    `chunk` is how many positions are worked on together; by default what suits the device.

    Raises:
        TrainingError: shapes do not fit together.
    """
    chunk = _check_shapes(hidden, weight, targets, chunk)
    hidden, weight = _autocast(hidden), _autocast(weight)
    early = torch.is_grad_enabled() and hidden.requires_grad and not weight.requires_grad
    early = early and hidden.dtype != torch.float16
    with torch.autocast(hidden.device.type, enabled=False):
        losses: Tensor = ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, softcap, early)
    return losses


def chunked_lm_loss(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    loss_weights: Float[Tensor, " n"] | Bool[Tensor, " n"] | None,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Float[Tensor, ""]:
    """Weighted mean of the targets' negative log-likelihood (nats per token), in one sweep over the vocabulary.

    Equal to `(chunked_cross_entropy(...) * w).sum() / w.sum()`, but the gradients are taken while each chunk's logits
    exist, so that nothing is computed twice (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
    Positions of weight 0 are left out before anything is computed. `loss_weights` are constants: no gradient; None
    counts every position the same. With `z_loss`, `z_loss * logsumexp(z)**2` is added to each position's loss, which
    keeps the logits from drifting off together (Chowdhery et al. 2022, section 5).

    Raises:
        TrainingError: every weight is 0, a weight is negative, or shapes do not fit together.
    """
    return chunked_lm_losses(hidden, weight, targets, loss_weights, chunk=chunk, softcap=softcap, z_loss=z_loss)[0]


def chunked_lm_losses(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    loss_weights: Float[Tensor, " n"] | Bool[Tensor, " n"] | None,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`chunked_lm_loss`, and how much of it is the z-loss (a number to log, without gradient)."""
    grad_on = torch.is_grad_enabled()
    wanted = (grad_on and hidden.requires_grad, grad_on and weight.requires_grad)
    chunk = _check_shapes(hidden, weight, targets, chunk, CHUNK_LOGITS_WEIGHT if wanted[1] else CHUNK_LOGITS)
    kept, wide = None, accumulator_of(hidden.dtype)
    if loss_weights is None:
        scale = torch.ones(len(hidden), dtype=wide, device=hidden.device)
    else:
        check_mask(loss_weights)
        scale = loss_weights.detach().to(wide)
        if loss_weights.dtype != torch.bool and bool((scale < 0).any()):
            raise TrainingError("loss_weights has a negative value; a position's weight is 0 or more")
        kept = torch.nonzero(scale).squeeze(1)
        scale = scale[kept]
    hidden, weight = _autocast(hidden), _autocast(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        how = Sweeping(chunk, softcap, z_loss, *wanted)
        loss, penalty = FusedLoss.apply(hidden, weight, targets, scale, kept, how)
    return loss, penalty


def with_z_loss(loss_fn: Callable[..., R], z_loss: float) -> Callable[..., R]:
    """`loss_fn` with its argument `z_loss` set.

    Raises:
        ConfigError: it has none.
    """
    if "z_loss" not in inspect.signature(loss_fn).parameters:
        named = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise ConfigError(f"z_loss is {z_loss}, but the loss {named} has no argument z_loss; set it to 0")
    return partial(loss_fn, z_loss=z_loss)


def check_mask(mask: Tensor, name: str = "loss_mask") -> None:
    """Refuse a batch with nothing to learn from: its loss would be 0/0.

    Raises:
        TrainingError: no position of `mask` is True (or has a non-zero weight).
    """
    if not bool(mask.any()):
        raise TrainingError(
            f"{name} selects none of the batch's {mask.numel()} positions, so there is nothing to learn from; "
            "at least one must be selected"
        )


def check_variance(rewards: Tensor, name: str = "rewards") -> None:
    """Refuse a batch whose rewards are all equal: every advantage is 0 and so is the policy gradient.

    Raises:
        TrainingError: fewer than two rewards, or all equal.
    """
    if rewards.numel() < 2 or bool((rewards == rewards.flatten()[0]).all()):
        value = f"all {float(rewards.flatten()[0]):g}" if rewards.numel() else "empty"
        raise TrainingError(
            f"{name} of this batch of {rewards.numel()} are {value}, so no sample is better than another and there is "
            "nothing to learn; use a larger batch, a higher temperature or a reward that tells them apart"
        )


def _check_shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, logits: int = CHUNK_LOGITS
) -> int:
    """The chunk to use, once the shapes are found to agree; on a GPU equal ones of at most `logits`."""
    if hidden.ndim != 2 or weight.ndim != 2 or targets.ndim != 1:
        raise TrainingError(
            f"cross-entropy got hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets "
            f"{tuple(targets.shape)}; right are (n, d), (v, d) and (n,)"
        )
    if hidden.shape[1] != weight.shape[1] or hidden.shape[0] != targets.shape[0]:
        raise TrainingError(
            f"cross-entropy got hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets "
            f"{tuple(targets.shape)}; n and d must agree"
        )
    if chunk is None:
        if hidden.device.type == "cpu":
            return CHUNK_ROWS
        parts = -(-targets.numel() * weight.shape[0] // logits)
        return max(CHUNK_ROWS, -(-targets.numel() // max(1, parts)))
    if chunk < 1:
        raise TrainingError(f"chunk is {chunk}, allowed: a positive whole number")
    return chunk


def _autocast(x: Tensor) -> Tensor:
    """What autocast would do to an operand of a matrix product, as a step that autograd sees."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(device))
    return x
