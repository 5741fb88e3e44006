"""The noise scale from the gradients of single examples: the independent check on the two-batch-size estimate.

Examples are rows of batches. Their gradients are never held together: one at a time (or `chunk` at a time with `vmap`)
is added to the sum and reduced to its norm, and a second pass gives what an interval needs. Memory is that of two sets
of gradients (`1 + chunk` with `vmap`), however many examples there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from alignlab.core.config import require
from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.core.progress import SILENT, Progress
from alignlab.core.rng import derive_seed
from alignlab.stats.validation import FloatArray, check_confidence
from alignlab.train.context import seeded
from alignlab.train.noise_scale import NoiseScale, noise_moments, ratio_interval
from alignlab.train.optim import trainable_parameters
from alignlab.train.parallel import LossModule
from alignlab.train.trainer import Batch, LossFn

Method = Literal["loop", "vmap"]
Chunk = tuple[list[Tensor], list[float]]
"""Gradients of some examples, each parameter's as (examples, *shape), and the tokens of each example."""


def per_example_noise_scale(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    *,
    method: Method = "loop",
    chunk: int = 8,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress = SILENT,
) -> NoiseScale:
    """Noise scale at the present weights from the gradient of each row of `batches` (McCandlish et al. 2018).

    The estimates are those of `noise_moments` with a batch size of one row; the interval is Fieller's with the
    covariance of a jackknife over rows, in tokens where `loss_fn` reports `tokens`, else in rows. The model is left in
    its mode and with its gradients; what is random in it is seeded by the place of the row.

    `loop` takes any loss. `vmap` takes the gradients of `chunk` rows at once (`torch.func`), and needs a loss without
    control flow on values and without operators that have only a first-order backward of their own.

    Raises:
        ConfigError: `vmap` with such a loss, fewer than 3 rows, an unknown method. DataError: rows that do not fit.
        TrainingError: a gradient that is not finite, or a row without anything to learn.
    """
    require(method in get_args(Method), "method", method, ", ".join(get_args(Method)))
    require(chunk >= 1, "chunk", chunk, "a positive whole number")
    check_confidence(confidence)
    rows = _count_rows(batches)
    if rows < 3:
        raise ConfigError(f"there are {rows} examples, but the spread of their gradients needs at least 3")
    parameters = trainable_parameters(model)
    take = _looped(model, loss_fn, parameters) if method == "loop" else _vectorised(model, loss_fn, parameters)

    def gradients() -> Iterator[Chunk]:
        size = 1 if method == "loop" else chunk
        for number, batch in enumerate(_slices(batches, size)):
            with seeded(derive_seed(seed, "per-example", number), next(iter(parameters.values())).device):
                yield take(batch)

    with progress.task("gradients of examples", 2 * rows, unit="examples") as task:
        total, square_norms, tokens = _first_pass(gradients, task.advance)
        whole = math.fsum(tokens)
        mean = [part / whole for part in total]
        square = math.fsum(float((part * part).sum()) for part in mean)
        dots = _second_pass(gradients, mean, task.advance)
    gradient_square, variance = noise_moments(square_norms, tokens, square)
    covariance = jackknife_covariance(np.array(square_norms), np.array(tokens), np.array(dots), square)
    scale = ratio_interval(variance, gradient_square, covariance, df=rows - 1, n=rows, confidence=confidence)
    return NoiseScale(gradient_square, variance, scale, "tokens" if whole != rows else "examples")


def jackknife_covariance(square_norms: FloatArray, tokens: FloatArray, dots: FloatArray, square: float) -> FloatArray:
    """Jackknife covariance, (2, 2), of the estimates (tr(Σ), |G|²) of `noise_moments`, each row left out once.

    square_norms: |g_i|²; tokens: t_i; dots: g_i · G with G = Σ t_i g_i / T; square: |G|²; all arrays (n,), n >= 3.
    Without row i, |G|² is `(T² |G|² - 2 T t_i g_i·G + t_i² |g_i|²) / (T - t_i)²`: no gradient is needed again.
    """
    n, whole = len(square_norms), float(tokens.sum())
    left = whole - tokens
    small = (float((tokens * square_norms).sum()) - tokens * square_norms) / left
    total = (whole**2 * square - 2 * whole * tokens * dots + tokens**2 * square_norms) / left**2
    variance = left / (n - 2) * (small - total)
    pairs = np.stack([variance, total - variance / left])  # (2, n)
    centred = pairs - pairs.mean(axis=1, keepdims=True)
    covariance: FloatArray = (n - 1) / n * centred @ centred.T
    return covariance


