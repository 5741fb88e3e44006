"""Reading new prompts in passes of fixed shape, which a GPU replays (`recorder`).

Prompts from their first token to their last attend among themselves only, so rows of one padded length are one
rectangle: padding stands at the end, where causal attention keeps it from everything, and is written to the block that
nobody reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.core.cuda_graphs import Work
from alignlab.lm.engine.graphs import ROW_SIZES
from alignlab.lm.engine.paged import Group, PagedBatch, PagedCache, Span
from alignlab.lm.engine.recorder import Recorder

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Padded lengths that are recorded; longer prompts keep a GPU busy without."""
TOKENS = 16384
"""Tokens of a recorded pass at most, padding included."""
WASTE = 2.0
"""Tokens with padding over tokens without, at most: beyond, an unrecorded pass is better."""


@dataclass
class PromptStep:
    """A pass of one shape: its inputs, which are written in place, and what replays it."""

    tokens: Int[Tensor, "1 total"]
    slots: Int[Tensor, " total"]
    positions: Int[Tensor, " total"]
    """Always the same; kept because a recorded pass reads them where they are."""
    replay: Work


class PromptGraphs:
    """Reads whole prompts, each shape recorded on first use."""

    def __init__(self, recorder: Recorder, cache: PagedCache) -> None:
        self.recorder, self.cache = recorder, cache
        self.steps: dict[tuple[int, int], PromptStep] = {}

    def forget(self) -> None:
        """Drop what was recorded."""
        self.steps.clear()

    def shape(self, spans: Sequence[Span]) -> tuple[int, int] | None:
        """Rows and padded length of the pass over `spans`, or None where they are not for a recorded one."""
        longest = max(span.n_new for span in spans)
        length = next((n for n in LENGTHS if n >= longest), None)
        n_rows = next((n for n in ROW_SIZES if n >= len(spans)), None)
        if length is None or n_rows is None or any(span.start for span in spans) or self.recorder.model.taps:
            return None
        total = n_rows * length
        fits = total <= TOKENS and length <= self.cache.config.n_ctx
        return (n_rows, length) if fits and total <= WASTE * sum(span.n_new for span in spans) else None

    def run(
        self, shape: tuple[int, int], tokens: Sequence[int], spans: Sequence[Span]
    ) -> Float[Tensor, "total d_model"]:
        """Hidden states of the tokens of `spans`, which stand end to end in `tokens`."""
        n_rows, length = shape
        step = self.steps.get(shape)
        if step is None:
            step = self.steps[shape] = self.prepare(n_rows, length)
        size = self.cache.block_size
        padded = np.zeros((n_rows, length), np.int64)
        slots = np.full((n_rows, length), self.cache.scratch * size, np.int64)
        at, places = 0, []
        for i, span in enumerate(spans):
            n, column = span.n_new, np.arange(span.n_new)
            padded[i, :n] = tokens[at : at + n]
            slots[i, :n] = np.asarray(span.blocks)[column // size] * size + column % size
            places.append(i * length + column)
            at += n
        step.tokens.copy_(torch.from_numpy(padded).view(1, -1), non_blocking=True)
        step.slots.copy_(torch.from_numpy(slots).view(-1), non_blocking=True)
        index = torch.from_numpy(np.concatenate(places)).to(self.cache.device)
        return step.replay()[index]

    def prepare(self, n_rows: int, length: int) -> PromptStep:
        """The pass over `n_rows` prompts of `length` tokens, recorded where that is asked for."""
        device, total = self.cache.device, n_rows * length
        tokens = torch.zeros(1, total, dtype=torch.long, device=device)
        slots = torch.full((total,), self.cache.scratch * self.cache.block_size, device=device)
        positions = torch.arange(length, device=device).repeat(n_rows)

        def once() -> Float[Tensor, "total d_model"]:
            rows = positions.view(n_rows, length)
            group = Group(0, n_rows, length, rows, None, uniform=True)
            batch = PagedBatch(self.cache, positions[None], slots, [group], length=self.cache.config.n_ctx)
            return self.recorder.model.hidden_states(tokens, cache=batch)[0]

        return PromptStep(tokens, slots, positions, self.recorder.record(once, compiled=False))
