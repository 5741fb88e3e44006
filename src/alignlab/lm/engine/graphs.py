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

from alignlab.core.cuda_graphs import Work
from alignlab.lm.engine.blocks import ZERO_BLOCK
from alignlab.lm.engine.decode_batch import DecodeBatch, has_kernel
from alignlab.lm.engine.paged import Group, PagedBatch, PagedCache, Span
from alignlab.lm.engine.recorder import Recorder

ROW_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Numbers of rows for which steps are recorded; more rows run unrecorded."""
KERNEL_WIDTH = 32
"""Blocks of a table at least where the kernel reads it: it walks over those that a row has, not over all."""
LONGEST_AHEAD = 64
"""Steps ahead at most."""
Choose = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From logits (row, vocab) and the number of the step: each row's next token and its log-probability."""


@dataclass
class Step:
    """A decode step of one shape: its inputs, which are written in place, and what replays it."""

    tokens: Int[Tensor, "1 row"]
    positions: Int[Tensor, "1 row"]
    table: Int[Tensor, "row block"]
    replay: Work
    """Gives the hidden states (row, d_model)."""


@dataclass
class GreedyStep(Step):
    """A decode step that also takes the most likely token of each row, writes it down and makes it the next input."""

    drawn: Int[Tensor, "step row"]
    gained: Float[Tensor, "step row"]
    at: Int[Tensor, " 1"]
    """How many steps have been written down."""


