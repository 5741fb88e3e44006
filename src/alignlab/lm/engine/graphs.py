"""Decode steps of fixed shapes, recorded once as CUDA graphs and replayed.

A decode step of a small model is hundreds of kernels of a few microseconds, and launching them takes longer than
running them. A recorded graph is launched as one, but with the shapes and addresses that it was recorded with: so rows
and block tables are filled up to the next of a few sizes, and written into tensors that stay where they are.

On the CPU nothing is recorded; the same step runs as it is, which is how the tests check everything but the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.lm.engine.blocks import ZERO_BLOCK
from alignlab.lm.engine.paged import Group, PagedBatch, PagedCache, Span
from alignlab.lm.model import GPTModel

ROW_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Numbers of rows for which steps are recorded; more rows run unrecorded."""
WARM_UP = 2


@dataclass
class Step:
    """A decode step of one shape: its inputs, which are written in place, and what replays it."""

    tokens: Int[Tensor, "1 row"]
    positions: Int[Tensor, "1 row"]
    table: Int[Tensor, "row block"]
    replay: Callable[[], Float[Tensor, "row d_model"]]


class DecodeGraphs:
    """Runs decode steps (one new token a row) of a model over a cache, each shape recorded on first use."""

    def __init__(self, model: GPTModel, cache: PagedCache, *, record: bool) -> None:
        self.model, self.cache, self.record = model, cache, record
        self.steps: dict[tuple[int, int], Step] = {}
        self.pool: Any = None

    def forget(self) -> None:
        """Drop what was recorded: the model's weights have moved."""
        self.steps.clear()

    def takes(self, spans: Sequence[Span]) -> bool:
        """Whether there is a recorded size for so many rows."""
        return len(spans) <= ROW_SIZES[-1] and not self.model.taps

    def run(self, tokens: Sequence[int], spans: Sequence[Span]) -> Float[Tensor, "row d_model"]:
        """Hidden states after each row's new token. They are overwritten by the next run of the same shape."""
        size = self.cache.block_size
        n_rows = next(n for n in ROW_SIZES if n >= len(spans))
        wide = max(-(-(span.start + 1) // size) for span in spans)
        width = min(1 << (wide - 1).bit_length(), -(-self.cache.config.n_ctx // size))
        step = self.steps.get((n_rows, width))
        if step is None:
            step = self.steps[n_rows, width] = self.prepare(n_rows, width)
        idle = n_rows - len(spans)
        # Idle rows read and write the block that nobody reads.
        tables = [[*span.blocks[:width], *[ZERO_BLOCK] * (width - len(span.blocks))] for span in spans]
        tables += [[self.cache.scratch, *[ZERO_BLOCK] * (width - 1)]] * idle
        step.tokens.copy_(torch.tensor([[*tokens, *[0] * idle]]), non_blocking=True)
        step.positions.copy_(torch.tensor([[*(span.start for span in spans), *[0] * idle]]), non_blocking=True)
        step.table.copy_(torch.tensor(tables), non_blocking=True)
        return step.replay()[: len(spans)]

    def prepare(self, n_rows: int, width: int) -> Step:
        """The step for `n_rows` rows of at most `width` blocks, recorded where that is asked for."""
        device = self.cache.device
        tokens = torch.zeros(1, n_rows, dtype=torch.long, device=device)
        positions = torch.zeros(1, n_rows, dtype=torch.long, device=device)
        table = torch.full((n_rows, width), ZERO_BLOCK, device=device)
        table[:, 0] = self.cache.scratch

        def once() -> Float[Tensor, "row d_model"]:
            return self.decode(tokens, positions, table)

        if not self.record:
            return Step(tokens, positions, table, once)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are chosen and tables made before anything is recorded
            for _ in range(WARM_UP):
                once()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            hidden = once()
        self.pool = graph.pool()

        def replay() -> Float[Tensor, "row d_model"]:
            graph.replay()
            return hidden

        return Step(tokens, positions, table, replay)

    def decode(
        self, tokens: Int[Tensor, "1 row"], positions: Int[Tensor, "1 row"], table: Int[Tensor, "row block"]
    ) -> Float[Tensor, "row d_model"]:
        """One step, all of it a function of three tensors: nothing here may depend on their values in Python."""
        size, rows = self.cache.block_size, positions[0]
        blocks = table.gather(1, (rows // size)[:, None]).squeeze(1)
        group = Group(0, len(rows), 1, rows[:, None], table)
        # Tables of rotary positions are made for the whole context, so that no later pass replaces them.
        length = self.cache.config.n_ctx
        batch = PagedBatch(self.cache, positions, blocks * size + rows % size, [group], length=length)
        return self.model.hidden_states(tokens, cache=batch)[0]
