"""The memory tier: which packs lie in the arena, who holds them, what leaves when room is needed.

Synchronous and without a clock; belongs to one thread. Bytes are written by others, between `begin` and
`publish`.
"""

from dataclasses import dataclass
from enum import Enum

from adapter_store.tiers.allocator import RangeAllocator
from adapter_store.tiers.arena_file import HEADER_BYTES, ArenaFile, PackRecord
from adapter_store.tiers.eviction import EvictionPolicy, LeastRecentlyUsed
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import layout_pb2
from rpc.errors import failed_precondition


class PackState(Enum):
    WRITING = "writing"
    STABLE = "stable"
    # Dropped, but somebody still holds it; freed with its last lease.
    DOOMED = "doomed"
    FREED = "freed"


_NEXT = {
    PackState.WRITING: (PackState.STABLE, PackState.FREED),
    PackState.STABLE: (PackState.DOOMED, PackState.FREED),
    PackState.DOOMED: (PackState.FREED,),
    PackState.FREED: (),
}


@dataclass(eq=False, kw_only=True)
class ArenaPack:
    """A pack in the arena. Only the arena changes it."""

    key: PackKey
    slot: int
    header_offset: int
    pack_bytes: int
    generation: int
    state: PackState = PackState.WRITING
    leases: int = 0
    # Leases granted before a restart whose holders have not been heard of.
    unclaimed: int = 0
    last_used: int = 0
    # None while the pack is being written, and until bytes that a former store left were verified.
    manifest: layout_pb2.PackManifest | None = None

    @property
    def pack_offset(self) -> int:
        return self.header_offset + HEADER_BYTES

    @property
    def is_held(self) -> bool:
        return self.leases + self.unclaimed > 0


@dataclass(frozen=True, kw_only=True)
class ArenaStatistics:
    """Counts; bytes include headers."""

    packs: int
    leases: int
    unclaimed: int
    used_bytes: int
    capacity_bytes: int
    largest_hole_bytes: int
    evictions: int


