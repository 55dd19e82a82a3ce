"""What a kernel takes: replays of a graph of calls, so that no launch is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

LEAST_CALLS = 8
"""In one graph."""


def measure(
    run: Callable[[int], object], copies: int, *, before: Callable[[], object] = lambda: None
) -> float:
    """As `measure_in_turns`, of one."""
    return measure_in_turns((run,), copies, before=before)[0]


def measure_in_turns(
    runs: Sequence[Callable[[int], object]], copies: int, *, before: Callable[[], object] = lambda: None
) -> list[float]:
    """The median of each one's replays, microseconds per call. They take turns, so that a clock that falls
    meanwhile falls for all of them, and what is left after a subtraction is no clock's.

    Args:
        runs: each called with the number of the copy of its inputs to use.
        copies: of the inputs, taken in turn so that they are not in the cache.
        before: called before each replay, and is not timed.
    """
    calls = max(copies, LEAST_CALLS)
    graphs = [_record(run, [call % copies for call in range(calls)], before) for run in runs]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(9):
        for graph, taken in zip(graphs, times, strict=True):
            before()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) * 1e3 / calls)
    return [float(np.median(taken[2:])) for taken in times]


def _record(
    run: Callable[[int], object], copies: Sequence[int], before: Callable[[], object]
) -> torch.cuda.CUDAGraph:
    before()
    run(0)  # compiles
    torch.cuda.synchronize()
    before()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            run(copy)
    return graph
