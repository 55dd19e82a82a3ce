"""The pool of KV pages: which ids are free now, and which will be once a step has retired.

A page is in exactly one place at a time:

    free ── take ──▶ private to one row ── shared ──▶ prefix tree ── evicted ──▶ free
      ▲                    │
      └── after a step ◀───┴── give
"""

from __future__ import annotations

from collections import deque

import numpy as np

from executor.control.request import Int32Array


class PagePool:
    """Page ids 0 to `pages` - 1, kept as a stack, so that the page freed last is used first."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._stack = np.arange(pages - 1, -1, -1, dtype=np.int32)
        self._free = pages
        self._waiting: deque[tuple[int, Int32Array]] = deque()
        self.waiting = 0

    @property
    def free(self) -> int:
        return self._free

    def take(self, count: int) -> Int32Array:
        """Removes `count` pages, of which there are enough; returns their ids, int32[count]."""
        assert 0 <= count <= self._free, f"{count} pages wanted, {self._free} free"
        self._free -= count
        return self._stack[self._free : self._free + count].copy()

    def give(self, page_ids: Int32Array) -> None:
        """Takes pages back. No step in flight may touch them."""
        end = self._free + len(page_ids)
        assert end <= self.pages, "more pages given back than taken"
        self._stack[self._free : end] = page_ids
        self._free = end

    def give_after(self, step: int, page_ids: Int32Array) -> None:
        """Takes pages back that steps up to `step`, no less than in the last call, may still touch."""
        self._waiting.append((step, page_ids))
        self.waiting += len(page_ids)

    def retire(self, step: int) -> None:
        """Steps up to `step` are over: what waited for them is free."""
        while self._waiting and self._waiting[0][0] <= step:
            _, page_ids = self._waiting.popleft()
            self.waiting -= len(page_ids)
            self.give(page_ids)

    def idle_ids(self) -> Int32Array:
        """The ids in the pool, free ones and waiting ones, in no order."""
        return np.concatenate([self._stack[: self._free], *(ids for _, ids in self._waiting)])

    def check_integrity(self) -> None:
        idle = self.idle_ids()
        assert len(np.unique(idle)) == len(idle), "a page is in the pool twice"
        assert len(idle) == self._free + self.waiting
        assert len(idle) == 0 or (idle.min() >= 0 and idle.max() < self.pages), "a page id out of range"
