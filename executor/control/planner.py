"""Makes the plan of one step: every running sequence's next token, then prompts up to the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from executor.control.accounts import Accounts
from executor.control.admission import Admission
from executor.control.config import SchedulerConfig
from executor.control.lifecycle import Trigger
from executor.control.page_cache import PageCache
from executor.control.plan import LAST_SAMPLED, RowInstall, StepPlan
from executor.control.request import Int32Array
from executor.control.running import Running
from executor.control.sequence import Sequence
from executor.control.table import RowTable

_Array = TypeVar("_Array", bound=np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """A prompt whose last chunk, up to `tokens`, is in the step."""

    sequence: Sequence
    row: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """What the scheduler remembers of a step in flight. rows int32[R], sampled int32[S]: as in its plan."""

    step: int
    rows: Int32Array
    sampled: Int32Array
    prefilled: list[Prefilled]
    retired: bool = False


@dataclass(slots=True)
class _Chunks:
    """The prompts' part of a plan under construction."""

    installs: list[RowInstall] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ids: list[Int32Array] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    prefilled: list[Prefilled] = field(default_factory=list)


class Planner:
    def __init__(
        self,
        config: SchedulerConfig,
        *,
        table: RowTable,
        cache: PageCache,
        accounts: Accounts,
        running: Running,
        admission: Admission,
    ) -> None:
        self._config = config
        self._table = table
        self._cache = cache
        self._accounts = accounts
        self._running = running
        self._admission = admission
        # Of rows that decode; plans show their beginnings.
        self._decode_ids = _constant(np.full(config.max_running, LAST_SAMPLED, np.int32))
        self._decode_samples = _constant(np.ones(config.max_running, np.bool_))
        self._decode_splits = _constant(np.arange(config.max_running + 1, dtype=np.int32))

    def plan(self, step: int) -> tuple[StepPlan, StepRecord] | None:
        """Plans a step and counts it as planned; None, preemptions apart, if no row can go on."""
        table = self._table
        rows = self._give_pages(table.rows_to_decode())
        chunks = self._prefill(step, self._config.max_step_tokens - len(rows))
        if not len(rows) and not chunks.rows:
            return None
        self._running.planned = step
        starts = table.planned[rows]
        table.planned[rows] = starts + 1
        table.last_step[rows] = step
        self._accounts.charge_rows(table.account[rows])
        return self._assemble(step, rows, starts, chunks)

    def _give_pages(self, rows: Int32Array) -> Int32Array:
        """Gives each row that is at the end of its last page another; returns the rows that can go on."""
        table, running = self._table, self._running
        needy = rows[table.planned[rows] == table.pages[rows] * table.page_size]
        if not len(needy):
            return rows
        if len(needy) > self._cache.available:
            rows, needy = self._make_room(rows, needy)
        running.grow(needy)
        return rows

    def _make_room(self, rows: Int32Array, needy: Int32Array) -> tuple[Int32Array, Int32Array]:
        """Preempts the youngest for `needy`, those of `rows` that want a page each; returns those of both
        that can go on.
        """
        table, running = self._table, self._running
        while len(needy) > running.pages_soon:
            victim = running.youngest()
            if victim is None:
                break
            running.preempt(victim)
            rows, needy = rows[rows != victim], needy[needy != victim]
        if len(needy) > self._cache.available:
            # What was freed above still belongs to steps in flight: the oldest go first, others sit out.
            needy = needy[table.admission[needy].argsort()]
            rows = rows[~np.isin(rows, needy[self._cache.available :])]
            needy = needy[: self._cache.available]
        return rows, needy

    def _prefill(self, step: int, budget: int) -> _Chunks:
        """Fills the budget with prompts: those begun earlier, oldest first, then new ones."""
        table, chunks = self._table, _Chunks()
        for row in table.rows_to_prefill():
            if budget <= 0:
                return chunks
            budget -= self._chunk(step, row, budget, chunks)
        admitting = self._admission.begin()
        while admitting and budget > 0:
            sequence = self._admission.next()
            if sequence is None:
                break
            chunks.installs.append(_install(sequence))
            budget -= self._chunk(step, sequence.row, budget, chunks)
        return chunks

    def _chunk(self, step: int, row: int, budget: int, chunks: _Chunks) -> int:
        """Plans the next tokens of a row's prompt; returns how many."""
        table = self._table
        start, target = int(table.planned[row]), int(table.length[row])
        end = min(target, start + min(budget, self._config.chunk or budget))
        chunks.rows.append(row)
        chunks.starts.append(start)
        chunks.ids.append(table.history[row, start:end].copy())
        chunks.samples.append(end == target)
        table.planned[row] = end
        table.last_step[row] = step
        self._accounts.served[table.account[row]] += end - start
        if end == target:
            sequence = table.sequence(row)
            sequence.move(Trigger.PREFILLED)
            table.decoding[row] = True
            chunks.prefilled.append(Prefilled(sequence=sequence, row=row, tokens=target))
        return end - start

    def _assemble(
        self, step: int, decoding: Int32Array, starts: Int32Array, chunks: _Chunks
    ) -> tuple[StepPlan, StepRecord]:
        count = len(decoding)
        rows, sampled = decoding, decoding
        input_ids, samples = self._decode_ids[:count], self._decode_samples[:count]
        splits = self._decode_splits[: count + 1]
        if chunks.rows:
            rows = np.concatenate([decoding, np.array(chunks.rows, np.int32)])
            starts = np.concatenate([starts, np.array(chunks.starts, np.int32)])
            input_ids = np.concatenate([input_ids, *chunks.ids])
            samples = np.concatenate([samples, np.array(chunks.samples)])
            ends = count + np.cumsum([len(ids) for ids in chunks.ids], dtype=np.int32)
            splits = np.concatenate([splits, ends])
            sampled = rows[samples]
        page_rows, page_columns, page_ids = self._running.take_page_updates()
        saves, restores = self._cache.take_copies()
        plan = StepPlan(
            step=step,
            installs=tuple(chunks.installs),
            rows=rows,
            query_splits=splits,
            input_ids=input_ids,
            start_positions=starts,
            slots=self._table.slot[rows],
            samples=samples,
            page_rows=page_rows,
            page_columns=page_columns,
            page_ids=page_ids,
            saves=saves,
            restores=restores,
        )
        return plan, StepRecord(step=step, rows=rows, sampled=sampled, prefilled=chunks.prefilled)


def _constant(array: _Array) -> _Array:
    array.flags.writeable = False
    return array


def _install(sequence: Sequence) -> RowInstall:
    request = sequence.request
    sampling = request.sampling
    if sampling.prompt_logprobs is not None and not sequence.wants_prompt_logprobs:
        sampling = replace(sampling, prompt_logprobs=None)
    return RowInstall(
        row=sequence.row, sampling=sampling, prompt_ids=request.prompt_ids, emitted_ids=sequence.emitted
    )
