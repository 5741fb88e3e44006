"""Workes of fixed shape, recorded once as CUDA graphs and replayed.

A pass over a few tokens of a small model is hundreds of kernels of a few microseconds, and launching them takes longer
than running them. A recorded graph is launched as one, with the shapes and addresses that it was recorded with.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any

import torch

from alignlab.core.cuda_graphs import WARM_UP, Work, aside, recorded
from alignlab.lm.engine.joined import JoinedProducts
from alignlab.lm.model import GPTModel
from alignlab.train.context import replaced


class Recorder:
    """Records passes of one model, all in one pool of memory: never two at a time are replayed.

    Where not `active` (on a CPU) a pass is run as it is.
    """

    def __init__(self, model: GPTModel, *, active: bool) -> None:
        self.model, self.active = model, active
        self.joined: JoinedProducts | None = None
        self.pool: Any = None

    def forget(self) -> None:
        """The model's weights have moved, or its layers are others."""
        self.joined = None

    def renew(self) -> None:
        """The model's weights have changed where they are."""
        if self.joined is not None:
            self.joined.renew()

    def record(self, once: Work, *, compiled: bool) -> Work:
        """`once` as a graph, which returns the same tensor each time; `compiled` blocks have fewer, larger kernels.

        Where the compiler fails the blocks are recorded as they are, with a warning.
        """
        if not self.active:
            return once
        self.joined = self.joined or JoinedProducts(self.model)
        with ExitStack() as stack:
            stack.enter_context(self.joined.attached())
            if compiled:
                stack.enter_context(replaced([(block, "forward") for block in self.model.blocks], torch.compile))
            try:
                return self._captured(once)
            except Exception as error:
                if not (compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
                    raise
                said = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(f"the engine goes on without torch.compile, which failed: {said[0]}", stacklevel=2)
        return self.record(once, compiled=False)

    def _captured(self, once: Work) -> Work:
        for _ in range(WARM_UP):
            aside(once)
        replay, self.pool = recorded(once, pool=self.pool)
        return replay
