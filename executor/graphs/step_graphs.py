"""Steps by graphs. A smaller batch is padded with tokens that store nothing and are nobody's, and with tiles
that do nothing; `shapes` says to what, `inputs` what the graphs read that changes from step to step.

Page table, slot table, pool and cache are where they always are, so that a replay sees what has been loaded
and evicted since.

To record a step takes longer than to run it kernel by kernel, and streams wait for it. So a shape is recorded
when it comes again, and only some steps after the last one was; where there is a graph of a slightly larger
one, that does until then, and until the shape has come often. While there are no steps, what came once is
recorded, and what usual adapters want.
"""

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from executor.graphs.inputs import Inputs, Staging, most, parts
from executor.graphs.recorder import Recorder
from executor.graphs.shapes import (
    LoraShape,
    StepShape,
    block_of,
    covers,
    decoding,
    largest,
    mixed,
    rank_of,
    sizes,
    tiles_of,
)
from executor.model.attention import Spans, token_places
from executor.model.attention_triton import TritonAttention
from executor.model.batch import Batch
from executor.model.decoder import Decoder
from executor.model.layout import embedding_index, head_slices, router_slices
from executor.model.page_table import PageTable
from kernels.begin import begin
from kernels.fused import FusedSteps
from kernels.lora import NO_LORA, Arrivals, LoraBatch, SlotTable, can_be_beside
from kernels.lora.table import Traits
from kernels.lora.tiles import BLOCK, Tiles, cut_tokens
from kernels.moe_lora.gpu import slots_of

log = logging.getLogger(__name__)

MOST_GRAPHS = 128
"""Each takes some 10 MB of the GPU's memory, beside what they share."""
_USUAL_RANKS = (16, 64)
_STEPS_APART = 8
"""From one recording to the next while there is traffic."""
_OFTEN = 8
"""So many times a shape comes before it gets a graph of its own, where another's does."""
_PROJECTIONS = 4
"""Products of a layer that adapters are beside: q,k,v; o; gate,up; down."""


class Computed(NamedTuple):
    """Logits `[N, V]`, their argmax int64 `[N]` and the rows int64 `[N]`: of the S rows that are sampled, and
    then of padding. The next step overwrites them.
    """

    logits: Tensor
    tokens: Tensor
    rows: Tensor