class Arena:
    """Owner of the arena's room."""

    def __init__(self, file: ArenaFile, policy: EvictionPolicy | None = None) -> None:
        self._file = file
        self._policy = policy or LeastRecentlyUsed()
        self._allocator = RangeAllocator(file.room_start, file.size)
        self._by_key: dict[PackKey, ArenaPack] = {}
        self._all: set[ArenaPack] = set()
        self._tick = 0
        self._evictions = 0
        for record in list(file.scan()):
            self._adopt(record)
        taken = {pack.slot for pack in self._all}
        self._free_slots = [slot for slot in reversed(range(file.slots)) if slot not in taken]

    @property
    def packs(self) -> list[ArenaPack]:
        """The packs that `find` finds."""
        return list(self._by_key.values())

    def find(self, key: PackKey) -> ArenaPack | None:
        """A pack that is being written or stable. A probe: changes nothing."""
        return self._by_key.get(key)

    def begin(self, key: PackKey, pack_bytes: int) -> ArenaPack | None:
        """Makes room for a pack, evicting what nobody holds; None while too much is held.

        Raises:
            LorikeetError: FAILED_PRECONDITION when the whole arena is too small.
        """
        assert key not in self._by_key, "a pack has one place"
        size = HEADER_BYTES + pack_bytes
        self.check_capacity(pack_bytes)
        if not self._could_fit(size):
            return None
        while (offset := self._allocator.allocate(size) if self._free_slots else None) is None:
            idle = [pack for pack in self._by_key.values() if self._is_evictable(pack)]
            if not idle:
                return None
            self._free(self._policy.victim(idle))
            self._evictions += 1
        pack = ArenaPack(
            key=key,
            slot=self._free_slots.pop(),
            header_offset=offset,
            pack_bytes=pack_bytes,
            generation=self._file.take_generation(),
        )
        self._file.begin_pack(_record(pack))
        self._by_key[key] = pack
        self._all.add(pack)
        self._touch(pack)
        return pack

    def check_capacity(self, pack_bytes: int) -> None:
        """Raises LorikeetError, FAILED_PRECONDITION, when a pack cannot fit even into an empty arena."""
        if HEADER_BYTES + pack_bytes > self._allocator.capacity:
            raise failed_precondition(
                "ARENA_TOO_SMALL",
                f"the adapter's pack takes {pack_bytes} bytes and the store's arena holds "
                f"{self._allocator.capacity}: start the store with a larger arena_bytes",
            )

    def view(self, pack: ArenaPack) -> memoryview:
        """The pack's bytes, for whoever writes or checks them. Release it when done."""
        return self._file.view(pack.pack_offset, pack.pack_bytes)

    def publish(self, pack: ArenaPack, manifest: layout_pb2.PackManifest) -> None:
        """The bytes are there: the pack can be leased."""
        self._move(pack, PackState.STABLE)
        pack.manifest = manifest
        self._file.publish_pack(pack.slot, pack.header_offset, pack.generation)

    def abandon(self, pack: ArenaPack) -> None:
        """The bytes could not be written."""
        assert pack.state is PackState.WRITING, pack.state
        self._free(pack)

    def mark_verified(self, pack: ArenaPack, manifest: layout_pb2.PackManifest) -> None:
        """The bytes that a former store left are what they should be: the pack can be leased."""
        assert pack.state is not PackState.WRITING, pack.state
        pack.manifest = manifest

    def lease(self, pack: ArenaPack) -> None:
        """Promises that the pack stays where it is until as many `release`s."""
        assert pack.state is PackState.STABLE, pack.state
        pack.leases += 1
        self._touch(pack)
        self._note_holders(pack)

    def release(self, pack: ArenaPack) -> None:
        assert pack.leases > 0, "released more often than leased"
        pack.leases -= 1
        self._note_holders(pack)
        self._free_if_done(pack)

    def claim(self, key: PackKey, header_offset: int, generation: int) -> ArenaPack | None:
        """Turns a lease granted before a restart into one of this life; None when there is no such pack."""
        for pack in self._all:
            if (pack.key, pack.header_offset, pack.generation) == (key, header_offset, generation):
                if pack.state is PackState.WRITING:
                    return None
                pack.unclaimed -= pack.unclaimed > 0
                pack.leases += 1
                self._note_holders(pack)
                return pack
        return None

    def end_grace(self) -> None:
        """Executors had time enough to declare what they hold: the rest is nobody's."""
        for pack in [pack for pack in self._all if pack.unclaimed]:
            pack.unclaimed = 0
            self._note_holders(pack)
            self._free_if_done(pack)

    def drop(self, key: PackKey) -> None:
        """Takes a pack out of the tier; its room follows when nobody holds it any more."""
        pack = self._by_key.get(key)
        if pack is None:
            return
        assert pack.state is PackState.STABLE, "a pack that is being written belongs to its writer"
        if pack.is_held:
            del self._by_key[key]
            self._move(pack, PackState.DOOMED)
        else:
            self._free(pack)

    def statistics(self) -> ArenaStatistics:
        return ArenaStatistics(
            packs=len(self._all),
            leases=sum(pack.leases for pack in self._all),
            unclaimed=sum(pack.unclaimed for pack in self._all),
            used_bytes=self._allocator.used_bytes,
            capacity_bytes=self._allocator.capacity,
            largest_hole_bytes=self._allocator.largest_hole,
            evictions=self._evictions,
        )

    def check_integrity(self) -> None:
        """Asserts that packs, ranges, slots, headers and the file's index agree."""
        self._allocator.check_integrity()
        taken = sum(self._allocator.rounded(HEADER_BYTES + pack.pack_bytes) for pack in self._all)
        assert taken == self._allocator.used_bytes, "packs and ranges differ"
        slots = [pack.slot for pack in self._all] + self._free_slots
        assert sorted(slots) == list(range(self._file.slots)), "slots are lost or given twice"
        assert set(self._by_key.values()) <= self._all
        for pack in self._all:
            assert (self._by_key.get(pack.key) is pack) == (pack.state is not PackState.DOOMED)
            assert min(pack.leases, pack.unclaimed) >= 0
            assert pack.is_held or pack.state is not PackState.DOOMED
            written = pack.generation - (pack.state is PackState.WRITING)
            assert self._file.generation_at(pack.header_offset) == written
        stable = {pack.slot for pack in self._all if pack.state is not PackState.WRITING}
        held = {pack.slot: pack.leases + pack.unclaimed for pack in self._all}
        records = list(self._file.stable_packs())
        assert {record.slot for record in records} == stable, "the index differs from the packs"
        assert all(record.leases == held[record.slot] for record in records)

    def _adopt(self, record: PackRecord) -> None:
        if record.key in self._by_key or not self._allocator.reserve(
            record.header_offset, HEADER_BYTES + record.pack_bytes
        ):
            self._file.free_pack(record.slot, record.header_offset, record.generation)
            return
        pack = ArenaPack(
            key=record.key,
            slot=record.slot,
            header_offset=record.header_offset,
            pack_bytes=record.pack_bytes,
            generation=record.generation,
            state=PackState.STABLE,
            unclaimed=record.leases,
        )
        self._by_key[record.key] = pack
        self._all.add(pack)

    def _could_fit(self, size: int) -> bool:
        """True when evicting everything that nobody holds would leave a large enough hole."""
        fixed = [pack.header_offset for pack in self._all if not self._is_evictable(pack)]
        return self._allocator.fits_around(size, fixed)

    def _is_evictable(self, pack: ArenaPack) -> bool:
        return pack.state is PackState.STABLE and not pack.is_held

    def _free_if_done(self, pack: ArenaPack) -> None:
        if pack.state is PackState.DOOMED and not pack.is_held:
            self._free(pack)

    def _free(self, pack: ArenaPack) -> None:
        assert not pack.is_held, "a held pack stays where it is"
        self._move(pack, PackState.FREED)
        self._file.free_pack(pack.slot, pack.header_offset, pack.generation)
        self._allocator.free(pack.header_offset)
        self._free_slots.append(pack.slot)
        self._all.discard(pack)
        if self._by_key.get(pack.key) is pack:
            del self._by_key[pack.key]

    def _move(self, pack: ArenaPack, state: PackState) -> None:
        if state not in _NEXT[pack.state]:
            raise AssertionError(f"a pack that is {pack.state.value} cannot become {state.value}")
        pack.state = state

    def _touch(self, pack: ArenaPack) -> None:
        self._tick += 1
        pack.last_used = self._tick

    def _note_holders(self, pack: ArenaPack) -> None:
        self._file.set_leases(pack.slot, pack.leases + pack.unclaimed)


def _record(pack: ArenaPack) -> PackRecord:
    return PackRecord(
        slot=pack.slot,
        key=pack.key,
        header_offset=pack.header_offset,
        pack_bytes=pack.pack_bytes,
        generation=pack.generation,
        leases=0,
    )
