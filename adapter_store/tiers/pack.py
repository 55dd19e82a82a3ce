"""A pack in the arena, and its life."""

from dataclasses import dataclass
from enum import Enum

from adapter_store.tiers.arena_file import HEADER_BYTES
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import layout_pb2


class PackState(Enum):
    WRITING = "writing"
    STABLE = "stable"
    # Dropped, but somebody still holds it; freed with its last lease.
    DOOMED = "doomed"
    FREED = "freed"


NEXT = {
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
    uses: int = 0
    # What making it took; a guess for a pack that a former store left.
    reload_seconds: float = 0.05
    # The eviction policy's.
    worth: float = 0.0
    # BLAKE3 of the bytes; b"" until it was computed.
    checksum: bytes = b""
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
    evictions: int
    pinned_bytes: int