class StepGraphs:
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
        max_rank: int = 0,
    ) -> None:
        """For as many rows as `last_sampled` has but for the last, nobody's; `max_rank` of adapters,
        where there are any.
        """
        rows = len(last_sampled) - 1
        self._decoder = decoder
        self._attention = attention
        self._steps = steps
        self._page_table = page_table
        self._page_size = page_size
        self._adapters = adapters
        self._last_sampled = last_sampled
        self._record = record
        self._sizes = sizes(rows)
        self._largest = largest(self._sizes[-1], attention.chunk_queries)
        self._windows = tuple(set(decoder.config.windows))
        self._routers = router_slices(decoder.config)
        self._ends = embedding_index(decoder.config), head_slices(decoder.config)[0].slice
        self._arrivals = Arrivals(_PROJECTIONS * decoder.config.layers, last_sampled.device)
        numbers = max(most(decoding(self._sizes[-1])), most(self._largest))
        self._staging = Staging(numbers, last_sampled.device, nobody=rows)
        self._logits_NV = adapters.pool.new_empty(self._sizes[-1], decoder.config.vocab_size)
        self._graphs: dict[StepShape, Callable[[], Computed]] = {}  # the one used last comes last
        self._met: Counter[StepShape] = Counter()  # without a graph, so many times
        self._ran: set[StepShape] = set()  # kernel by kernel, so that these are compiled
        self._refused: set[StepShape] = set()
        self._since = _STEPS_APART  # steps since a recording
        self._usual = self._usual_shapes(max_rank)

    @torch.inference_mode()
    def capture(self) -> None:
        """Record the largest step with chunks, so that all others find memory, and those that decode without
        adapters.
        """
        for shape in (self._largest, *map(decoding, reversed(self._sizes))):
            self._graphs[shape] = self._prepare(shape)

    @torch.inference_mode()
    def rest(self) -> bool:
        """Record a shape that came or that usual adapters want, while there are no steps. Returns whether one
        was left.
        """
        wanted = (shape for shape in (*self._met, *self._usual) if self._can_be_recorded(shape))
        shape = next(wanted, None)
        if shape is None or not self.room:
            return False
        try:
            self._graphs[shape] = self._prepare(shape)
        except Exception as error:  # of Triton, too, which would end the engine
            self._refuse(shape, error)
        return True

    @property
    def room(self) -> int:
        """For so many more graphs."""
        return MOST_GRAPHS - len(self._graphs)

    def _prepare(self, shape: StepShape) -> Callable[[], Computed]:
        """A graph of a step that has not come."""
        self._staging.begin(shape)
        self._staging.send()
        self._run(shape)
        return self._record(partial(self._run, shape))

    def _usual_shapes(self, max_rank: int) -> tuple[StepShape, ...]:
        """Rows that decode with as many adapters, or with one, which change neither embedding nor head."""
        table = self._adapters
        return tuple(
            decoding(size, LoraShape(tiles, BLOCK, rank, routers=False, ends=False, beside=beside))
            for rank in sorted({rank_of(min(rank, max_rank)) for rank in _USUAL_RANKS})
            for size in self._sizes
            for tiles in sorted({tiles_of(1, size), tiles_of(min(size, table.slots), size)})
            for beside in (can_be_beside(size, rank=rank, table=table),)
            if table.slots and max_rank
        )

    def compute(
        self, spans: Spans, slots: np.ndarray, input_ids: np.ndarray, sampled: np.ndarray
    ) -> Computed | None:
        """A step of rows sorted by slot, of which those in `sampled` are; results are in their order, and
        `last_sampled` has the tokens of the largest logits. None where no shape fits, and where adapters
        bring whole weights, which the host looks up.
        """
        traits = self._adapters.traits(slots)
        if traits.brings_weights:
            return None
        decodes, chunks = self._attention.cut(spans)
        all_decode = len(sampled) == len(input_ids)
        if all_decode:
            shape = decoding(self._sizes[bisect_left(self._sizes, len(sampled))])
        else:
            shape = mixed(
                len(input_ids),
                len(spans.rows),
                decodes=decodes.shape[1] > 0,
                most_rows=self._sizes[-1],
                queries=self._attention.chunk_queries,
            )
        if shape is None or chunks.shape[1] > shape.chunks:
            return None
        slots_T = slots if all_decode else np.repeat(slots, spans.lengths)
        shape, tiles = self._adapted(shape, slots_T, traits)
        shape = self._at_hand(shape)
        inputs = self._staging.begin(shape)
        self._write_tokens(inputs.tokens, spans, input_ids, all_decode)
        changes = self._page_table.take(inputs.changes.shape[1])
        inputs.changes[:, : changes.shape[1]] = changes
        if shape.chunks:
            inputs.sampled[0, : len(sampled)] = spans.splits[1:][sampled] - 1
            inputs.sampled[1, : len(sampled)] = spans.rows[sampled]
        inputs.decodes[:, : decodes.shape[1]] = decodes
        inputs.chunks[:, : chunks.shape[1]] = chunks
        inputs.tiles[:, : tiles.shape[1]] = tiles
        if inputs.ends.shape[1]:
            ends = cut_tokens(slots[sampled], BLOCK)
            inputs.ends[:, : ends.shape[1]] = ends
        self._staging.send()
        return self._replay(shape)

    def _write_tokens(
        self, tokens: np.ndarray, spans: Spans, input_ids: np.ndarray, all_decode: bool
    ) -> None:
        """Id, row, position and place in the cache of each."""
        rows, positions = spans.rows, spans.starts
        if not all_decode:
            rows = np.repeat(rows, spans.lengths)
            positions = np.repeat(positions - spans.splits[:-1], spans.lengths) + np.arange(len(rows))
        count = len(input_ids)
        tokens[0, :count], tokens[1, :count], tokens[2, :count] = input_ids, rows, positions
        tokens[3, :count] = token_places(rows, positions, self._page_table.on_host, self._page_size)

    def _adapted(self, shape: StepShape, slots_T: np.ndarray, traits: Traits) -> tuple[StepShape, np.ndarray]:
        """With a batch's adapters, where there are any, and the tiles of its tokens."""
        table = self._adapters
        rank = rank_of(traits.rank)
        block = BLOCK if table.fixed_order else block_of(shape, rank)
        tiles = cut_tokens(slots_T, block)
        if not tiles.shape[1]:
            return shape, tiles
        slots = tiles[0].tolist()
        made = LoraShape(
            tiles=tiles_of(len(slots), shape.tokens),
            block=block,
            rank=rank,
            routers=table.touches(slots, self._routers),
            ends=table.changes(slots, self._ends),
            beside=can_be_beside(shape.tokens, rank=traits.rank, table=table) and not traits.has_vectors,
            vectors=traits.has_vectors,
            shares=traits.shares,
        )
        return shape._replace(lora=made), tiles

    def _at_hand(self, shape: StepShape) -> StepShape:
        """In what shape a step is computed: a larger one, while that has a graph and its own is rare."""
        self._since += 1
        if shape in self._graphs:
            return shape
        self._met[shape] += 1
        if self._met[shape] > _OFTEN and self._is_time_to_record(shape):
            return shape
        return min((other for other in self._graphs if covers(other, shape)), default=shape)

    def _replay(self, shape: StepShape) -> Computed:
        replay = self._graphs.pop(shape, None)
        if replay is None:
            if shape not in self._ran or not self._is_time_to_record(shape):
                self._ran.add(shape)
                return self._run(shape)
            self._since = 0
            try:
                replay = self._record(partial(self._run, shape))
            except RuntimeError as error:
                self._refuse(shape, error)
                return self._run(shape)
            log.info("recorded %s", shape)
            if not self.room:
                del self._graphs[next(iter(self._graphs))]
        self._graphs[shape] = replay
        return replay()

    def _is_time_to_record(self, shape: StepShape) -> bool:
        return self._since >= _STEPS_APART and self._can_be_recorded(shape)

    def _can_be_recorded(self, shape: StepShape) -> bool:
        return shape not in self._graphs and shape not in self._refused

    def _refuse(self, shape: StepShape, error: Exception) -> None:
        """For want of memory, most likely."""
        log.warning("%s could not be recorded and goes without a graph from now on: %s", shape, error)
        self._refused.add(shape)

    def _run(self, shape: StepShape) -> Computed:
        """What a graph is a recording of."""
        inputs = parts(self._staging.on_device, shape)
        sent_ids, rows, positions, kv = inputs.tokens
        input_ids, rows = begin(
            sent_ids,
            rows,
            self._last_sampled,
            changes_2C=inputs.changes,
            page_table=self._page_table.on_device,
        )
        lora, of_head = self._lora(shape, inputs)
        batch = Batch(
            input_ids=input_ids,
            positions=positions,
            kv_tokens=kv,
            attention={
                window: self._attention.static_plan(inputs.decodes, inputs.chunks, self._page_table, window)
                for window in self._windows
            },
            lora=lora,
        )
        x_TD, delta_TD = self._decoder.layers(batch)
        if shape.chunks:
            tokens, rows = inputs.sampled.long()
            x_TD, delta_TD = x_TD.index_select(0, tokens), delta_TD.index_select(-2, tokens)
        out_NV = self._logits_NV[: shape.rows]
        logits_NV = self._decoder.logits(x_TD, of_head, delta_ND=delta_TD, out_NV=out_NV)
        tokens_N = self._steps.greedy(logits_NV)
        self._last_sampled.index_copy_(0, rows, tokens_N)
        return Computed(logits=logits_NV, tokens=tokens_N, rows=rows)

    def _lora(self, shape: StepShape, inputs: Inputs[Tensor]) -> tuple[LoraBatch, LoraBatch]:
        """Adapters of all tokens, and of the sampled ones."""
        made = shape.lora
        if made is None:
            return NO_LORA, NO_LORA
        if made.beside:
            self._arrivals.begin()
        tiles = Tiles(places=inputs.tiles, block=made.block, rank=made.rank)
        lora = LoraBatch(
            slots=(),
            splits=(0,),
            tiles=tiles,
            slots_T=slots_of(tiles, shape.tokens) if self._routers else None,
            touches_routers=made.routers,
            touches_ends=made.ends,
            has_vectors=made.vectors,
            shares=made.shares,
            arrivals=self._arrivals if made.beside else None,
        )
        if not shape.chunks or not made.ends:
            return lora, lora
        of_head = Tiles(places=inputs.ends, block=BLOCK, rank=made.rank)
        return lora, LoraBatch(slots=(), splits=(0,), tiles=of_head)
