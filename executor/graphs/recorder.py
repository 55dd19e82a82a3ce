"""How steps are recorded: as CUDA graphs, or, without a GPU, not at all."""

from collections.abc import Callable
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

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Adapters are copied by another thread meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                result = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)

        def replay() -> Result:
            graph.replay()
            return result

        return replay


def no_recorder(run: Callable[[], Result]) -> Callable[[], Result]:
    """Runs it again each time: graphs without a GPU."""
    return run
