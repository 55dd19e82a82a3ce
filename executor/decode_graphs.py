"""Decoding steps recorded once and replayed, so that the host launches one graph instead of hundreds of
kernels.

A graph serves one size of batch; a smaller batch is padded with rows that store nothing and attend to
nothing. What changes from step to step comes in one copy into memory that the graphs read:

    rows (2, 0), slots (-1, 4), size 4   ids     17 LAST_SAMPLED 0 0
                                         places  rows 2 0 0 0 | tokens 0 1 2 3 | positions 9 30 0 0 | 1 1 0 0
                                         kv      41 82 -1 -1
                                         tiles   slots 4 | tokens 1 | counts 1

Batches without adapters have graphs of their own. Page table, slot table, pool and cache are where they
always are, so that a replay sees what has been loaded and evicted since.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from executor.control.plan import LAST_SAMPLED
from executor.model.attention import Spans, token_places
from executor.model.attention_triton import TritonAttention
from executor.model.batch import Batch
from executor.model.decoder import Decoder
from executor.model.layout import embedding_index, head_slices, router_slices
from executor.model.page_table import PageTable
from kernels.fused import FusedSteps
from kernels.lora import NO_LORA, Arrivals, LoraBatch, SlotTable, can_be_beside
from kernels.lora.tiles import BLOCK, Tiles, cut
from kernels.moe_lora.gpu import slots_of
from kernels.transfer import pack

# Few, since there is a graph for each that comes; what is too many of them costs little.
_RANKS = (16, 64, 256)
_TILES = (1, 4, 8, 16, 32, 64)
_FEW_ROWS = 8
_PROJECTIONS = 4
"""Products of a layer that adapters are beside: q,k,v; o; gate,up; down."""


class Decoded(NamedTuple):
    """Logits `[N, V]`, their argmax int64 `[N]` and the rows int64 `[N]`; the next replay overwrites them."""

    logits: Tensor
    tokens: Tensor
    rows: Tensor


class LoraShape(NamedTuple):
    """What a graph with adapters is made for: that many tiles, ranks up to `rank`, `routers` of experts and
    `ends` (embedding and head) that adapters change or not, and whether adapters are computed `beside` the
    base's products.
    """

    tiles: int
    rank: int
    routers: bool
    ends: bool
    beside: bool


class Recorder(Protocol):
    """Makes something that does again what `run` did, and returns where its results are."""

    def __call__(self, run: Callable[[], Decoded]) -> Callable[[], Decoded]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """Inputs are int32 views of one buffer: ids `[N]`, places `[4, N]`, kv `[N]`, tiles `[3, tiles]`."""

    replay: Callable[[], Decoded]
    numbers: int


class DecodeGraphs:
    """Owns the graphs, their inputs and their logits."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        attention: TritonAttention,
        steps: FusedSteps,
        page_table: PageTable,
        page_size: int,
        adapters: SlotTable,
        last_sampled: Tensor,
        record: Recorder,
    ) -> None:
        """For as many rows as `last_sampled` has."""
        self._decoder = decoder
        self._attention = attention
        self._steps = steps
        self._page_table = page_table
        self._page_size = page_size
        self._adapters = adapters
        self._last_sampled = last_sampled
        self._record = record
        self._sizes = sizes(len(last_sampled))
        self._windows = tuple(set(decoder.config.windows))
        self._routers = router_slices(decoder.config)
        self._ends = embedding_index(decoder.config), head_slices(decoder.config)[0].slice
        self._arrivals = Arrivals(_PROJECTIONS * decoder.config.layers, last_sampled.device)
        device, most = last_sampled.device, self._sizes[-1]
        self._inputs = torch.zeros(9 * most, dtype=torch.int32, device=device)
        self._logits_NV = adapters.pool.new_empty(most, decoder.config.vocab_size)
        self._graphs: dict[tuple[int, LoraShape | None], _Graph] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Record all sizes without adapters, the largest first, so that the others find memory, and what a
        few adapters of usual rank want; other graphs are recorded when their batch first comes.
        """
        for size in reversed(self._sizes):
            self._graph(size, None)
        if not can_be_beside(1, rank=_RANKS[0], table=self._adapters) or not self._adapters.slots:
            return
        for size in (size for size in self._sizes if size <= _FEW_ROWS):
            for tiles in sorted({_next(_TILES, tiles, most=size) for tiles in (1, size)}):
                self._graph(size, LoraShape(tiles, _RANKS[0], routers=False, ends=False, beside=True))

    def decode(self, spans: Spans, slots: np.ndarray, input_ids: np.ndarray) -> Decoded | None:
        """One token of each row, rows sorted by slot; results are in their order. None where adapters bring
        whole weights, which the host looks up.
        """
        lora = LoraBatch.of_rows(slots, spans.lengths)
        if self._adapters.brings_weights(lora.slots):
            return None
        count = len(spans.rows)
        size = next(size for size in self._sizes if size >= count)
        tiles, shape = None, None
        if not lora.empty:
            tiles, shape = self._tiles(lora, size)
        graph = self._graph(size, shape)
        numbers = np.zeros(graph.numbers, dtype=np.int32)
        numbers[:count] = input_ids
        places = numbers[size : 5 * size].reshape(4, size)
        places[0, :count] = spans.rows
        places[1] = np.arange(size)
        places[2, :count] = spans.starts
        places[3, :count] = 1
        kv = numbers[5 * size : 6 * size]
        kv[:count] = token_places(spans.rows, spans.starts, self._page_table.on_host, self._page_size)
        kv[count:] = -1
        if tiles is not None:
            numbers[6 * size :].reshape(3, -1)[:, : tiles.shape[1]] = tiles
        self._send(numbers)
        return Decoded(*(tensor[:count] for tensor in graph.replay()))

    def _tiles(self, lora: LoraBatch, size: int) -> tuple[np.ndarray, LoraShape]:
        """A batch's tiles, and the shape of the graph that serves them."""
        table = self._adapters
        tiles, _ = cut(lora.slots, lora.splits, blocks=(BLOCK,))
        shape = LoraShape(
            tiles=_next(_TILES, tiles.shape[1], most=size),
            rank=_next(_RANKS, table.largest_rank(lora.slots)),
            routers=table.touches(lora.slots, self._routers),
            ends=table.changes(lora.slots, self._ends),
            beside=can_be_beside(size, rank=table.largest_rank(lora.slots), table=table)
            and not table.has_vectors(lora.slots),
        )
        return tiles, shape

    def _send(self, numbers: np.ndarray) -> None:
        sent = self._inputs[: len(numbers)]
        sent.copy_(pack((numbers,), pinned=sent.is_cuda).view(torch.int32)[: len(numbers)], non_blocking=True)

    def _graph(self, size: int, shape: LoraShape | None) -> _Graph:
        graph = self._graphs.get((size, shape))
        if graph is None:
            numbers = 6 * size + (3 * shape.tiles if shape else 0)
            idle = np.zeros(numbers, dtype=np.int32)
            idle[5 * size : 6 * size] = -1
            self._send(idle)
            replay = self._record(lambda: self._run(size, shape))
            self._graphs[size, shape] = graph = _Graph(replay=replay, numbers=numbers)
        return graph

    def _run(self, size: int, shape: LoraShape | None) -> Decoded:
        """What a graph is a recording of."""
        ids, places = self._inputs[:size], self._inputs[size : 5 * size].view(4, size)
        rows, lora = places[0].long(), NO_LORA
        if shape is not None:
            tiles = self._inputs[6 * size : 6 * size + 3 * shape.tiles].view(3, shape.tiles)
            tiles = Tiles(places=tiles, block=BLOCK, rank=shape.rank)
            if shape.beside:
                self._arrivals.begin()
            lora = LoraBatch(
                slots=(),
                splits=(0,),
                tiles=tiles,
                slots_T=slots_of(tiles, size) if self._routers else None,
                touches_routers=shape.routers,
                touches_ends=shape.ends,
                arrivals=self._arrivals if shape.beside else None,
            )
        batch = Batch(
            input_ids=torch.where(ids == LAST_SAMPLED, self._last_sampled.index_select(0, rows), ids),
            positions=places[2],
            kv_tokens=self._inputs[5 * size : 6 * size],
            attention={
                window: self._attention.static_plan(places, places[:, :0], self._page_table, window)
                for window in self._windows
            },
            lora=lora,
        )
        x_TD = self._decoder.forward(batch)
        logits_NV = self._decoder.logits(x_TD, lora, out_NV=self._logits_NV[:size])
        return Decoded(logits=logits_NV, tokens=self._steps.greedy(logits_NV), rows=rows)


def sizes(rows: int) -> tuple[int, ...]:
    """Sizes of batches that have a graph, up to `rows`: an eighth of a batch is padding at most, but for the
    smallest.
    """
    chosen, size = [], 1
    while size < rows:
        chosen.append(size)
        size += (
            1 if size < 2 else 2 if size < 4 else 4 if size < 16 else 8 if size < 64 else max(16, size // 8)
        )
    return (*chosen, size)


def _next(steps: tuple[int, ...], number: int, *, most: int | None = None) -> int:
    """The least of few steps that a number fits in; beyond the last, its multiples; `most` at most."""
    step = next((step for step in steps if step >= number), -(-number // steps[-1]) * steps[-1])
    return step if most is None else min(step, most)


class CudaRecorder:
    """Records CUDA graphs, which share the memory of what they compute on the way."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, run: Callable[[], Decoded]) -> Callable[[], Decoded]:
        """Runs it once as it is, which compiles its kernels."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
            # Adapters are copied by another thread meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                decoded = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)

        def replay() -> Decoded:
            graph.replay()
            return decoded

        return replay


def no_recorder(run: Callable[[], Decoded]) -> Callable[[], Decoded]:
    """Runs it again each time: graphs without a GPU."""
    return run
