"""Who has which KV page: the pool and the prefix tree as one budget, and host memory behind them. The tensors
that pages are of are `executor.model.kv_cache`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from executor.control.host_tier import HostStatistics, HostTier
from executor.control.pages import PagePool
from executor.control.plan import NO_COPIES, PageCopies
from executor.control.prefix_tree import PrefixTree
from executor.control.request import Int32Array, Namespace


class PageCache:
    """Hands out pages, evicting cached prefixes when no page is free: to `host_pages` of host memory, where
    there are any.
    """

    def __init__(self, pages: int, page_size: int, host_pages: int = 0) -> None:
        self.pages = pages
        self.page_size = page_size
        self._pool = PagePool(pages)
        self._tree = PrefixTree(pages, page_size)
        self._host = HostTier(host_pages, cache_pages=pages, page_size=page_size) if host_pages else None

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

    def match_host(self, namespace: Namespace, parent: int, token_ids: Int32Array, limit: int) -> list[int]:
        """The host's pages that follow `parent`, a page of the tree; see `HostTier.match`."""
        return self._host.match(namespace, parent, token_ids, limit) if self._host is not None else []

    def restore(self, hosts: Sequence[int], pages: Int32Array) -> None:
        """Copies what `match_host` returned into pages that the caller owns, in the next plan."""
        if hosts:
            assert self._host is not None
            self._host.restore(hosts, pages)

    def take_copies(self) -> tuple[PageCopies, PageCopies]:
        """Saves and restores for the plan that is being made."""
        return self._host.take_copies() if self._host is not None else (NO_COPIES, NO_COPIES)

    def distrust_host(self) -> None:
        """A plan failed, whose copies may not have been made."""
        if self._host is not None:
            self._host.clear()

    def lock(self, page: int) -> None:
        self._tree.lock(page)

    def unlock(self, page: int) -> None:
        self._tree.unlock(page)

    def take(self, count: int) -> Int32Array:
        """Returns `count` <= `available` pages, int32[count], which the caller now owns."""
        short = count - self._pool.free
        if short > 0:
            evicted = self._tree.evict(short)
            if self._host is not None:
                self._host.save(evicted)
            self._pool.give(evicted)
        return self._pool.take(count)

    def give(self, page_ids: Int32Array) -> None:
        self._pool.give(page_ids)

    def give_after(self, step: int, page_ids: Int32Array) -> None:
        self._pool.give_after(step, page_ids)

    def retire(self, step: int) -> None:
        self._pool.retire(step)

    def insert(self, namespace: Namespace, parent: int, ids: Int32Array, pages: Sequence[int]) -> list[int]:
        """Gives pages to the prefix tree; see `PrefixTree.insert`."""
        kept = self._tree.insert(namespace, parent, ids, pages)
        if self._host is not None:
            self._host.entered(namespace, parent, ids, kept)
        return kept

    def drop(self, digest: str) -> None:
        """Forgets a digest's prefixes, whatever the salt, except for what running rows hold."""
        self._pool.give(self._tree.drop(digest))
        if self._host is not None:
            self._host.drop(digest)

    def host_statistics(self) -> HostStatistics:
        return (
            self._host.statistics() if self._host is not None else HostStatistics(used=0, saved=0, restored=0)
        )

    def check_integrity(self, private: Int32Array) -> None:
        """`private` pages, those that rows own, with the pool's and the tree's are all pages, each once."""
        self._pool.check_integrity()
        self._tree.check_integrity()
        if self._host is not None:
            self._host.check_integrity()
        everywhere = np.concatenate([private, self._pool.idle_ids(), self._tree.page_ids()])
        assert np.array_equal(np.sort(everywhere), np.arange(self.pages)), "a page is lost or has two owners"
