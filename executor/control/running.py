"""Sequences that hold a row: how they come, share their pages, and leave.

Pages of one row, and who owns them (page_size 4, prompt of 10 tokens, 4 of them found in the prefix tree):

    admission          [tree][own][own]         locks the tree's path up to the matched page; own pages whose
                                                tokens lie in host memory are copied, not computed
    prompt computed    [tree][tree][own]        full prompt pages go to the tree, the lock moves to the last
    while decoding     [tree][tree][own][own]
    release            [tree][tree][tree]       what is not full is freed; unlocked, the rest can be evicted

Where the tree already has a page for the same tokens, because another request was faster, the row changes
to that one and its own is freed after the steps in flight.
"""

from __future__ import annotations

import numpy as np

from executor.control.accounts import Accounts
from executor.control.config import SchedulerConfig
from executor.control.lifecycle import State, Trigger
from executor.control.page_cache import PageCache
from executor.control.plan import BASE_SLOT
from executor.control.prefix_tree import NO_PAGE
from executor.control.request import BASE_DIGEST, Int32Array, no_ids
from executor.control.request_queue import RequestQueue
from executor.control.sequence import Sequence
from executor.control.slots import AdapterSlots
from executor.control.table import RowTable


class Running:
    """Keeps row, pages, pin and account of a running sequence together: it gets all or none."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        table: RowTable,
        cache: PageCache,
        slots: AdapterSlots,
        accounts: Accounts,
        queue: RequestQueue,
    ) -> None:
        self._config = config
        self._table = table
        self._cache = cache
        self._slots = slots
        self._accounts = accounts
        self._queue = queue
        # Cells of page tables that have changed: few, so that lists are quicker than arrays.
        self._changed_rows: list[int] = []
        self._changed_columns: list[int] = []
        self.planned = -1
        self.retired = -1
        self.preemptions = 0

    @property
    def room(self) -> int:
        """Pages that an admission may use: all but one for each running row, which will soon need it."""
        return self._cache.available - min(self._table.used, self._cache.pages // 8)

    @property
    def pages_soon(self) -> int:
        """Pages available at the latest when the steps in flight have retired; a lower bound."""
        table = self._table
        leaving = int((table.pages - table.shared)[table.leaving].sum())
        return self._cache.available_soon + leaving

    def enter(self, sequence: Sequence) -> bool:
        """Admits a waiting sequence with all pages of its known tokens; False, with nothing changed, if
        there is no room.

        There is a free row, and the adapter is resident.
        """
        table, cache, request = self._table, self._cache, sequence.request
        ids = sequence.ids
        pages = -(-len(ids) // table.page_size)
        limit = 0 if sequence.wants_prompt_logprobs else (len(ids) - 1) // table.page_size
        matched = cache.match(sequence.namespace, ids, limit)
        node = matched[-1] if matched else NO_PAGE
        cache.lock(node)
        if pages - len(matched) > self.room:
            cache.unlock(node)
            return False

        slot = BASE_SLOT if request.digest == BASE_DIGEST else self._slots.pin(request.digest)
        row = table.seat(sequence, slot=slot, limit=self.limit(sequence), stop_ids=self.stop_ids(sequence))
        after = ids[len(matched) * table.page_size :]
        hosted = cache.match_host(sequence.namespace, node, after, limit - len(matched))
        own = cache.take(pages - len(matched))
        cache.restore(hosted, own[: len(hosted)])
        table.page_table[row, : len(matched)] = matched
        table.page_table[row, len(matched) : pages] = own
        table.pages[row] = pages
        table.shared[row] = len(matched)
        table.node[row] = node
        table.planned[row] = (len(matched) + len(hosted)) * table.page_size
        self._announce(row, 0, pages)
        self._accounts.running[sequence.account] += 1
        self._accounts.admissions += 1
        sequence.move(Trigger.ADMIT)
        return True

    def limit(self, sequence: Sequence) -> int:
        """The length at which a sequence ends, whatever it says."""
        request = sequence.request
        return min(len(request.prompt_ids) + request.sampling.max_tokens, self._config.longest)

    def stop_ids(self, sequence: Sequence) -> tuple[int, ...]:
        sampling = sequence.request.sampling
        return sampling.stop_token_ids + (() if sampling.ignore_eos else self._config.eos_token_ids)

    def grow(self, rows: Int32Array) -> None:
        """Gives each of the rows, int32[n], one more page; there are enough."""
        table = self._table
        columns = table.pages[rows]
        table.page_table[rows, columns] = self._cache.take(len(rows))
        table.pages[rows] = columns + 1
        self._changed_rows += rows.tolist()
        self._changed_columns += columns.tolist()

    def share_prompt(self, row: int, tokens: int) -> None:
        """The first `tokens` tokens are in KV for certain: others may use their full pages."""
        first = int(self._table.shared[row])
        duplicates = self._share(row, tokens // self._table.page_size)
        if len(duplicates):
            self._cache.give_after(self.planned, duplicates)
            self._announce(row, first, int(self._table.shared[row]))

    def youngest(self) -> int | None:
        """The row admitted last of those that stay; None for the oldest, which always goes on."""
        table = self._table
        staying = np.flatnonzero(table.live & ~table.leaving)
        if len(staying) < 2:
            return None
        return int(staying[table.admission[staying].argmax()])

    def preempt(self, row: int) -> None:
        """Sends a sequence back to the queue after the steps in flight, whose token still counts."""
        self.preemptions += 1
        self._leave(row, Trigger.PREEMPT)

    def end(self, sequence: Sequence) -> None:
        """Ends a sequence that holds a row: its results count no longer."""
        self._table.live[sequence.row] = False
        self._leave(sequence.row, Trigger.END)

    def retire(self, step: int) -> None:
        """Steps up to `step` are over: rows and pages that waited for them are freed."""
        self.retired = step
        self._cache.retire(step)
        table = self._table
        for row in table.leaving.nonzero()[0].tolist():
            if table.last_step[row] <= step:
                self._release(row)

    def take_page_updates(self) -> tuple[Int32Array, Int32Array, Int32Array]:
        """What has changed in page tables: rows, columns, page ids, int32[K] each."""
        if not self._changed_rows:
            return no_ids(), no_ids(), no_ids()
        rows = np.array(self._changed_rows, np.int32)
        columns = np.array(self._changed_columns, np.int32)
        self._changed_rows, self._changed_columns = [], []
        return rows, columns, self._table.page_table[rows, columns]

    def announce_all(self) -> None:
        """Sends every page table again, since a failed launch may have lost changes."""
        for row in self._table.taken().tolist():
            self._announce(row, 0, int(self._table.pages[row]))

    def _leave(self, row: int, trigger: Trigger) -> None:
        table = self._table
        table.sequence(row).move(trigger)
        table.leaving[row] = True
        table.decoding[row] = False
        if table.last_step[row] <= self.retired:
            self._release(row)

    def _release(self, row: int) -> None:
        """Gives everything back. No step in flight touches the row."""
        table, sequence = self._table, self._table.sequence(row)
        if not sequence.tainted:
            known = min(int(table.planned[row]), int(table.length[row]))
            self._cache.give(self._share(row, known // table.page_size))
        self._cache.unlock(int(table.node[row]))
        self._cache.give(table.private_pages(row))
        if sequence.request.digest != BASE_DIGEST:
            self._slots.unpin(sequence.request.digest)
        sequence.emitted = table.emitted(row)
        table.vacate(row)
        sequence.move(Trigger.RELEASE)
        self._accounts.running[sequence.account] -= 1
        if sequence.state == State.WAITING:
            self._queue.push(sequence)
        else:
            self._accounts.close_if_idle(sequence.account)

    def _share(self, row: int, full_pages: int) -> Int32Array:
        """Moves the row's first pages to the tree; returns those that the tree had already, int32[n]."""
        table = self._table
        first, old = int(table.shared[row]), int(table.node[row])
        if full_pages <= first:
            return no_ids()
        own = table.page_table[row, first:full_pages].copy()
        ids = table.history[row, first * table.page_size : full_pages * table.page_size]
        kept = self._cache.insert(table.sequence(row).namespace, old, ids, own.tolist())
        self._cache.lock(kept[-1])
        self._cache.unlock(old)
        table.page_table[row, first:full_pages] = kept
        table.shared[row] = full_pages
        table.node[row] = kept[-1]
        return own[own != kept]

    def _announce(self, row: int, first: int, end: int) -> None:
        self._changed_rows += [row] * (end - first)
        self._changed_columns += range(first, end)

    def check_integrity(self) -> None:
        table = self._table
        counts = np.zeros_like(self._accounts.running)
        for row in table.taken().tolist():
            state, account = table.sequence(row).state, int(table.account[row])
            counts[account] += 1
            assert table.leaving[row] == (state in (State.PREEMPTING, State.ENDING))
            assert table.live[row] == (state != State.ENDING)
            assert table.decoding[row] == (state == State.DECODE)
            assert not table.leaving[row] or table.last_step[row] > self.retired, f"row {row} stays too long"
        assert np.array_equal(counts, self._accounts.running), "accounts miscount their rows"
