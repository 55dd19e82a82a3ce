"""What a kernel takes: replays of a graph of calls, so that no launch is timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

LEAST_CALLS = 8
"""In one graph."""


def measure(
    run: Callable[[int], object], copies: int, *, before: Callable[[], object] = lambda: None
) -> float:
    """The median of replays, microseconds per call.

    Args:
        run: called with the number of the copy of its inputs to use.
        copies: of the inputs, taken in turn so that they are not in the cache.
        before: called before each replay, and is not timed.
    """
    before()
    run(0)  # compiles
    torch.cuda.synchronize()
    before()
    graph, calls = torch.cuda.CUDAGraph(), max(copies, LEAST_CALLS)
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(call % copies)
    times: list[float] = []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(9):
        before()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return float(np.median(times[2:]))
