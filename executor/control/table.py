"""The running sequences in columns, so that a decode step is planned and advanced by array operations.

R = max_running rows. A row's numbers, with prompt "a b c", two tokens emitted, a third being sampled
(page_size 4):

    history  a b c d e        length 5: tokens known
    KV       a b c d e        planned 5: tokens in KV once the steps in flight have retired
    pages    [a b c d][e . . .]         pages 2
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from executor.control.plan import BASE_SLOT
from executor.control.prefix_tree import NO_PAGE
from executor.control.request import FinishReason, Int32Array
from executor.control.sequence import Sequence

_NO_ID = -1
_STOP = np.uint8(FinishReason.STOP)
_LENGTH = np.uint8(FinishReason.LENGTH)


class RowTable:
    """Columns by row. Written by `Running` (who comes and goes), `Planner` (planned, last_step) and
    `Advancer` (tokens).

    live bool: still takes tokens. leaving bool: in no new plan. decoding bool: its next step computes one
    token. length, planned, prompt_length int32: token counts, see above. limit int32: the length at which
    it ends. last_step int64: the last step that it is planned in. admission int64: order of admission.
    account, slot int32. client, index int64: the request's key. wants_logprobs bool. stop_ids int32[R, W]:
    what ends it, padded with -1. page_table int32[R, C], pages int32: its pages; the first `shared` int32
    of them belong to the prefix tree, where it holds a lock on the last one, `node` int32. history int32[R,
    context]: its tokens.
    """

    def __init__(self, *, rows: int, longest: int, page_size: int) -> None:
        columns = -(-longest // page_size)
        self.rows = rows
        self.page_size = page_size
        self.sequences: list[Sequence | None] = [None] * rows
        self.live = np.zeros(rows, np.bool_)
        self.leaving = np.zeros(rows, np.bool_)
        self.decoding = np.zeros(rows, np.bool_)
        self.length = np.zeros(rows, np.int32)
        self.planned = np.zeros(rows, np.int32)
        self.prompt_length = np.zeros(rows, np.int32)
        self.limit = np.zeros(rows, np.int32)
        self.last_step = np.zeros(rows, np.int64)
        self.admission = np.zeros(rows, np.int64)
        self.account = np.zeros(rows, np.int32)
        self.slot = np.full(rows, BASE_SLOT, np.int32)
        self.client = np.zeros(rows, np.int64)
        self.index = np.zeros(rows, np.int64)
        self.wants_logprobs = np.zeros(rows, np.bool_)
        self.stop_ids = np.full((rows, 1), _NO_ID, np.int32)
        self.pages = np.zeros(rows, np.int32)
        self.shared = np.zeros(rows, np.int32)
        self.node = np.full(rows, NO_PAGE, np.int32)
        # Zeros that nobody touched take no memory, so long contexts cost only what is used of them.
        self.page_table = np.zeros((rows, columns), np.int32)
        self.history = np.zeros((rows, longest), np.int32)
        self._free = list(range(rows - 1, -1, -1))
        self._admissions = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.rows - len(self._free)

    def sequence(self, row: int) -> Sequence:
        sequence = self.sequences[row]
        assert sequence is not None, f"row {row} is free"
        return sequence

    def seat(self, sequence: Sequence, *, slot: int, limit: int, stop_ids: tuple[int, ...]) -> int:
        """Gives a sequence a free row, with its tokens and without pages; returns the row."""
        row = self._free.pop()
        request, ids = sequence.request, sequence.ids
        self.sequences[row] = sequence
        self.live[row] = True
        self.length[row] = len(ids)
        self.planned[row] = 0
        self.prompt_length[row] = len(request.prompt_ids)
        self.limit[row] = limit
        self.last_step[row] = -1
        self._admissions += 1
        self.admission[row] = self._admissions
        self.account[row] = sequence.account
        self.slot[row] = slot
        self.client[row], self.index[row] = sequence.key
        self.wants_logprobs[row] = request.sampling.logprobs is not None
        if len(stop_ids) > self.stop_ids.shape[1]:
            more = len(stop_ids) - self.stop_ids.shape[1]
            self.stop_ids = np.pad(self.stop_ids, ((0, 0), (0, more)), constant_values=_NO_ID)
        self.stop_ids[row] = _NO_ID
        self.stop_ids[row, : len(stop_ids)] = stop_ids
        self.history[row, : len(ids)] = ids
        self.pages[row] = self.shared[row] = 0
        self.node[row] = NO_PAGE
        sequence.row = row
        return row

    def vacate(self, row: int) -> None:
        """Frees a row whose pages have been given back."""
        self.sequence(row).row = -1
        self.sequences[row] = None
        self.live[row] = self.leaving[row] = self.decoding[row] = False
        self.pages[row] = self.shared[row] = 0
        self._free.append(row)

    def rows_to_decode(self) -> Int32Array:
        """Rows whose next step computes one token, int32[n], but for those whose last is being sampled."""
        (rows,) = (self.decoding & (self.planned + 1 < self.limit)).nonzero()
        return rows.astype(np.int32)

    def rows_to_prefill(self) -> list[int]:
        """Rows whose known tokens are not all planned yet, oldest admission first."""
        (rows,) = (self.live & ~(self.leaving | self.decoding)).nonzero()
        return rows[self.admission[rows].argsort()].tolist() if len(rows) else []

    def append(self, rows: Int32Array, token_ids: Int32Array) -> NDArray[np.uint8]:
        """Adds a sampled token to each of the rows, int32[n]; returns why each ends, or NONE, uint8[n]."""
        length = self.length[rows]
        self.history[rows, length] = token_ids
        length += 1
        self.length[rows] = length
        reasons = (length >= self.limit[rows]) * _LENGTH  # the others' is NONE, which is 0
        reasons[(self.stop_ids[rows] == token_ids[:, None]).any(axis=1)] = _STOP
        return reasons

    def emitted(self, row: int) -> Int32Array:
        return self.history[row, self.prompt_length[row] : self.length[row]].copy()

    def private_pages(self, row: int) -> Int32Array:
        """The pages that only this row uses, int32[n]."""
        return self.page_table[row, self.shared[row] : self.pages[row]].copy()

    def taken(self) -> Int32Array:
        """Rows that hold a sequence, int32[n]."""
        return np.array([row for row, sequence in enumerate(self.sequences) if sequence], np.int32)

    def check_integrity(self) -> None:
        taken = self.taken().tolist()
        assert sorted([*self._free, *taken]) == list(range(self.rows)), "rows do not add up"
        for row in taken:
            assert self.sequence(row).row == row
            assert self.planned[row] <= self.length[row] + 1 or not self.live[row]
            assert self.length[row] <= self.limit[row]
            assert self.planned[row] <= self.pages[row] * self.page_size, f"row {row} lacks pages"
            assert 0 <= self.shared[row] <= self.pages[row] <= self.page_table.shape[1]
            node = self.page_table[row, self.shared[row] - 1] if self.shared[row] else NO_PAGE
            assert self.node[row] == node, f"row {row} locks another page than its last shared one"
