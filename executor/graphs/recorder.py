"""How steps are recorded: as CUDA graphs, or, without a GPU, not at all."""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Recorder(Protocol):
    """Makes something that does again what `run` does, and returns where its results are. `run` must have
    run before, so that its kernels are compiled.
    """

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]: ...


class CudaRecorder:
    """Records CUDA graphs, which share the memory of what they compute on the way."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._recorded = 0
        self._taken = 0

    @property
    def bytes_of_one(self) -> int:
        """What a graph has taken of the GPU on average, beside what they share; 0 while there is none."""
        return self._taken // max(1, self._recorded)

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]:
        """See `Recorder`."""
        before = _outside_the_allocator()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Adapters are copied by another thread meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                result = run()
            except BaseException:
                with suppress(RuntimeError):  # tells of the first error once more
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._recorded += 1
        self._taken += max(0, _outside_the_allocator() - before)

        def replay() -> Result:
            graph.replay()
            return result

        return replay


def _outside_the_allocator() -> int:
    """Bytes of the GPU that others than torch's allocator have."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def no_recorder(run: Callable[[], Result]) -> Callable[[], Result]:
    """Runs it again each time: graphs without a GPU."""
    return run
