"""Which adapters are on the GPU, and how they come and go (`residency.py` has the table).

A state machine and nothing else: what is to be done outside is returned by `take_actions`, in order, and
must be done before the next launch. A row that uses an adapter pins it from admission until the last step
that could read the slot has retired; so a slot and a pool range without pins are safe to overwrite at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from executor.control.eviction import EvictionPolicy, GdsfEviction, cheapest, cheapest_window
from executor.control.ranges import RangeAllocator
from executor.control.residency import NO_SLOT, Adapter, Residency, Trigger


@dataclass(frozen=True, slots=True)
class Prefetch:
    digest: str


@dataclass(frozen=True, slots=True)
class Acquire:
    digest: str


@dataclass(frozen=True, slots=True)
class Copy:
    digest: str
    unit_offset: int
    slot: int


@dataclass(frozen=True, slots=True)
class Install:
    slot: int
    digest: str


@dataclass(frozen=True, slots=True)
class Clear:
    slot: int


@dataclass(frozen=True, slots=True)
class Release:
    digest: str


@dataclass(frozen=True, slots=True)
class Retired:
    digest: str


Action = Prefetch | Acquire | Copy | Install | Clear | Release | Retired


@dataclass(frozen=True, slots=True)
class Move:
    """An adapter is where it was not before."""

    digest: str
    residency: Residency


class AdapterSlots:
    """Owns slots, pool ranges, pins and the residency of every adapter."""

    def __init__(self, *, slots: int, units: int, eviction: EvictionPolicy | None = None) -> None:
        self.slots = slots
        self._eviction: EvictionPolicy = eviction or GdsfEviction()
        self._ranges = RangeAllocator(units)
        self._arriving: dict[str, Adapter] = {}
        self._resident: dict[str, Adapter] = {}
        self._free_slots = list(range(slots - 1, -1, -1))
        self._retiring: set[str] = set()
        self._actions: list[Action] = []
        self._moves: list[Move] = []
        self._clock = 0
        self.loads = 0
        self.evictions = 0
        self.changes = 0
        """Counts what may make room: adapters that have moved, or that nothing pins any more."""

    @property
    def units(self) -> int:
        return self._ranges.units

    @property
    def free_units(self) -> int:
        return self._ranges.free_units

    @property
    def leases(self) -> int:
        """Adapters on their way in."""
        return len(self._arriving)

    @property
    def pins(self) -> int:
        return sum(adapter.pins for adapter in self._resident.values())

    @property
    def arriving(self) -> Collection[Adapter]:
        """The adapters on their way in, to look at."""
        return self._arriving.values()

    @property
    def resident(self) -> Collection[Adapter]:
        """The resident adapters, to look at."""
        return self._resident.values()

    def residency(self, digest: str) -> Residency:
        adapter = self._find(digest)
        return adapter.residency if adapter else Residency.ABSENT

    def take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def take_moves(self) -> list[Move]:
        """Where adapters have gone since the last call, in order."""
        moves, self._moves = self._moves, []
        return moves

    def prefetch(self, digest: str) -> None:
        """This digest is wanted soon, though its turn has not come."""
        if self._find(digest) is None:
            self._actions.append(Prefetch(digest))

    def acquire(self, digest: str) -> None:
        self._arriving[digest] = self._move(digest, Trigger.ACQUIRE)
        # Its hint, not taken yet, would say nothing more.
        hint = Prefetch(digest)
        self._actions = [action for action in self._actions if action != hint]
        self._actions.append(Acquire(digest))

    def granted(self, digest: str, units: int) -> None:
        adapter = self._move(digest, Trigger.GRANTED)
        adapter.units = max(units, 1)

    def copied(self, digest: str) -> None:
        adapter = self._move(digest, Trigger.COPIED)
        self._resident[digest] = self._arriving.pop(digest)
        self._use(adapter)
        self.loads += 1
        self._actions.append(Install(adapter.slot, digest))

    def failed(self, digest: str) -> None:
        adapter = self._move(digest, Trigger.FAILED)
        if adapter.slot != NO_SLOT:
            self._free(adapter)
        del self._arriving[digest]

    def release(self, digest: str) -> None:
        """Gives up an adapter that has not begun to be copied."""
        self._move(digest, Trigger.RELEASE)
        del self._arriving[digest]
        self._actions.append(Release(digest))

    def evict(self, digest: str) -> None:
        """Gives up a resident adapter without pins."""
        adapter = self._move(digest, Trigger.EVICT)
        assert adapter.pins == 0, f"{digest} is evicted while {adapter.pins} rows use it"
        self._actions += [Clear(adapter.slot), Release(digest)]
        self._free(adapter)
        del self._resident[digest]

    def window(self, digest: str, expendable: Collection[Adapter]) -> list[Adapter] | None:
        """Probes which of `expendable` (resident ones) would have to leave for a staged adapter, at the least
        cost; none where there is room, None where even all of them are not enough.
        """
        units = self._arriving[digest].units
        has_room = self._ranges.fits(units)
        if has_room and self._free_slots:
            return []
        best = cheapest(expendable, self._eviction)
        if best is None:
            return None
        if has_room or best.units >= units:
            return [best]
        placed = [*self._resident.values(), *(a for a in self._arriving.values() if a.slot != NO_SLOT)]
        return cheapest_window(
            placed,
            {adapter.digest for adapter in expendable},
            units=units,
            pool_units=self.units,
            policy=self._eviction,
        )

    def worth(self, adapters: Sequence[Adapter]) -> float:
        """Probes what the eviction policy would lose with these."""
        return self._eviction.worth_of([self._eviction.worth(adapter) for adapter in adapters])

    def staged(self, digest: str) -> Adapter:
        """A staged adapter, to look at."""
        return self._arriving[digest]

    def place(self, digest: str, expendable: Collection[Adapter]) -> list[str] | None:
        """Gives a staged adapter slot and room, evicting from `expendable` (resident, no pins) what it takes.

        Returns the digests evicted, or None, with nothing changed, where even all of them would not be
        enough.
        """
        victims = self.window(digest, expendable)
        if victims is None:
            return None
        if victims:
            self._eviction.evicted(victims)
        for victim in victims:
            self.evict(victim.digest)
        self.evictions += len(victims)
        adapter = self._move(digest, Trigger.PLACE)
        offset = self._ranges.allocate(adapter.units)
        assert offset is not None
        adapter.unit_offset, adapter.slot = offset, self._free_slots.pop()
        self._eviction.placed(digest)
        self._actions.append(Copy(digest, offset, adapter.slot))
        return [victim.digest for victim in victims]

    def pin(self, digest: str) -> int:
        """A row begins to use a resident adapter; returns its slot."""
        adapter = self._resident[digest]
        adapter.pins += 1
        self._use(adapter)
        self._eviction.used(digest)
        return adapter.slot

    def unpin(self, digest: str) -> None:
        """No step reads the slot for that row any more."""
        adapter = self._resident[digest]
        adapter.pins -= 1
        assert adapter.pins >= 0, f"{digest} is unpinned more often than pinned"
        self.changes += not adapter.pins
        self._use(adapter)

    def retire(self, digest: str) -> None:
        """Marks an adapter that no name points to any more; see `leave_retired`."""
        self._retiring.add(digest)

    @property
    def retiring(self) -> frozenset[str]:
        return frozenset(self._retiring)

    def leave_retired(self, digest: str) -> bool:
        """Gives up a retiring adapter that no request wants; False if it must be tried again later."""
        adapter = self._find(digest)
        if adapter is not None:
            if adapter.pins or adapter.residency == Residency.COPYING:
                return False
            if adapter.residency == Residency.RESIDENT:
                self.evict(digest)
            else:
                self.release(digest)
        self._retiring.discard(digest)
        self._actions.append(Retired(digest))
        return True

    def _find(self, digest: str) -> Adapter | None:
        return self._resident.get(digest) or self._arriving.get(digest)

    def _move(self, digest: str, trigger: Trigger) -> Adapter:
        """Returns the adapter after the transition; raises LifecycleError where it is illegal."""
        adapter = self._find(digest) or Adapter(digest)
        adapter.move(trigger)
        self.changes += 1
        self._moves.append(Move(digest, adapter.residency))
        return adapter

    def _use(self, adapter: Adapter) -> None:
        self._clock += 1
        adapter.last_used = self._clock

    def _free(self, adapter: Adapter) -> None:
        self._ranges.release(adapter.unit_offset, adapter.units)
        self._free_slots.append(adapter.slot)

    def check_integrity(self) -> None:
        everyone = {**self._arriving, **self._resident}
        assert len(everyone) == len(self._arriving) + len(self._resident), "an adapter comes and is there"
        placed = [adapter for adapter in everyone.values() if adapter.slot != NO_SLOT]
        for digest, adapter in everyone.items():
            assert adapter.digest == digest
            assert adapter.residency != Residency.ABSENT
            assert (adapter.residency == Residency.RESIDENT) == (digest in self._resident)
            assert (adapter.slot != NO_SLOT) == (adapter.residency >= Residency.COPYING)
            assert adapter.pins >= 0
            assert adapter.pins == 0 or adapter.residency == Residency.RESIDENT
        used = [*self._free_slots, *(adapter.slot for adapter in placed)]
        assert sorted(used) == list(range(self.slots)), "slots do not add up"
        self._ranges.check_integrity((adapter.unit_offset, adapter.units) for adapter in placed)
