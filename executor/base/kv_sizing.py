"""How large a GPU's KV cache may be: what a run of the largest steps leaves of the memory.

The arithmetic is by itself; `measured_pages` does the run, with a cache that is just large enough.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from executor.control.plan import BASE_SLOT, RowInstall, StepPlan
from executor.control.request import SamplingParams, no_ids
from executor.control.runner import Runner
from executor.model.slots import AdapterPool
from executor.rehearsal.plans import Limits, Row, largest, ranks_of_largest
from executor.rehearsal.plans import step as step_of
from kernels.lora import UNIT_BYTES, SliceEntry

log = logging.getLogger(__name__)

_SHARE_FOR_GRAPHS = 1 / 32
"""Of a device, kept for graphs to come at most: without them steps are slower, but run."""

# Every option that takes memory.
_SAMPLING = SamplingParams(
    max_tokens=2,
    temperature=1.0,
    top_k=50,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    ignore_eos=True,
    logprobs=20,
    prompt_logprobs=20,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes of a device: in all, the most that our process took while it computed with `cache`'s bytes of KV,
    what others and the driver take, and what will be taken later.
    """

    total: int
    peak: int
    cache: int
    others: int
    to_come: int = 0

    @property
    def taken(self) -> int:
        """By everything but the cache."""
        return self.peak - self.cache + self.others + self.to_come


def affordable_pages(measured: Measured, *, utilization: float, page_bytes: int, most: int) -> int:
    """Pages that fit `utilization` of the device besides everything else, `most` at most.

    Raises ValueError, saying what to do, where not one fits.
    """
    taken = measured.taken
    left = int(measured.total * utilization) - taken
    # The cache has a page that belongs to nobody.
    pages = left // page_bytes - 1
    if pages < 1:
        raise ValueError(
            f"no GPU memory is left for the KV cache: weights, adapters and the largest step take "
            f"{taken >> 20} MiB of the {int(measured.total * utilization) >> 20} MiB that "
            f"gpu_memory_utilization {utilization} allows; lower max_step_tokens, max_running or "
            "adapter_pool_bytes, raise gpu_memory_utilization, or take a larger GPU"
        )
    return min(pages, most)


class MeasuredRunner(Runner[Any], Protocol):
    """One that knows what it will take later."""

    @property
    def bytes_to_come(self) -> int: ...


class DeviceMemory(Protocol):
    """What a device says of its memory."""

    def begin(self) -> None:
        """Give back what is not in use, and measure the peak from here on."""
        ...

    def measure(self, cache: int) -> Measured:
        """Since `begin`, with `cache` bytes of KV among them."""
        ...


def allocate_from_growing_ranges() -> None:
    """Comes before anything is allocated on a GPU; settings of torch's allocator in the environment stand.

    Otherwise a step of another size finds the former steps' memory in pieces that do not fit it: that took
    1.5 GiB more on an H100 within seconds of mixed traffic, which a run of the largest step cannot foresee.
    """
    if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


class CudaMemory:
    """The first GPU that is visible."""

    def begin(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def measure(self, cache: int) -> Measured:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return Measured(
            total=total,
            peak=torch.cuda.max_memory_reserved(),
            cache=cache,
            others=total - free - torch.cuda.memory_reserved(),
        )


@dataclass(frozen=True, slots=True)
class LargestStep:
    """What no step takes more than."""

    limits: Limits

    @property
    def pages(self) -> int:
        """Enough for any row of `plans`; all rows share them, since nobody reads what is computed."""
        limits = self.limits
        return -(-min(limits.context, limits.tokens + 1) // limits.page_size)

    def plans(self, slot: int) -> Iterator[StepPlan]:
        """Of `rehearsal.plans.largest`, with pages, and with options of sampling from the first on."""
        for step, rows in enumerate(largest(self.limits, slot)):
            installs = () if step else tuple(_install(row, length) for row, (length, *_) in enumerate(rows))
            yield replace(self._paged(rows), step=step, installs=installs)

    def _paged(self, rows: list[Row]) -> StepPlan:
        counts = [-(-(row.start + row.length) // self.limits.page_size) for row in rows]
        columns = np.concatenate([np.arange(count) for count in counts]).astype(np.int32)
        of_rows = np.repeat(np.arange(len(rows)), counts).astype(np.int32)
        return replace(step_of(rows), page_rows=of_rows, page_columns=columns, page_ids=columns)


def _install(row: int, length: int) -> RowInstall:
    ids = np.zeros(length, dtype=np.int32)
    return RowInstall(row=row, sampling=_SAMPLING, prompt_ids=ids, emitted_ids=no_ids())


def measured_pages(
    make_runner: Callable[[int], MeasuredRunner],
    *,
    pool: AdapterPool,
    max_rank: int,
    largest: LargestStep,
    memory: DeviceMemory,
    utilization: float,
    page_bytes: int,
    most: int,
) -> int:
    """Pages for a cache beside the largest steps. `make_runner` makes the runner to measure, of so many
    pages; it is gone afterwards. Weights and pool must have been allocated.

    Raises ValueError, saying what to do, where there is no room.
    """
    memory.begin()
    try:
        runner = make_runner(largest.pages)
        _run(runner, largest, pool, max_rank)
        measured = memory.measure((largest.pages + 1) * page_bytes)
        to_come = min(runner.bytes_to_come, int(measured.total * _SHARE_FOR_GRAPHS))
        measured = replace(measured, to_come=to_come)
        del runner
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the GPU's memory does not hold the largest step: lower max_step_tokens, max_running or "
            "adapter_pool_bytes, or take a larger GPU"
        ) from error
    memory.begin()
    pages = affordable_pages(measured, utilization=utilization, page_bytes=page_bytes, most=most)
    log.info(
        "KV cache: %d pages, %d MiB of %d MiB; everything else takes %d MiB",
        pages,
        pages * page_bytes >> 20,
        measured.total >> 20,
        measured.taken >> 20,
    )
    return pages


def _run(runner: Runner, largest: LargestStep, pool: AdapterPool, max_rank: int) -> None:
    """The steps without adapters, and with one of the highest rank in every row. Before, one of a usual rank,
    so that its kernels are there when requests come.
    """
    ranks = ranks_of_largest(max_rank) if len(pool.table.rows_SL6) else []
    for rank in (0, *ranks):
        slot = 0 if rank else BASE_SLOT
        if rank:
            pool.table.set_row(slot, _everywhere(pool, rank))
        for plan in largest.plans(slot):
            runner.collect(runner.launch(plan))
    if ranks:
        pool.table.clear_row(0)
        pool.clear_slot(0)


def _everywhere(pool: AdapterPool, max_rank: int) -> list[SliceEntry]:
    """Adapts all slices that the pool has room for; all of them by the same zeros."""
    room = pool.units * UNIT_BYTES // pool.table.pool.element_size()
    entries = []
    for index, shape in enumerate(pool.table.shapes):
        rank = min(max_rank, room // max(shape.in_features, shape.out_features)) // 8 * 8
        if rank:
            entries.append(SliceEntry(slice=index, rank=rank, scaling=1.0))
    return entries
