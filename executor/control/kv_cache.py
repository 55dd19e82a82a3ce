"""The KV pages of an executor: the pool and the prefix tree as one budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from executor.control.pages import PagePool
from executor.control.prefix_tree import PrefixTree
from executor.control.request import Int32Array, Namespace


class KvCache:
    """Hands out pages, evicting cached prefixes when no page is free."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages = pages
        self.page_size = page_size
        self._pool = PagePool(pages)
        self._tree = PrefixTree(pages, page_size)

    @property
    def available(self) -> int:
        """Pages that `take` could hand out now."""
        return self._pool.free + self._tree.evictable

    @property
    def available_soon(self) -> int:
        """The same once the steps in flight have retired."""
        return self.available + self._pool.waiting

    @property
    def cached(self) -> int:
        """Pages in the prefix tree, whether or not a row uses them."""
        return self._tree.size

    @property
    def held(self) -> int:
        """Pages that neither are free nor could be evicted."""
        return self.pages - self.available_soon

    def match(self, namespace: Namespace, token_ids: Int32Array, limit: int) -> list[int]:
        """Probes for the longest known prefix of at most `limit` full pages. Changes nothing."""
        return self._tree.match(namespace, token_ids, limit)

    def lock(self, page: int) -> None:
        self._tree.lock(page)

    def unlock(self, page: int) -> None:
        self._tree.unlock(page)

    def take(self, count: int) -> Int32Array:
        """Returns `count` <= `available` pages, int32[count], which the caller now owns."""
        short = count - self._pool.free
        if short > 0:
            self._pool.give(self._tree.evict(short))
        return self._pool.take(count)

    def give(self, page_ids: Int32Array) -> None:
        self._pool.give(page_ids)

    def give_after(self, step: int, page_ids: Int32Array) -> None:
        self._pool.give_after(step, page_ids)

    def retire(self, step: int) -> None:
        self._pool.retire(step)

    def insert(self, namespace: Namespace, parent: int, ids: Int32Array, pages: Sequence[int]) -> list[int]:
        """Gives pages to the prefix tree; see `PrefixTree.insert`."""
        return self._tree.insert(namespace, parent, ids, pages)

    def drop(self, digest: str) -> None:
        """Forgets a digest's prefixes, whatever the salt, except for what running rows hold."""
        self._pool.give(self._tree.drop(digest))

    def check_integrity(self, private: Int32Array) -> None:
        """`private` pages, those that rows own, with the pool's and the tree's are all pages, each once."""
        self._pool.check_integrity()
        self._tree.check_integrity()
        everywhere = np.concatenate([private, self._pool.idle_ids(), self._tree.page_ids()])
        assert np.array_equal(np.sort(everywhere), np.arange(self.pages)), "a page is lost or has two owners"
