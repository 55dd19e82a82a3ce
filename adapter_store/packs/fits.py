"""What adapters' headers and configs were found to mean for a layout: users have thousands that are alike but
for their values, and each comes back now and then.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.formats.safetensors_files import Heads, TensorEntry
from adapter_store.packs.identity import Identity, identity_of
from adapter_store.packs.plan import PackPlan

_MOST_BYTES = 128 << 20
_BYTES_PER_TENSOR = 1000


class Likeness(NamedTuple):
    """What a fit depends on: the layout, with the store's own limit, and every byte of config and headers."""

    layout: str
    max_rank: int
    config: bytes
    heads: Heads

    @property
    def nbytes(self) -> int:
        return len(self.config) + sum(len(head.header) for head in self.heads)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Adapters of one likeness: their tensors, where each goes, and a plan that has no digest."""

    entries: Mapping[str, TensorEntry]
    slices: tuple[AdaptedSlice, ...]
    notes: tuple[str, ...]
    plan: PackPlan

    @cached_property
    def identity(self) -> Identity:
        """Of one without a chat template. Of thousands of tensors it takes its time: not asked for where a
        checksum is enough.
        """
        return identity_of(self.slices)


class Fits:
    """Fits by likeness, the least recently used given up first. Thread-safe.

    Args:
        most_bytes: that all of them take, about.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._bytes = 0
        self._fits: OrderedDict[Likeness, tuple[Fit, int]] = OrderedDict()

    def find(self, likeness: Likeness) -> Fit | None:
        with self._lock:
            known = self._fits.get(likeness)
            if known is None:
                return None
            self._fits.move_to_end(likeness)
            return known[0]

    def keep(self, likeness: Likeness, fit: Fit) -> Fit:
        """Unless it alone is more than may be kept. Returns it."""
        nbytes = likeness.nbytes + len(fit.entries) * _BYTES_PER_TENSOR
        with self._lock:
            if likeness not in self._fits and nbytes <= self._most:
                self._fits[likeness] = fit, nbytes
                self._bytes += nbytes
            while self._bytes > self._most:
                self._bytes -= self._fits.popitem(last=False)[1][1]
        return fit
