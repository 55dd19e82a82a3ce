"""The memory tier: which packs lie in the arena, who holds them, what leaves when room is needed.

Synchronous and without a clock; belongs to one thread. Bytes are written by others, between `begin` and
`publish`.
"""

import secrets
from collections.abc import Set

from adapter_store.tiers.allocator import RangeAllocator
from adapter_store.tiers.arena_file import HEADER_BYTES, ArenaFile, PackRecord
from adapter_store.tiers.eviction import EvictionPolicy, GreedyDualSizeFrequency
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.pack import NEXT, ArenaPack, ArenaStatistics, PackState
from adapter_store.tiers.ranking import Ranking
from adapter_store.tiers.room import Range, cheapest_window, compaction
from lorikeet.v1 import layout_pb2
from rpc.errors import failed_precondition


class Arena:
    """Owner of the arena's room.

    Args:
        policy: decides what leaves; GDSF unless told otherwise.
    """

    def __init__(self, file: ArenaFile, policy: EvictionPolicy | None = None) -> None:
        self._file = file
        self._policy = policy or GreedyDualSizeFrequency()
        self._allocator = RangeAllocator(file.room_start, file.size)
        self._by_key: dict[PackKey, ArenaPack] = {}
        self._all: set[ArenaPack] = set()
        self._pinned: frozenset[str] = frozenset()
        self._ranking = Ranking(self._all, self._is_evictable)
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

    @property
    def capacity_bytes(self) -> int:
        """What fits in all, headers included."""
        return self._allocator.capacity

    def set_pinned(self, digests: Set[str]) -> None:
        """Says whose packs are never evicted; they may be moved while nobody holds them."""
        if digests != self._pinned:
            self._pinned = frozenset(digests)
            self._ranking.rebuild()

    def begin_unnamed(self, layout: str, pack_bytes: int) -> ArenaPack | None:
        """Like `begin`, for a pack whose digest is known once it is written; then `name` it."""
        return self.begin(PackKey(layout=layout, digest=secrets.token_hex(32)), pack_bytes)

    def name(self, pack: ArenaPack, key: PackKey) -> None:
        """Says whose pack it is that is being written; there must be none of this key yet."""
        assert pack.state is PackState.WRITING, pack.state
        assert key not in self._by_key, "a pack has one place"
        assert key.layout == pack.key.layout
        del self._by_key[pack.key]
        pack.key = key
        self._by_key[key] = pack
        self._file.name_pack(pack.slot, key.digest)

    def begin(self, key: PackKey, pack_bytes: int) -> ArenaPack | None:
        """Makes room for a pack, evicting or moving what nobody holds; None while too much is held.

        Raises:
            LorikeetError: FAILED_PRECONDITION when the whole arena is too small.
        """
        assert key not in self._by_key, "a pack has one place"
        size = HEADER_BYTES + pack_bytes
        self.check_capacity(pack_bytes)
        offset = self._make_room(self._allocator.rounded(size))
        if offset is None:
            return None
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

    def publish(
        self, pack: ArenaPack, manifest: layout_pb2.PackManifest, *, seconds: float | None = None
    ) -> None:
        """The bytes are there, after so many seconds: the pack can be leased."""
        self._move(pack, PackState.STABLE)
        pack.manifest = manifest
        pack.reload_seconds = pack.reload_seconds if seconds is None else seconds
        self._touch(pack)
        self._ranking.enter(pack)
        self._file.publish_pack(pack.slot, pack.header_offset, pack.generation)

    def abandon(self, pack: ArenaPack) -> None:
        """The bytes could not be written."""
        assert pack.state is PackState.WRITING, pack.state
        self._free(pack)

    def mark_verified(self, pack: ArenaPack, manifest: layout_pb2.PackManifest) -> None:
        """The bytes that a former store left are what they should be: the pack can be leased."""
        assert pack.state is not PackState.WRITING, pack.state
        pack.manifest = manifest

    def set_checksum(self, pack: ArenaPack, checksum: bytes) -> None:
        """Remembers what the bytes hash to, for a later store; ignored when the pack is gone or moved."""
        if pack.state in (PackState.STABLE, PackState.DOOMED):
            pack.checksum = checksum
            self._file.set_checksum(pack.slot, checksum)

    def lease(self, pack: ArenaPack) -> None:
        """Promises that the pack stays where it is until as many `release`s."""
        self.hold(pack)
        self._touch(pack)

    def hold(self, pack: ArenaPack) -> None:
        """Like `lease`, for the store's own work, which makes a pack no more worth keeping."""
        assert pack.state is PackState.STABLE, pack.state
        pack.leases += 1
        self._note_holders(pack)

    def release(self, pack: ArenaPack) -> None:
        assert pack.leases > 0, "released more often than leased"
        pack.leases -= 1
        self._note_holders(pack)
        self._let_go(pack)

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
            self._let_go(pack)

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
            evictions=self._evictions,
            pinned_bytes=sum(p.pack_bytes for p in self._by_key.values() if p.key.digest in self._pinned),
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
            checksum=record.checksum,
        )
        self._by_key[record.key] = pack
        self._all.add(pack)
        self._ranking.enter(pack)

    def _make_room(self, size: int) -> int | None:
        """Finds, or else makes, room; changes nothing when that is not possible."""
        offset = self._allocator.allocate(size) if self._free_slots else None
        if offset is not None:
            return offset
        # The cheapest of all, where its place is large enough: no window of neighbours costs less.
        cheapest = self._ranking.least()
        if cheapest is not None and self._allocator.rounded(HEADER_BYTES + cheapest.pack_bytes) >= size:
            self._evict(cheapest)
            return self._allocator.allocate(size)
        ranges = self._ranges()
        start, end = self._allocator.bounds
        window = cheapest_window(ranges, start, end, size)
        if window is not None:
            for pack in window:
                self._evict(pack)
            return self._allocator.allocate(size)
        moves = compaction(ranges, start, end, size)
        if moves is None or not (self._free_slots or any(range_.worth is not None for range_ in ranges)):
            return None
        for pack in [range_.item for range_ in ranges if range_.worth is not None]:
            self._evict(pack)
        for move in moves:
            self._relocate(move.item, move.start)
        return self._allocator.allocate(size)

    def _ranges(self) -> list[Range[ArenaPack]]:
        ranges = []
        for pack in self._all:
            is_idle = pack.state is PackState.STABLE and not pack.is_held
            end = pack.header_offset + self._allocator.rounded(HEADER_BYTES + pack.pack_bytes)
            ranges.append(
                Range(
                    item=pack,
                    start=pack.header_offset,
                    end=end,
                    worth=pack.worth if self._is_evictable(pack) else None,
                    is_movable=is_idle and pack.key.digest in self._pinned,
                )
            )
        return sorted(ranges, key=lambda range_: range_.start)

    def _is_evictable(self, pack: ArenaPack) -> bool:
        is_idle = pack.state is PackState.STABLE and not pack.is_held
        return is_idle and pack.key.digest not in self._pinned

    def _evict(self, pack: ArenaPack) -> None:
        self._policy.evicted(pack)
        self._evictions += 1
        self._free(pack)

    def _relocate(self, pack: ArenaPack, header_offset: int) -> None:
        """Moves a pack that nobody holds. A store that is killed meanwhile has lost it, never half of it."""
        assert pack.state is PackState.STABLE
        assert not pack.is_held
        self._file.free_pack(pack.slot, pack.header_offset, pack.generation)
        source = pack.pack_offset
        self._allocator.free(pack.header_offset)
        taken = self._allocator.reserve(header_offset, HEADER_BYTES + pack.pack_bytes)
        assert taken, "a pack moves into room that is free"
        pack.header_offset = header_offset
        pack.generation = self._file.take_generation()
        # The bytes first: the new header may lie in what they are read from, but not the other way round.
        self._file.move(source, pack.pack_offset, pack.pack_bytes)
        self._file.begin_pack(_record(pack))
        self._file.publish_pack(pack.slot, pack.header_offset, pack.generation)
        if pack.checksum:
            self._file.set_checksum(pack.slot, pack.checksum)

    def _let_go(self, pack: ArenaPack) -> None:
        """A holder has gone, perhaps the last one."""
        if pack.state is PackState.DOOMED and not pack.is_held:
            self._free(pack)
        elif not pack.is_held:
            self._ranking.enter(pack)

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
        if state not in NEXT[pack.state]:
            raise AssertionError(f"a pack that is {pack.state.value} cannot become {state.value}")
        pack.state = state

    def _touch(self, pack: ArenaPack) -> None:
        pack.uses += 1
        self._policy.used(pack)

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
