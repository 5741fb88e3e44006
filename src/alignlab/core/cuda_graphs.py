"""Work of fixed shape, recorded once as a CUDA graph and launched as one.

Hundreds of kernels of a few microseconds take longer to launch than to run. A graph runs with the shapes and the
addresses that it was recorded with; what it draws, it draws anew each time from the generators it was told of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Tensor]
WARM_UP = 2
"""Times that work runs before it is recorded, so that kernels are chosen and tables made."""


def aside(work: Work) -> Tensor:
    """Run the work on a stream of its own, as everything must run that is recorded later."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = work()
    torch.cuda.current_stream().wait_stream(stream)
    return found


def recorded(work: Work, *, pool: Any = None, generators: Sequence[torch.Generator] = ()) -> tuple[Work, Any]:
    """(the work as a graph, which returns the same tensor each time; its pool of memory). Recording runs nothing."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, pool=pool):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay, graph.pool()


class Replayed:
    """Work called again and again: on a GPU, once it has warmed up, recorded, and all later calls are replays of that.

    `before` is run once, before the recording: to free what the recording should allocate anew. A CPU only works.
    """

    def __init__(
        self,
        work: Work,
        device: torch.device,
        *,
        generators: Sequence[torch.Generator] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        self.work, self.generators, self.before = work, generators, before
        self.active, self.calls = device.type == "cuda", 0
        self.replay: Work | None = None

    def __call__(self) -> Tensor:
        """What the work returns; on a GPU the same tensor each time, once recorded."""
        if not self.active:
            return self.work()
        if self.replay is None:
            self.calls += 1
            if self.calls <= WARM_UP:
                return aside(self.work)
            if self.before is not None:
                self.before()
            self.replay, _ = recorded(self.work, generators=self.generators)
        return self.replay()
