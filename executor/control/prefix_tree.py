"""Computed prefixes: a tree of full KV pages for each namespace, without a node object in it.

A node is one page and its id is the page's id, so what a node needs to know stands in lists indexed by
page. A child is found by (parent's page, bytes of the page's token ids) in its namespace's dictionary; the
root is NO_PAGE.

`holds[page]` counts the locks on the page itself plus its children that are held. A page with holds is
pinned, and so is its whole path. Locking therefore stops at the first page that was pinned already, and the
pages of unpinned subtrees, which are exactly the evictable ones, are counted without walking anything.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from executor.control.request import Int32Array, Namespace

NO_PAGE = -1
_Children = dict[tuple[int, bytes], int]


class PrefixTree:
    """Finds, keeps and forgets the pages of computed prefixes. Owns the pages inside it; takes them from
    and hands them back to its caller."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._key_bytes = page_size * 4
        self._roots: dict[Namespace, _Children] = {}
        self._salted: dict[str, set[Namespace]] = {}
        self._entry: list[tuple[int, bytes] | None] = [None] * pages
        self._namespace: list[Namespace | None] = [None] * pages
        self._holds = [0] * pages
        self._children = [0] * pages
        self._used = [0] * pages
        self._leaves: list[tuple[int, int]] = []
        self._clock = 0
        self.size = 0
        self.pinned = 0

    @property
    def evictable(self) -> int:
        return self.size - self.pinned

    def match(self, namespace: Namespace, token_ids: Int32Array, limit: int) -> list[int]:
        """Probes for the longest known prefix, at most `limit` pages; returns them. Changes nothing."""
        children = self._roots.get(namespace)
        if children is None or limit <= 0:
            return []
        width = self._key_bytes
        data = token_ids[: limit * self.page_size].tobytes()
        found: list[int] = []
        page: int | None = NO_PAGE
        for start in range(0, len(data) - width + 1, width):
            page = children.get((page, data[start : start + width]))
            if page is None:
                break
            found.append(page)
        return found

    def lock(self, page: int) -> None:
        """Pins the path that ends in `page` (NO_PAGE: nothing)."""
        if page == NO_PAGE:
            return
        self._touch(page)
        holds = self._holds
        while page != NO_PAGE:
            holds[page] += 1
            if holds[page] > 1:
                return
            self.pinned += 1
            page = self._parent(page)

    def unlock(self, page: int) -> None:
        """Takes one lock on `page` back."""
        if page == NO_PAGE:
            return
        self._touch(page)
        holds = self._holds
        while page != NO_PAGE:
            holds[page] -= 1
            assert holds[page] >= 0, f"page {page} unlocked more often than locked"
            if holds[page]:
                return
            self.pinned -= 1
            self._offer(page)
            page = self._parent(page)

    def insert(
        self, namespace: Namespace, parent: int, token_ids: Int32Array, pages: Sequence[int]
    ) -> list[int]:
        """Adds the pages that follow `parent`, a page that the caller has locked (or NO_PAGE).

        token_ids int32[len(pages) * page_size] are the tokens in `pages`. Returns, for each, the page that
        the tree holds for these tokens: the same page, now the tree's, or another that was there first;
        then the given one remains the caller's. The caller must lock the last one before anything is
        evicted.
        """
        children = self._roots.get(namespace)
        if children is None:
            children = self._roots[namespace] = {}
            self._salted.setdefault(namespace.digest, set()).add(namespace)
        self._clock += 1
        width = self._key_bytes
        data = token_ids.tobytes()
        kept: list[int] = []
        for number, page in enumerate(pages):
            entry = (parent, data[number * width : (number + 1) * width])
            known = children.setdefault(entry, page)
            if known == page:
                self._entry[page] = entry
                self._namespace[page] = namespace
                self._used[page] = self._clock
                self._children[page] = 0
                if parent != NO_PAGE:
                    self._children[parent] += 1
                self.size += 1
            kept.append(known)
            parent = known
        if not children:
            self._forget(namespace)
        return kept

    def evict(self, count: int) -> Int32Array:
        """Removes up to `count` unpinned pages, always the least recently used leaf; returns their ids."""
        gone: list[int] = []
        while len(gone) < count and self._leaves:
            used, page = heapq.heappop(self._leaves)
            if not self._is_leaf(page, used):
                continue
            gone.append(page)
            parent = self._remove(page)
            if parent != NO_PAGE:
                self._used[parent] = max(self._used[parent], used)
                self._offer(parent)
        return np.array(gone, np.int32)

    def drop(self, digest: str) -> Int32Array:
        """Removes every unpinned page of a digest, whatever the salt; returns their ids.

        What running rows hold stays until it is unlocked, and is then evictable like any other page.
        """
        gone: list[int] = []
        for namespace in tuple(self._salted.get(digest, ())):
            unpinned = [page for page in self._roots[namespace].values() if not self._holds[page]]
            for page in unpinned:
                self._remove(page)
            gone += unpinned
        return np.array(gone, np.int32)

    def page_ids(self) -> Int32Array:
        """The ids of all pages in the tree, in no order."""
        return np.array([page for children in self._roots.values() for page in children.values()], np.int32)

    def _parent(self, page: int) -> int:
        entry = self._entry[page]
        assert entry is not None, f"page {page} is not in the tree"
        return entry[0]

    def _touch(self, page: int) -> None:
        self._clock += 1
        self._used[page] = self._clock

    def _offer(self, page: int) -> None:
        """Makes a page a candidate for eviction if it is an unpinned leaf. Older offers of it become void."""
        if self._holds[page] or self._children[page]:
            return
        if len(self._leaves) > 2 * self.size + 64:
            self._leaves = [(used, leaf) for used, leaf in self._leaves if self._is_leaf(leaf, used)]
            heapq.heapify(self._leaves)
        heapq.heappush(self._leaves, (self._used[page], page))

    def _is_leaf(self, page: int, used: int) -> bool:
        current = self._entry[page] is not None and self._used[page] == used
        return current and not self._holds[page] and not self._children[page]

    def _remove(self, page: int) -> int:
        """Removes an unpinned page and returns its parent."""
        entry, namespace = self._entry[page], self._namespace[page]
        assert entry is not None
        assert namespace is not None
        children = self._roots[namespace]
        del children[entry]
        self._entry[page] = self._namespace[page] = None
        self.size -= 1
        if not children:
            self._forget(namespace)
        if entry[0] != NO_PAGE:
            self._children[entry[0]] -= 1
        return entry[0]

    def _forget(self, namespace: Namespace) -> None:
        del self._roots[namespace]
        salted = self._salted[namespace.digest]
        salted.discard(namespace)
        if not salted:
            del self._salted[namespace.digest]

    def check_integrity(self) -> None:
        """Recounts everything that is kept incrementally."""
        children = [0] * len(self._holds)
        pinned_children = [0] * len(self._holds)
        pages: set[int] = set()
        for namespace, entries in self._roots.items():
            assert entries, f"{namespace} is empty but kept"
            assert namespace in self._salted[namespace.digest]
            for entry, page in entries.items():
                assert page not in pages, f"page {page} is in the tree twice"
                assert self._entry[page] == entry
                assert self._namespace[page] == namespace
                pages.add(page)
                if entry[0] != NO_PAGE:
                    assert self._namespace[entry[0]] == namespace, f"page {page} hangs below a stranger"
                    children[entry[0]] += 1
                    pinned_children[entry[0]] += self._holds[page] > 0
        offered = set(self._leaves)
        for page in pages:
            assert self._children[page] == children[page], f"page {page} miscounts its children"
            assert self._holds[page] >= pinned_children[page], f"page {page} is not pinned, a child of it is"
            if not self._holds[page] and not children[page]:
                assert (self._used[page], page) in offered, f"unpinned leaf {page} can never be evicted"
        assert self.size == len(pages)
        assert self.pinned == sum(self._holds[page] > 0 for page in pages)
        assert sum(len(group) for group in self._salted.values()) == len(self._roots)
