"""Prefixes that left the KV cache and wait in host memory: which page of it holds which tokens' KV.

A page is known by a digest chained over its namespace and all tokens up to its end, so that a prefix can be
followed from the cache's tree into the host's pages without a tree of their own:

    key("abcd efgh")  =  H(key("abcd"), "efgh")

Pages are saved when the cache evicts them and restored into pages of the row that asks for them. Both are
copies that the next plan carries: first all saves, then all restores, then the forward. A page that a plan
restores or saves is therefore left alone until the plan is made. The least recently used page goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from executor.control.plan import NO_COPIES, PageCopies
from executor.control.prefix_tree import NO_PAGE
from executor.control.request import Int32Array, Namespace

_Key = bytes


class _Hosted(NamedTuple):
    page: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatistics:
    """Pages in use now; pages saved and restored since the start."""

    used: int
    saved: int
    restored: int


class HostTier:
    """Owns `pages` pages of host memory, ids from 0 on, behind a cache of `cache_pages`."""

    def __init__(self, pages: int, *, cache_pages: int, page_size: int) -> None:
        self.pages = pages
        self._width = page_size * 4
        # Of pages in the cache's tree; what others have here means nothing.
        self._cached: list[tuple[_Key, str]] = [(b"", "")] * cache_pages
        self._hosted: OrderedDict[_Key, _Hosted] = OrderedDict()
        self._by_digest: dict[str, set[_Key]] = {}
        self._free = list(range(pages - 1, -1, -1))
        self._in_plan: set[_Key] = set()
        self._saves: list[tuple[int, int]] = []
        self._restores: list[tuple[int, int]] = []
        self._saved = self._restored = 0

    def entered(self, namespace: Namespace, parent: int, token_ids: Int32Array, pages: Sequence[int]) -> None:
        """The cache's tree holds `pages` below `parent` now; arguments as of `PrefixTree.insert`."""
        keys = self._keys(namespace, parent, token_ids.tobytes())
        for page, key in zip(pages, keys, strict=True):
            self._cached[page] = key, namespace.digest

    def match(self, namespace: Namespace, parent: int, token_ids: Int32Array, limit: int) -> list[int]:
        """The host's pages of the longest known prefix that follows the cache's page `parent`.

        token_ids are those after it; at most `limit` pages. What is returned stays until the next plan.
        """
        data = token_ids[: max(limit, 0) * self._width // 4].tobytes()
        keys = list(takewhile(self._hosted.__contains__, self._keys(namespace, parent, data)))
        for key in reversed(keys):  # what a page follows is needed longer than the page
            self._hosted.move_to_end(key)
        self._in_plan.update(keys)
        return [self._hosted[key].page for key in keys]

    def save(self, pages: Int32Array) -> None:
        """The cache has evicted `pages`, children before parents; who takes them overwrites them."""
        for page in pages.tolist():
            key, digest = self._cached[page]
            if key in self._hosted:
                self._hosted.move_to_end(key)
                continue
            host = self._take()
            if host is None:
                continue
            self._hosted[key] = _Hosted(host, digest)
            self._by_digest.setdefault(digest, set()).add(key)
            self._in_plan.add(key)
            self._saves.append((page, host))

    def restore(self, hosts: Sequence[int], pages: Int32Array) -> None:
        """Copy what `match` returned into `pages`, which the caller owns."""
        self._restores += zip(hosts, pages.tolist(), strict=True)

    def drop(self, digest: str) -> None:
        """Forgets a digest's pages, whatever the salt."""
        for key in self._by_digest.pop(digest, ()):
            self._free.append(self._hosted.pop(key).page)

    def clear(self) -> None:
        """Forgets everything: a plan failed, and with it copies that later ones would rely on."""
        for digest in tuple(self._by_digest):
            self.drop(digest)

    def take_copies(self) -> tuple[PageCopies, PageCopies]:
        """Saves and restores for the plan that is being made."""
        saves, restores = _copies(self._saves), _copies(self._restores)
        self._saved += len(self._saves)
        self._restored += len(self._restores)
        self._saves, self._restores = [], []
        self._in_plan.clear()
        return saves, restores

    def statistics(self) -> HostStatistics:
        return HostStatistics(used=len(self._hosted), saved=self._saved, restored=self._restored)

    def _keys(self, namespace: Namespace, parent: int, data: bytes) -> Iterator[_Key]:
        key = _root(namespace) if parent == NO_PAGE else self._cached[parent][0]
        for start in range(0, len(data) - self._width + 1, self._width):
            key = blake2b(key + data[start : start + self._width], digest_size=16).digest()
            yield key

    def _take(self) -> int | None:
        """A page to save into; None where all are in the plan already."""
        if self._free:
            return self._free.pop()
        key = next((key for key in self._hosted if key not in self._in_plan), None)
        if key is None:
            return None
        hosted = self._hosted.pop(key)
        keys = self._by_digest[hosted.digest]
        keys.discard(key)
        if not keys:
            del self._by_digest[hosted.digest]
        return hosted.page

    def check_integrity(self) -> None:
        used = [hosted.page for hosted in self._hosted.values()]
        assert sorted([*self._free, *used]) == list(range(self.pages)), "a host page is lost or used twice"
        by_digest = {(hosted.digest, key) for key, hosted in self._hosted.items()}
        assert by_digest == {(digest, key) for digest, keys in self._by_digest.items() for key in keys}
        assert all(self._by_digest.values()), "a digest without pages is kept"


def _root(namespace: Namespace) -> _Key:
    digest, salt = namespace.digest.encode(), namespace.salt.encode()
    return blake2b(b"%d:%b%b" % (len(digest), digest, salt), digest_size=16).digest()


def _copies(pairs: list[tuple[int, int]]) -> PageCopies:
    if not pairs:
        return NO_COPIES
    sources, targets = np.array(pairs, np.int32).T
    return PageCopies(sources=sources, targets=targets)
