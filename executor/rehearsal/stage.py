"""A runner on torch's device meta, where tensors have shapes and places but no content."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from executor.graphs.shapes import rank_of
from executor.model.config import ModelConfig
from executor.model.layout import embedding_index, head_slices, router_slices
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.rehearsal import plans
from executor.rehearsal.plans import Limits, Row
from executor.runner import RunnerConfig, TorchRunner
from kernels.lora import UNIT_BYTES, SliceEntry
from kernels.lora.rows import RANK_MULTIPLE
from kernels.moe_lora.fused import SHARED_RANK
from kernels.moe_lora.gpu_runs import block_of_ranks
from kernels.sampling import cut, gpu

_META = torch.device("meta")
_USUAL_RANKS = (8, 16, 32, 64)
"""Of most adapters that people publish, padded."""
_FEW_TOKENS = 64
"""Of steps that have no graph though they are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """What a runner is made for; `units` of the pool of adapters, whose ranks are `max_rank` at most."""

    model: ModelConfig
    dtype: torch.dtype
    limits: Limits
    units: int
    max_rank: int
    deterministic: bool


class Stage:
    """Runs steps that compute nothing; to be used while `kernels.launch` rehearses."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self.failures: list[str] = []
        """Of steps that could not be rehearsed, and why."""
        self._pool = AdapterPool(
            cast.model,
            units=cast.units,
            slots=cast.limits.slots,
            dtype=cast.dtype,
            device=_META,
            triton=True,
            deterministic=cast.deterministic,
        )
        self._parameters = Parameters.allocate(cast.model, dtype=cast.dtype, device=_META)
        self._by_graphs = self._runner(graphs=True)
        self._by_kernels = self._runner(graphs=False)
        ends = embedding_index(cast.model), head_slices(cast.model)[0].slice
        self._seldom = {*router_slices(cast.model), *ends}

    def usual(self) -> Iterator[None]:
        """What most traffic meets: steps of the base and of adapters of usual ranks. Yields after each."""
        limits = self._cast.limits
        self._sample()
        yield from self._play(self._by_graphs, plans.graphs(limits))
        yield from self._play(self._by_graphs, plans.large(limits))
        ranks = self._ranks()
        for rank in ranks:
            if not self._is_usual(rank):
                continue
            self._adapt(rank)
            yield from self._play_adapted(limits, rank)
        # Adapters of everything, by which the KV cache is sized.
        for rank in plans.ranks_of_largest(self._cast.max_rank) if ranks else ():
            self._adapt(rank, everywhere=True)
            for runner in (self._by_graphs, self._by_kernels):
                yield from self._play(runner, iter(plans.largest(limits, slot=0)))

    def seldom(self) -> Iterator[None]:
        """Everything else: other ranks, gains and shifts, embeddings, heads and routers, and steps that have
        no graph for other reasons than their size.
        """
        limits = self._cast.limits
        few, kernels = {"tokens": _FEW_TOKENS}, self._by_kernels
        base = plans.spread(limits), plans.prompts(limits), plans.large(limits, **few), plans.graphs(limits)
        for steps in base:
            yield from self._play(kernels, steps)
        for rank in self._ranks():
            if not self._is_usual(rank):
                self._adapt(rank)
                yield from self._play_adapted(limits, rank)
        for rank in self._ranks():
            self._adapt(rank)
            yield from self._play(kernels, plans.adapted_large(limits, **few))
            yield from self._play(kernels, plans.prompts(limits, slot=0))
            if rank in (*_USUAL_RANKS, self._cast.max_rank):
                yield from self._play(kernels, plans.adapted_graphs(limits))
            for vectors in (False, True):
                self._adapt(rank, everywhere=True, vectors=vectors)
                yield from self._play_adapted(limits, rank)
                yield from self._play(kernels, plans.adapted_large(limits, **few))
            if self._cast.model.experts is not None and block_of_ranks(rank_of(rank)) >= SHARED_RANK:
                self._adapt(rank, shares=True)
                yield from self._play(kernels, plans.prompts(limits, slot=0))
                yield from self._play(self._by_graphs, plans.adapted_graphs(limits))
                yield from self._play(self._by_graphs, plans.adapted_large(limits))

    def _is_usual(self, rank: int) -> bool:
        return rank in _USUAL_RANKS or rank == self._cast.max_rank < _USUAL_RANKS[-1]

    def _ranks(self) -> list[int]:
        """Of adapters, padded; none where there is no room for any."""
        if not self._cast.limits.slots:
            return []
        return [*range(RANK_MULTIPLE, self._cast.max_rank + 1, RANK_MULTIPLE)]

    def _play_adapted(self, limits: Limits, rank: int) -> Iterator[None]:
        if rank_of(rank) == rank or rank == self._cast.max_rank:
            yield from self._play(self._by_graphs, plans.adapted_graphs(limits))
        yield from self._play(self._by_graphs, plans.adapted_large(limits))

    def _play(self, runner: TorchRunner, steps: Iterator[Sequence[Row]]) -> Iterator[None]:
        for rows in steps:
            try:
                runner.rehearse(plans.step(rows))
            except Exception as error:  # what it launched until then has been noted
                self.failures.append(f"{len(rows)} rows, {rows[:2]}...: {type(error).__name__}: {error}")
            yield

    def _runner(self, *, graphs: bool) -> TorchRunner:
        limits = self._cast.limits
        config = RunnerConfig(
            max_rows=limits.rows,
            pages=1,
            page_size=limits.page_size,
            max_context=limits.context,
            graphs=graphs,
            deterministic=self._cast.deterministic,
            rehearses=True,
        )
        return TorchRunner(self._cast.model, self._parameters, pool=self._pool, config=config)

    def _adapt(
        self, rank: int, *, everywhere: bool = False, vectors: bool = False, shares: bool = False
    ) -> None:
        """Show an adapter of that rank in all slots: on what most adapters change, or `everywhere`."""
        room = self._pool.units * UNIT_BYTES // self._cast.dtype.itemsize
        entries = []
        for index, shape in enumerate(self._pool.table.shapes):
            if rank * max(shape.in_features, shape.out_features) > room:
                continue
            if everywhere or index not in self._seldom:
                unit = 0 if vectors else None
                entries.append(
                    SliceEntry(slice=index, rank=rank, scaling=1.0, gain_unit=unit, shift_unit=unit)
                )
        row = self._pool.table.row_of(entries)._replace(shares=shares)
        for slot in range(self._cast.limits.slots):
            self._pool.table.show(slot, row)

    def _sample(self) -> None:
        """What options of sampling launch, which are one kernel for any number of rows."""
        logits_NV = torch.empty(2, self._cast.model.vocab_size, device=_META)
        numbers_N = torch.empty(2, dtype=torch.int64, device=_META)
        gpu.draw(logits_NV, numbers_N, numbers_N)
        gpu.logsumexp(logits_NV)
        cut.keep_top_k(logits_NV, numbers_N)
        cut.keep_top_p(logits_NV, numbers_N.float())