class DecodeGraphs:
    """Runs decode steps (one new token a row) of a model over a cache, each shape recorded on first use.

    With `compiled`, blocks go through `torch.compile` on the way, which joins their small kernels.
    """

    def __init__(self, recorder: Recorder, cache: PagedCache, *, compiled: bool = False) -> None:
        self.recorder, self.model, self.cache, self.compiled = recorder, recorder.model, cache, compiled
        self.kernel = has_kernel(self.model.config, cache.device)
        self.steps: dict[tuple[int, int], Step] = {}
        self.greedy_steps: dict[tuple[int, int], GreedyStep] = {}

    def forget(self) -> None:
        """Drop what was recorded."""
        self.steps.clear()
        self.greedy_steps.clear()

    def takes(self, spans: Sequence[Span]) -> bool:
        """Whether there is a recorded size for so many rows."""
        return len(spans) <= ROW_SIZES[-1] and not self.model.taps

    def run(self, tokens: Sequence[int], spans: Sequence[Span]) -> Float[Tensor, "row d_model"]:
        """Hidden states after each row's new token. They are overwritten by the next run of the same shape."""
        shape = self.shape(spans, 1)
        step = self.steps.get(shape) or self.steps.setdefault(shape, self.prepare(*shape))
        self.fill(step, tokens, spans, 1)
        return step.replay()[: len(spans)]

    def run_ahead(
        self, tokens: Sequence[int], spans: Sequence[Span], n_steps: int, choose: Choose
    ) -> tuple[Int[Tensor, "step row"], Float[Tensor, "step row"]]:
        """`n_steps` tokens for each row, drawn by `choose`, and their log-probabilities, on the CPU.

        What a row writes beyond its own blocks is lost: its tokens from there on mean nothing.
        """
        shape, n_rows = self.shape(spans, n_steps), len(spans)
        step = self.steps.get(shape) or self.steps.setdefault(shape, self.prepare(*shape))
        self.fill(step, tokens, spans, n_steps)
        drawn, gained = [], []
        for i in range(n_steps):
            chosen, logprob = choose(self.model.unembed(step.replay()[:n_rows]), i)
            drawn.append(chosen)
            gained.append(logprob)
            if i + 1 < n_steps:
                step.tokens[0, :n_rows] = chosen
                step.positions.add_(1).clamp_(max=self.cache.config.n_ctx - 1)
        return torch.stack(drawn).cpu(), torch.stack(gained).cpu()

    def run_ahead_greedily(
        self, tokens: Sequence[int], spans: Sequence[Span], n_steps: int
    ) -> tuple[Int[Tensor, "step row"], Float[Tensor, "step row"]]:
        """As `run_ahead` with the most likely token each time, all of a step in the recorded pass."""
        shape, n_rows = self.shape(spans, n_steps), len(spans)
        step = self.greedy_steps.get(shape) or self.greedy_steps.setdefault(shape, self.prepare_greedy(*shape))
        self.fill(step, tokens, spans, n_steps)
        step.at.zero_()
        for _ in range(n_steps):
            step.replay()
        return step.drawn[:n_steps, :n_rows].cpu(), step.gained[:n_steps, :n_rows].cpu()

    def shape(self, spans: Sequence[Span], n_steps: int) -> tuple[int, int]:
        """Recorded numbers of rows and of blocks a row for `n_steps` steps of `spans`."""
        size, limit = self.cache.block_size, -(-self.cache.config.n_ctx // self.cache.block_size)
        wide = max(-(-(span.start + n_steps) // size) for span in spans)
        width = max(1 << (wide - 1).bit_length(), KERNEL_WIDTH if self.kernel else 1)
        return next(n for n in ROW_SIZES if n >= len(spans)), min(width, limit)

    def fill(self, step: Step, tokens: Sequence[int], spans: Sequence[Span], n_steps: int) -> None:
        """Put tokens, positions and blocks of the rows in place."""
        size, limit = self.cache.block_size, -(-self.cache.config.n_ctx // self.cache.block_size)
        n_rows, width = step.table.shape
        # Idle rows, and rows that run beyond their end, read and write the block that nobody reads.
        scratch, idle = self.cache.scratch, n_rows - len(spans)
        tables = [self.table_of(span, min(-(-(span.start + n_steps) // size), limit), width) for span in spans]
        tables += [[scratch] * width] * idle
        step.tokens.copy_(torch.tensor([[*tokens, *[0] * idle]]), non_blocking=True)
        step.positions.copy_(torch.tensor([[*(span.start for span in spans), *[0] * idle]]), non_blocking=True)
        step.table.copy_(torch.tensor(tables), non_blocking=True)

    def table_of(self, span: Span, reached: int, width: int) -> list[int]:
        """A row's blocks; where it reaches further than they do, the scratch block; then zeros."""
        own = span.blocks[:width]
        beyond = [self.cache.scratch] * (reached - len(own))
        return [*own, *beyond, *[ZERO_BLOCK] * (width - len(own) - len(beyond))]

    def prepare(self, n_rows: int, width: int) -> Step:
        """The step for `n_rows` rows of at most `width` blocks, recorded where that is asked for."""
        tokens, positions, table = self.inputs(n_rows, width)

        def once() -> Float[Tensor, "row d_model"]:
            return self.decode(tokens, positions, table)

        return Step(tokens, positions, table, self.recorder.record(once, compiled=self.compiled))

    def prepare_greedy(self, n_rows: int, width: int) -> GreedyStep:
        """As `prepare`, with the choice of the token; for the kernel's passes only."""
        from alignlab.lm.engine.greedy_kernel import most_likely  # needs Triton

        tokens, positions, table = self.inputs(n_rows, width)
        drawn = torch.zeros(LONGEST_AHEAD, n_rows, dtype=torch.long, device=self.cache.device)
        gained, at = torch.zeros_like(drawn, dtype=torch.float32), torch.zeros_like(tokens[0, :1])
        last = self.cache.config.n_ctx - 1

        def once() -> Int[Tensor, " row"]:
            chosen, logprob = most_likely(self.model.unembed(self.decode(tokens, positions, table)))
            drawn.index_copy_(0, at, chosen[None])
            gained.index_copy_(0, at, logprob[None])
            tokens.copy_(chosen[None])
            positions.add_(1).clamp_(max=last)
            at.add_(1)
            return chosen

        replay = self.recorder.record(once, compiled=self.compiled)
        return GreedyStep(tokens, positions, table, replay, drawn, gained, at)

    def inputs(self, n_rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and block tables that a recorded step reads."""
        tokens, positions = torch.zeros(2, 1, n_rows, dtype=torch.long, device=self.cache.device)
        return tokens, positions, torch.full((n_rows, width), self.cache.scratch, device=self.cache.device)

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
