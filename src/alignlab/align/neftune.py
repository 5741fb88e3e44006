"""NEFTune: uniform noise on the embeddings while fine-tuning (Jain et al. 2023, "Noisy Embeddings Improve Instruction
Finetuning").

A sequence of L tokens and d dimensions gets noise alpha / sqrt(L d) times a number from [-1, 1] in every coordinate.
The paper's L is the sequence's own length, and so it is here, also where several share a row: what an example is
trained on does not depend on its neighbours. `transformers` takes the width of the batch, padding included; the two
agree on rows that one example fills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.core.config import require


def segment_lengths(segments: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """At each position, how many tokens of its row have its segment number; padding (0) counts itself."""
    numbers = segments.new_zeros(segments.shape[0], int(segments.max()) + 1)
    numbers.scatter_add_(1, segments, torch.ones_like(segments))
    return numbers.gather(1, segments)


def noise_like(
    embedded: Float[Tensor, "batch pos d_model"], lengths: Int[Tensor, "batch pos"], alpha: float
) -> Float[Tensor, "batch pos d_model"]:
    """alpha / sqrt(L d) · U(-1, 1), drawn from torch's global generator (the trainer seeds it for each batch)."""
    size = alpha / (lengths * embedded.shape[-1]).to(embedded.dtype).sqrt()
    return torch.empty_like(embedded).uniform_(-1.0, 1.0) * size[..., None]


@contextmanager
def noisy_embeddings(model: Any, lengths: Int[Tensor, "batch pos"], alpha: float) -> Iterator[None]:
    """Inside, `model.embed` adds noise to what it gives, as long as it is in training mode."""

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + noise_like(output, lengths, alpha) if module.training else output

    handle = model.embed.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def with_neftune(loss_fn: Callable[..., Any], alpha: float) -> Callable[..., Any]:
    """`loss_fn` of a batch with `tokens` (and maybe `segments`) under NEFTune; with alpha 0 it is `loss_fn` itself."""
    require(alpha >= 0, "neftune_alpha", alpha, "0 (off) or a positive number; the paper tries 5, 10 and 15")
    if not alpha:
        return loss_fn

    def noisy(model: Any, batch: dict[str, Tensor], *, z_loss: float = 0.0) -> Any:
        tokens, segments = batch["tokens"], batch.get("segments")
        lengths = torch.full_like(tokens, tokens.shape[1]) if segments is None else segment_lengths(segments)
        with noisy_embeddings(model, lengths, alpha):
            return loss_fn(model, batch, z_loss=z_loss) if z_loss else loss_fn(model, batch)

    return noisy
