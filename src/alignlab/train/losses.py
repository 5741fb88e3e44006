"""Cross-entropy over a large vocabulary without its logits in memory, and the checks that refuse an empty lesson.

Both losses walk over the positions a chunk at a time, so that the largest temporary is (chunk, vocab) and not
(positions, vocab): at 2048 positions and 49 152 tokens that is 50 MB instead of 400 MB a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignlab.core.errors import TrainingError

CHUNK_ROWS = 256
CHUNK_LOGITS = 2**27
"""How many logits to hold at a time on a GPU, which needs large products to be busy: 256 MiB in bfloat16."""
CACHED_ROWS = 16


def chunked_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    *,
    chunk: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, " n"]:
    """Negative log-likelihood of each target, in nats: `logsumexp(z) - z[target]` with `z = hidden @ weight.T`.

    Log-sum-exp is taken in float32 (float64 for float64 input); the result has that type. The backward pass computes
    each chunk's logits again. With `softcap`, `z` becomes `softcap * tanh(z / softcap)` (Gemma 2). Under autocast the
    matrix product runs in autocast's type. `chunk` is how many positions are worked on together; by default what suits
    the device.

    Raises:
        TrainingError: shapes do not fit together.
    """
    chunk = _check_shapes(hidden, weight, targets, chunk)
    hidden, weight = _autocast(hidden), _autocast(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        losses: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, softcap)
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
    chunk = _check_shapes(hidden, weight, targets, chunk)
    kept, accumulator = None, _accumulator(hidden.dtype)
    if loss_weights is None:
        scale = torch.ones(len(hidden), dtype=accumulator, device=hidden.device)
    else:
        check_mask(loss_weights)
        scale = loss_weights.detach().to(accumulator)
        if loss_weights.dtype != torch.bool and bool((scale < 0).any()):
            raise TrainingError("loss_weights has a negative value; a position's weight is 0 or more")
        kept = torch.nonzero(scale).squeeze(1)
        scale = scale[kept]
    grad_on = torch.is_grad_enabled()
    wanted = (grad_on and hidden.requires_grad, grad_on and weight.requires_grad)
    hidden, weight = _autocast(hidden), _autocast(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, penalty = _FusedLoss.apply(hidden, weight, targets, scale, kept, chunk, softcap, z_loss, wanted)
    return loss, penalty


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


def _check_shapes(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None) -> int:
    """The chunk to use, once the shapes are found to agree."""
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
        return CHUNK_ROWS if hidden.device.type == "cpu" else max(CHUNK_ROWS, CHUNK_LOGITS // max(1, weight.shape[0]))
    if chunk < 1:
        raise TrainingError(f"chunk is {chunk}, allowed: a positive whole number")
    return chunk


def _autocast(x: Tensor) -> Tensor:
    """What autocast would do to an operand of a matrix product, as a step that autograd sees."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(device))
    return x


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(raw: Tensor) -> Iterator[slice]:
    """Rows to work through at a time: what comes between two matrix products should stay in a processor's cache."""
    step = CACHED_ROWS if raw.device.type == "cpu" else len(raw)
    return (slice(start, start + step) for start in range(0, len(raw), step))


def _wide(raw: Tensor, softcap: float | None) -> Tensor:
    """Logits in the accumulation type, (rows, v); the caller may overwrite them and with them `raw`."""
    logits = raw.to(_accumulator(raw.dtype))
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _grad_logits(
    logits: Tensor, log_total: Tensor, targets: Tensor, scale: Tensor, softcap: float | None, z_loss: float = 0.0
) -> Tensor:
    """Gradient of `sum(scale * (nll + z_loss log_total²))` in the uncapped logits; overwrites `logits` where it can."""
    slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1.0)
    grad = logits.sub_(log_total[:, None]).exp_()  # softmax
    if z_loss:
        grad.mul_((1.0 + 2.0 * z_loss * log_total)[:, None])
    grad.scatter_add_(1, targets[:, None], -torch.ones_like(log_total)[:, None])
    grad.mul_(scale[:, None])
    return grad if slope is None else grad.mul_(slope)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(n, d), (v, d), (n,) -> (n,); keeps only its inputs and one log-sum-exp a position."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, softcap: float | None) -> Tensor:
        n = hidden.shape[0]
        losses = hidden.new_empty(n, dtype=_accumulator(hidden.dtype))
        log_totals = torch.empty_like(losses)
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            raw, totals = hidden[rows] @ weight.T, log_totals[rows]
            for block in _blocks(raw):
                logits = _wide(raw[block], softcap)
                totals[block] = torch.logsumexp(logits, dim=1)
                losses[rows][block] = totals[block] - logits.gather(1, targets[rows][block, None]).squeeze(1)
        ctx.save_for_backward(hidden, weight, targets, log_totals)
        ctx.chunk, ctx.softcap = chunk, softcap
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_totals = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=log_totals.dtype) if need_weight else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            raw = hidden[rows] @ weight.T
            totals, wanted, scale = log_totals[rows], targets[rows], grad_losses[rows]
            for block in _blocks(raw):
                logits = _wide(raw[block], ctx.softcap)
                raw[block] = _grad_logits(logits, totals[block], wanted[block], scale[block], ctx.softcap)
            if grad_hidden is not None:
                torch.mm(raw, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, raw, hidden[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


class _FusedLoss(torch.autograd.Function):
    """`sum(scale * nll[kept]) / sum(scale)`; its gradients are ready, but for one factor, when the forward pass ends.

    That factor holds the division and the loss scale: float16 gradients of a mean over many positions would underflow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        kept: Tensor | None,
        chunk: int,
        softcap: float | None,
        z_loss: float,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        want_hidden, want_weight = wanted
        grad_hidden = torch.zeros_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=scale.dtype) if want_weight else None
        loss, penalty, total = scale.new_zeros(()), scale.new_zeros(()), scale.sum()
        for start in range(0, scale.numel(), chunk):
            part = scale[start : start + chunk]
            rows = slice(start, start + chunk) if kept is None else kept[start : start + chunk]
            x, target = hidden[rows], targets[rows]
            raw = x @ weight.T
            for block in _blocks(raw):
                logits = _wide(raw[block], softcap)
                log_total = torch.logsumexp(logits, dim=1)
                loss += torch.dot(part[block], log_total - logits.gather(1, target[block, None]).squeeze(1))
                if z_loss:
                    penalty += z_loss * torch.dot(part[block], log_total.square())
                if want_hidden or want_weight:
                    raw[block] = _grad_logits(logits, log_total, target[block], part[block], softcap, z_loss)
            if grad_hidden is not None:
                grad_hidden[rows] = raw @ weight
            if grad_weight is not None:
                _add_product(grad_weight, raw, x)
        ctx.save_for_backward(grad_hidden, grad_weight, total)
        ctx.narrow = weight.dtype
        penalty = penalty / total
        ctx.mark_non_differentiable(penalty)
        return loss / total + penalty, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Out of place: the saved gradients stay right for a second backward pass (retain_graph).
        *saved, total = ctx.saved_tensors
        grads = (None if g is None else (g.to(total.dtype) * (grad_loss / total)).to(ctx.narrow) for g in saved)
        return (*grads, None, None, None, None, None, None, None)


def _add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """`total += grad.T @ x`, added up in `total`'s type however narrow the operands are."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, x)
    else:
        total.add_(grad.T @ x)