def _first_pass(
    gradients: Callable[[], Iterator[Chunk]], advance: Callable[[int], None]
) -> tuple[list[Tensor], list[float], list[float]]:
    """Σ t_i g_i, and |g_i|² and t_i of every example."""
    total: list[Tensor] = []
    square_norms: list[float] = []
    tokens: list[float] = []
    for parts, sizes in gradients():
        if not total:
            # Sums of many bf16 gradients would lose the small ones.
            total = [torch.zeros_like(p[0], dtype=torch.promote_types(p.dtype, torch.float32)) for p in parts]
        weights = torch.tensor(sizes, dtype=torch.float64)
        norms = torch.zeros(len(sizes), dtype=torch.float64)
        for part, whole in zip(parts, total, strict=True):
            flat = part.detach().flatten(1).to(whole.dtype)
            norms += (flat * flat).sum(1).double().cpu()  # a sum, since BLAS adds up in float32 one by one
            whole += (weights.to(flat) @ flat).view_as(whole)
        if not bool(torch.isfinite(norms).all()):
            raise TrainingError(f"the gradient of example {len(tokens) + 1} or one soon after it is not finite")
        square_norms += norms.tolist()
        tokens += sizes
        advance(len(sizes))
    return total, square_norms, tokens


def _second_pass(
    gradients: Callable[[], Iterator[Chunk]], mean: list[Tensor], advance: Callable[[int], None]
) -> list[float]:
    """g_i · G of every example."""
    dots: list[float] = []
    for parts, sizes in gradients():
        found = torch.zeros(len(sizes), dtype=torch.float64)
        for part, whole in zip(parts, mean, strict=True):
            found += (part.detach().flatten(1).to(whole.dtype) * whole.flatten()).sum(1).double().cpu()
        dots += found.tolist()
        advance(len(sizes))
    return dots


def _looped(model: nn.Module, loss_fn: LossFn, parameters: dict[str, nn.Parameter]) -> Callable[[Batch], Chunk]:
    """One backward pass a row."""
    wanted = list(parameters.values())
    device = wanted[0].device

    def take(batch: Batch) -> Chunk:
        loss, metrics = loss_fn(model, {key: value.to(device) for key, value in batch.items()})
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(found, wanted, strict=True)]
        return [g.unsqueeze(0) for g in filled], [float(metrics.get("tokens", 1.0))]

    return take


def _vectorised(model: nn.Module, loss_fn: LossFn, parameters: dict[str, nn.Parameter]) -> Callable[[Batch], Chunk]:
    """`vmap(grad(loss))` over the rows of a batch."""
    lesson = LossModule(model, loss_fn)
    lesson.training = model.training
    values = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    device = next(iter(values.values())).device

    def loss(weights: dict[str, Tensor], row: Batch) -> tuple[Tensor, Tensor]:
        single = {key: value.unsqueeze(0) for key, value in row.items()}
        value, metrics = functional_call(lesson, weights, (single,))
        return value, torch.as_tensor(metrics.get("tokens", 1.0))

    per_row = vmap(grad(loss, has_aux=True), in_dims=(None, 0), randomness="different")

    def take(batch: Batch) -> Chunk:
        try:
            found, sizes = per_row(values, {key: value.to(device) for key, value in batch.items()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"this loss cannot be taken for many examples at once ({reason}); use 'loop'") from error
        return list(found.values()), [float(size) for size in sizes]

    return take


def _count_rows(batches: Sequence[Batch]) -> int:
    for number, batch in enumerate(batches):
        lengths = {key: len(value) for key, value in batch.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"batch {number} has rows {lengths}; every tensor of a batch must have as many")
    return sum(len(next(iter(batch.values()))) for batch in batches)


def _slices(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    for batch in batches:
        rows = len(next(iter(batch.values())))
        for start in range(0, rows, size):
            yield {key: value[start : start + size] for key, value in batch.items()}
