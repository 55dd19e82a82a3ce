"""Which adapters are on the GPU, and how they come and go.

    ABSENT ─ACQUIRE─▶ LEASING ─GRANTED─▶ STAGED ─PLACE─▶ COPYING ─COPIED─▶ RESIDENT ─EVICT─▶ ABSENT
       ▲                 │                  │               │
       └──── RELEASE, FAILED ───────────────┴─── FAILED ────┘

A state machine and nothing else: what is to be done outside is returned by `take_actions`, in order, and
must be done before the next launch. A row that uses an adapter pins it from admission until the last step
that could read the slot has retired; so a slot and a pool range without pins are safe to overwrite at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Protocol

from executor.control.lifecycle import LifecycleError
from executor.control.ranges import RangeAllocator

NO_SLOT = -1


class Residency(IntEnum):
    ABSENT = 0
    LEASING = 1
    STAGED = 2
    COPYING = 3
    RESIDENT = 4


class _Trigger(Enum):
    ACQUIRE = auto()
    GRANTED = auto()
    PLACE = auto()
    COPIED = auto()
    EVICT = auto()
    RELEASE = auto()
    FAILED = auto()


_TRANSITIONS: dict[tuple[Residency, _Trigger], Residency] = {
    (Residency.ABSENT, _Trigger.ACQUIRE): Residency.LEASING,
    (Residency.LEASING, _Trigger.GRANTED): Residency.STAGED,
    (Residency.LEASING, _Trigger.RELEASE): Residency.ABSENT,
    (Residency.LEASING, _Trigger.FAILED): Residency.ABSENT,
    (Residency.STAGED, _Trigger.PLACE): Residency.COPYING,
    (Residency.STAGED, _Trigger.RELEASE): Residency.ABSENT,
    (Residency.STAGED, _Trigger.FAILED): Residency.ABSENT,
    (Residency.COPYING, _Trigger.COPIED): Residency.RESIDENT,
    (Residency.COPYING, _Trigger.FAILED): Residency.ABSENT,
    (Residency.RESIDENT, _Trigger.EVICT): Residency.ABSENT,
}


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


@dataclass(slots=True, eq=False)
class Adapter:
    """An adapter that is not absent. `last_used` counts unpins and installs; larger is later."""

    digest: str
    residency: Residency = Residency.ABSENT
    units: int = 0
    unit_offset: int = 0
    slot: int = NO_SLOT
    pins: int = 0
    last_used: int = 0


class EvictionPolicy(Protocol):
    def choose(self, idle: Sequence[Adapter]) -> Adapter:
        """Returns which of these, resident and without pins, at least one, is given up first."""
        ...


class LruEviction:
    """The one that has been without a request for longest."""

    def choose(self, idle: Sequence[Adapter]) -> Adapter:
        return min(idle, key=lambda adapter: adapter.last_used)


class AdapterSlots:
    """Owns slots, pool ranges, pins and the residency of every adapter."""

    def __init__(self, *, slots: int, units: int, eviction: EvictionPolicy | None = None) -> None:
        self.slots = slots
        self._eviction: EvictionPolicy = eviction or LruEviction()
        self._ranges = RangeAllocator(units)
        self._arriving: dict[str, Adapter] = {}
        self._resident: dict[str, Adapter] = {}
        self._free_slots = list(range(slots - 1, -1, -1))
        self._retiring: set[str] = set()
        self._actions: list[Action] = []
        self._clock = 0

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

    def prefetch(self, digest: str) -> None:
        """A request for this digest has come, though its turn has not."""
        if self._find(digest) is None:
            self._actions.append(Prefetch(digest))

    def acquire(self, digest: str) -> None:
        self._arriving[digest] = self._adapter(digest, _Trigger.ACQUIRE)
        self._actions.append(Acquire(digest))

    def granted(self, digest: str, units: int) -> None:
        adapter = self._adapter(digest, _Trigger.GRANTED)
        adapter.units = max(units, 1)

    def copied(self, digest: str) -> None:
        adapter = self._adapter(digest, _Trigger.COPIED)
        self._resident[digest] = self._arriving.pop(digest)
        self._use(adapter)
        self._actions.append(Install(adapter.slot, digest))

    def failed(self, digest: str) -> None:
        adapter = self._adapter(digest, _Trigger.FAILED)
        if adapter.slot != NO_SLOT:
            self._free(adapter)
        del self._arriving[digest]

    def release(self, digest: str) -> None:
        """Gives up an adapter that has not begun to be copied."""
        self._adapter(digest, _Trigger.RELEASE)
        del self._arriving[digest]
        self._actions.append(Release(digest))

    def evict(self, digest: str) -> None:
        """Gives up a resident adapter without pins."""
        adapter = self._adapter(digest, _Trigger.EVICT)
        assert adapter.pins == 0, f"{digest} is evicted while {adapter.pins} rows use it"
        self._actions += [Clear(adapter.slot), Release(digest)]
        self._free(adapter)
        del self._resident[digest]

    def fits(self, digest: str, leaving: Sequence[Adapter] = ()) -> bool:
        """Probes whether a staged adapter would find room once `leaving`, resident ones, were gone."""
        ranges = [(adapter.unit_offset, adapter.units) for adapter in leaving]
        has_slot = bool(self._free_slots or leaving)
        return has_slot and self._ranges.fits(self._arriving[digest].units, ranges)

    def place(self, digest: str, expendable: Sequence[Adapter]) -> list[str] | None:
        """Gives a staged adapter slot and room, evicting from `expendable` (resident, no pins) what it takes.

        Returns the digests evicted, or None, with nothing changed, where even all of them would not be
        enough.
        """
        if not self.fits(digest, expendable):
            return None
        left, evicted = list(expendable), []
        while not self.fits(digest):
            victim = self._eviction.choose(left)
            left.remove(victim)
            self.evict(victim.digest)
            evicted.append(victim.digest)
        adapter = self._adapter(digest, _Trigger.PLACE)
        offset = self._ranges.allocate(adapter.units)
        assert offset is not None
        adapter.unit_offset, adapter.slot = offset, self._free_slots.pop()
        self._actions.append(Copy(digest, offset, adapter.slot))
        return evicted

    def pin(self, digest: str) -> int:
        """A row begins to use a resident adapter; returns its slot."""
        adapter = self._resident[digest]
        adapter.pins += 1
        return adapter.slot

    def unpin(self, digest: str) -> None:
        """No step reads the slot for that row any more."""
        adapter = self._resident[digest]
        adapter.pins -= 1
        assert adapter.pins >= 0, f"{digest} is unpinned more often than pinned"
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

    def _adapter(self, digest: str, trigger: _Trigger) -> Adapter:
        """Returns the adapter after the transition; raises LifecycleError where it is illegal."""
        adapter = self._find(digest) or Adapter(digest)
        try:
            adapter.residency = _TRANSITIONS[adapter.residency, trigger]
        except KeyError:
            where = f"adapter {digest[:12]} is {adapter.residency.name}"
            raise LifecycleError(f"{trigger.name} is illegal while {where}") from None
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
