"""Which pack is worth least, without a look at each of them."""

from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from adapter_store.tiers.pack import ArenaPack


class _Entry(NamedTuple):
    """A pack, and what it was worth when it was entered; equals leave by place, then in turn."""

    worth: float
    header_offset: int
    number: int
    pack: ArenaPack


class Ranking:
    """Idle packs by worth. A pack is entered whenever it becomes idle; what an entry says that is no longer
    true is found out when it comes to the top.

    Args:
        packs: all there are, at any time.
        may_leave: of a pack, now.
    """

    def __init__(self, packs: Collection[ArenaPack], may_leave: Callable[[ArenaPack], bool]) -> None:
        self._packs = packs
        self._may_leave = may_leave
        self._heap: list[_Entry] = []
        self._number = 0

    def enter(self, pack: ArenaPack) -> None:
        """A pack has become idle, or worth something else."""
        if len(self._heap) > 2 * len(self._packs) + 64:
            # One that is asked for again and again leaves an entry behind each time.
            self.rebuild()
            return
        self._number += 1
        heappush(self._heap, _Entry(pack.worth, pack.header_offset, self._number, pack))

    def rebuild(self) -> None:
        """Enters all anew."""
        self._heap = [
            _Entry(pack.worth, pack.header_offset, number, pack) for number, pack in enumerate(self._packs)
        ]
        self._number = len(self._heap)
        heapify(self._heap)

    def least(self) -> ArenaPack | None:
        """The pack of least worth that may leave. Changes nothing that is seen from outside."""
        while self._heap:
            entry = self._heap[0]
            if entry.worth == entry.pack.worth and self._may_leave(entry.pack):
                return entry.pack
            heappop(self._heap)
        return None
