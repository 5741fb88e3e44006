"""Decode steps of fixed shapes, which a GPU replays (`recorder`).

Rows and block tables are filled up to the next of a few sizes, and written into tensors that stay where they are.
Several steps in a row (`run_ahead`) draw on the GPU and come back to Python once.

On the CPU nothing is recorded; the same step runs as it is, which is how the tests check everything but the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.lm.engine.blocks import ZERO_BLOCK
from alignlab.lm.engine.decode_batch import DecodeBatch, has_kernel
from alignlab.lm.engine.paged import Group, PagedBatch, PagedCache, Span
from alignlab.lm.engine.recorder import Pass, Recorder

ROW_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Numbers of rows for which steps are recorded; more rows run unrecorded."""
KERNEL_WIDTH = 32
"""Blocks of a table at least where the kernel reads it: it walks over those that a row has, not over all."""
Choose = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From logits (row, vocab) and the number of the step: each row's next token and its log-probability."""


@dataclass
class Step:
    """A decode step of one shape: its inputs, which are written in place, and what replays it."""

    tokens: Int[Tensor, "1 row"]
    positions: Int[Tensor, "1 row"]
    table: Int[Tensor, "row block"]
    replay: Pass


class DecodeGraphs:
    """Runs decode steps (one new token a row) of a model over a cache, each shape recorded on first use.

    With `compiled`, blocks go through `torch.compile` on the way, which joins their small kernels.
    """

    def __init__(self, recorder: Recorder, cache: PagedCache, *, compiled: bool = False) -> None:
        self.recorder, self.model, self.cache, self.compiled = recorder, recorder.model, cache, compiled
        self.kernel = has_kernel(self.model.config, cache.device)
        self.steps: dict[tuple[int, int], Step] = {}

    def forget(self) -> None:
        """Drop what was recorded."""
        self.steps.clear()

    def takes(self, spans: Sequence[Span]) -> bool:
        """Whether there is a recorded size for so many rows."""
        return len(spans) <= ROW_SIZES[-1] and not self.model.taps

    def run(self, tokens: Sequence[int], spans: Sequence[Span]) -> Float[Tensor, "row d_model"]:
        """Hidden states after each row's new token. They are overwritten by the next run of the same shape."""
        return self.filled(tokens, spans, 1).replay()[: len(spans)]

    def run_ahead(
        self, tokens: Sequence[int], spans: Sequence[Span], n_steps: int, choose: Choose
    ) -> tuple[Int[Tensor, "step row"], Float[Tensor, "step row"]]:
        """`n_steps` tokens for each row, drawn by `choose`, and their log-probabilities, on the CPU.

        What a row writes beyond its own blocks is lost: its tokens from there on mean nothing.
        """
        step, n_rows = self.filled(tokens, spans, n_steps), len(spans)
        drawn, gained = [], []
        for i in range(n_steps):
            chosen, logprob = choose(self.model.unembed(step.replay()[:n_rows]), i)
            drawn.append(chosen)
            gained.append(logprob)
            if i + 1 < n_steps:
                step.tokens[0, :n_rows] = chosen
                step.positions.add_(1).clamp_(max=self.cache.config.n_ctx - 1)
        return torch.stack(drawn).cpu(), torch.stack(gained).cpu()

    def filled(self, tokens: Sequence[int], spans: Sequence[Span], n_steps: int) -> Step:
        """The step for so many rows, with their tokens, positions and blocks in place."""
        size, limit = self.cache.block_size, -(-self.cache.config.n_ctx // self.cache.block_size)
        n_rows = next(n for n in ROW_SIZES if n >= len(spans))
        wide = max(-(-(span.start + n_steps) // size) for span in spans)
        width = min(max(1 << (wide - 1).bit_length(), KERNEL_WIDTH if self.kernel else 1), limit)
        step = self.steps.get((n_rows, width))
        if step is None:
            step = self.steps[n_rows, width] = self.prepare(n_rows, width)
        # Idle rows, and rows that run beyond their end, read and write the block that nobody reads.
        scratch, idle = self.cache.scratch, n_rows - len(spans)
        tables = [self.table_of(span, min(-(-(span.start + n_steps) // size), limit), width) for span in spans]
        tables += [[scratch] * width] * idle
        step.tokens.copy_(torch.tensor([[*tokens, *[0] * idle]]), non_blocking=True)
        step.positions.copy_(torch.tensor([[*(span.start for span in spans), *[0] * idle]]), non_blocking=True)
        step.table.copy_(torch.tensor(tables), non_blocking=True)
        return step

    def table_of(self, span: Span, reached: int, width: int) -> list[int]:
        """A row's blocks; where it reaches further than they do, the scratch block; then zeros."""
        own = span.blocks[:width]
        beyond = [self.cache.scratch] * (reached - len(own))
        return [*own, *beyond, *[ZERO_BLOCK] * (width - len(own) - len(beyond))]

    def prepare(self, n_rows: int, width: int) -> Step:
        """The step for `n_rows` rows of at most `width` blocks, recorded where that is asked for."""
        device = self.cache.device
        tokens = torch.zeros(1, n_rows, dtype=torch.long, device=device)
        positions = torch.zeros(1, n_rows, dtype=torch.long, device=device)
        table = torch.full((n_rows, width), self.cache.scratch, device=device)

        def once() -> Float[Tensor, "row d_model"]:
            return self.decode(tokens, positions, table)

        return Step(tokens, positions, table, self.recorder.record(once, compiled=self.compiled))

    def decode(
        self, tokens: Int[Tensor, "1 row"], positions: Int[Tensor, "1 row"], table: Int[Tensor, "row block"]
    ) -> Float[Tensor, "row d_model"]:
        """One step, all of it a function of three tensors: nothing here may depend on their values in Python."""
        # Tables of rotary positions are made for the whole context, so that no later pass replaces them.
        length = self.cache.config.n_ctx
        if self.kernel:
            batch = DecodeBatch(self.cache, positions, table, length=length)
            return self.model.hidden_states(tokens, cache=batch)[0]
        size, rows = self.cache.block_size, positions[0]
        blocks = table.gather(1, (rows // size)[:, None]).squeeze(1)
        group = Group(0, len(rows), 1, rows[:, None], table)
        gathered = PagedBatch(self.cache, positions, blocks * size + rows % size, [group], length=length)
        return self.model.hidden_states(tokens, cache=gathered)[0]
