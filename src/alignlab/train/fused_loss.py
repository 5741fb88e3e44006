"""The two sweeps behind `alignlab.train.losses`, as autograd functions: logits a chunk at a time, gradients by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED_ROWS = 16


class Sweeping(NamedTuple):
    """How to go over the vocabulary, and which gradients to take on the way."""

    chunk: int
    """Positions at a time."""
    softcap: float | None
    """Bound on the logits."""
    z_loss: float
    """Weight of the squared log-partition."""
    want_hidden: bool
    """Whether the hidden states need a gradient."""
    want_weight: bool
    """Whether the unembedding needs one."""


def accumulator_of(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over a vocabulary or a batch are taken: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(raw: Tensor) -> Iterator[slice]:
    """Rows to work through at a time: what comes between two matrix products should stay in a processor's cache."""
    step = CACHED_ROWS if raw.device.type == "cpu" else len(raw)
    return (slice(start, start + step) for start in range(0, len(raw), step))


def _wide(raw: Tensor, softcap: float | None) -> Tensor:
    """Logits in the accumulation type, (rows, v); the caller may overwrite them and with them `raw`."""
    logits = raw.to(accumulator_of(raw.dtype))
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


def _rows(
    raw: Tensor, targets: Tensor, scale: Tensor, softcap: float | None, z_loss: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Each row's nll and log-sum-exp; the gradient of `scale * (nll + z_loss * log_total²)` replaces the logits."""
    logits = _wide(raw, softcap)
    log_total = torch.logsumexp(logits, dim=1)
    losses = log_total - logits.gather(1, targets[:, None]).squeeze(1)
    if want_grad:
        raw.copy_(_grad_logits(logits, log_total, targets, scale, softcap, z_loss))
    return losses, log_total


@functools.cache
def _rows_on(device: str, dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    """On a GPU the Triton kernel, where there is Triton: logits then cross the memory three times, not twenty."""
    if device == "cuda" and dtype != torch.float64:
        from torch.utils._triton import has_triton

        if has_triton():
            from alignlab.train.loss_kernel import rows_by_kernel

            return rows_by_kernel
    return _rows


class ChunkedCrossEntropy(torch.autograd.Function):
    """(n, d), (v, d), (n,) -> (n,).

    A position's loss depends on its own hidden state alone: with `early` the gradient of each is taken while its logits
    exist, and the backward pass only scales it. Otherwise (the unembedding learns too, or gradients would underflow
    before the loss scale comes) that pass makes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, softcap: float | None, early: bool
    ) -> Tensor:
        n, sweep = hidden.shape[0], _rows_on(hidden.device.type, hidden.dtype)
        losses = hidden.new_empty(n, dtype=accumulator_of(hidden.dtype))
        log_totals, ones = torch.empty_like(losses), torch.ones_like(losses)
        slopes = torch.empty_like(hidden) if early else None
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            raw = hidden[rows] @ weight.T
            for block in _blocks(raw):
                found = sweep(raw[block], targets[rows][block], ones[rows][block], softcap, 0.0, early)
                losses[rows][block], log_totals[rows][block] = found
            if slopes is not None:
                torch.mm(raw, weight, out=slopes[rows])
        ctx.save_for_backward(*((slopes,) if early else (hidden, weight, targets, log_totals)))
        ctx.chunk, ctx.softcap = chunk, softcap
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return (slopes * grad_losses[:, None]).to(slopes.dtype), None, None, None, None, None
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
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


class FusedLoss(torch.autograd.Function):
    """`sum(scale * nll[kept]) / sum(scale)`; its gradients are ready, but for one factor, when the forward pass ends.

    In float16 the division is part of that factor: divided before, gradients of a mean over many positions would
    underflow, and the loss scale would come too late.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        kept: Tensor | None,
        how: Sweeping,
    ) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.zeros_like(hidden) if how.want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=scale.dtype) if how.want_weight else None
        sweep = _rows_on(hidden.device.type, hidden.dtype)
        loss, penalty, total = scale.new_zeros(()), scale.new_zeros(()), scale.sum()
        if hidden.dtype != torch.float16:
            scale, total = scale / total, torch.ones_like(total)
        for start in range(0, scale.numel(), how.chunk):
            part = scale[start : start + how.chunk]
            rows = slice(start, start + how.chunk) if kept is None else kept[start : start + how.chunk]
            x, target = hidden[rows], targets[rows]
            raw = x @ weight.T
            for block in _blocks(raw):
                want = how.want_hidden or how.want_weight
                losses, log_totals = sweep(raw[block], target[block], part[block], how.softcap, how.z_loss, want)
                loss += torch.dot(part[block], losses)
                if how.z_loss:
                    penalty += how.z_loss * torch.dot(part[block], log_totals.square())
            if isinstance(rows, slice) and grad_hidden is not None:
                torch.mm(raw, weight, out=grad_hidden[rows])
            elif grad_hidden is not None:
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
        return (*grads, None, None, None, None)


def _add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """`total += grad.T @ x`, added up in `total`'s type however narrow the operands are."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, x)
    else:
        total.add_(grad.T @ x)
