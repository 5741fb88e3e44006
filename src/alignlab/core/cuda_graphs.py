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
