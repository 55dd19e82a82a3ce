"""From disk to memory: brings packs into the arena when they are asked for, each once however many ask."""

import asyncio
import logging

import blake3

from adapter_store.concurrency import SingleFlight, Workers
from adapter_store.formats.layout import PackLayout
from adapter_store.tiers.arena import Arena, ArenaPack, PackState
from adapter_store.tiers.building import rebuild_pack
from adapter_store.tiers.disk import DiskTier, StoredPack
from adapter_store.tiers.holds import Holds
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError, data_loss, resource_exhausted

log = logging.getLogger(__name__)

_MAX_HINTS = 16
_MAX_ATTEMPTS = 8


class WarmTier:
    """Leases packs, loading them first where needed. Belongs to the event loop.

    Args:
        arena: where packs go.
        disk: where they come from; a pack that is not there, or damaged, is made from its object.
        workers: threads for reading and packing.
        holds: keeps the files of a digest while they are read or written here.
        room_seconds: how long to wait while everything in the arena is leased.
    """

    def __init__(
        self, *, arena: Arena, disk: DiskTier, workers: Workers, holds: Holds, room_seconds: float = 30.0
    ) -> None:
        self._arena = arena
        self._disk = disk
        self._workers = workers
        self._holds = holds
        self._room_seconds = room_seconds
        self._flights: SingleFlight[None] = SingleFlight()
        self._freed = asyncio.Event()

    async def acquire(self, digest: str, layout: PackLayout) -> tuple[ArenaPack, layout_pb2.PackManifest]:
        """Leases a pack; `release` it once it was copied.

        Raises:
            LorikeetError: the adapter does not fit the layout, is lost, or the arena has no room for it.
        """
        key = PackKey(layout=layout.digest, digest=digest)
        for _ in range(_MAX_ATTEMPTS):
            pack = self._arena.find(key)
            if pack is not None and pack.manifest is not None:
                self._arena.lease(pack)
                return pack, pack.manifest
            await self._flights.run(key, lambda: self._fetch(key, layout))
        raise self._no_room()

    def release(self, pack: ArenaPack) -> None:
        """Ends a lease."""
        self._arena.release(pack)
        self._wake()

    def prefetch(self, digest: str, layout: PackLayout) -> None:
        """Brings a pack in ahead of use, unless too many hints are being followed already."""
        key = PackKey(layout=layout.digest, digest=digest)
        pack = self._arena.find(key)
        is_ready = pack is not None and pack.manifest is not None
        if not is_ready and len(self._flights) < _MAX_HINTS:
            self._flights.start(key, lambda: self._fetch(key, layout))

    async def stored(self, digest: str, layout: PackLayout) -> StoredPack:
        """A pack on disk, made from its object if need be. Raises LorikeetError."""
        key = PackKey(layout=layout.digest, digest=digest)
        with self._holds.hold(digest):
            return await self._workers.run(_find_or_build, self._disk, key, layout)

    @property
    def coming(self) -> int:
        """Packs on their way into memory."""
        return len(self._flights)

    def is_warm(self, key: PackKey) -> bool:
        """A probe."""
        pack = self._arena.find(key)
        return pack is not None and pack.state is PackState.STABLE

    def drop(self, digest: str) -> None:
        """Takes an adapter that is not busy out of memory, in every layout."""
        for pack in self._arena.packs:
            if pack.key.digest == digest:
                self._arena.drop(pack.key)
        self._wake()

    def end_grace(self) -> None:
        """Leases of the store's former life that nobody has claimed are void."""
        self._arena.end_grace()
        self._wake()

    async def close(self) -> None:
        await self._flights.close()

    async def _fetch(self, key: PackKey, layout: PackLayout) -> None:
        with self._holds.hold(key.digest):
            pack = self._arena.find(key)
            if pack is not None and pack.manifest is None:
                await self._verify(pack)
            if self._arena.find(key) is None:
                await self._bring_in(key, layout)

    async def _verify(self, pack: ArenaPack) -> None:
        stored = await self._workers.run(self._disk.find_pack, pack.key)
        if self._arena.find(pack.key) is not pack:
            return  # evicted meanwhile
        sound = stored is not None and stored.manifest.total_bytes == pack.pack_bytes
        if sound and stored is not None:
            self._arena.lease(pack)
            try:
                sound = await self._workers.run(_has_checksum, self._arena, pack, stored.checksum)
            finally:
                self._arena.release(pack)
        if sound and stored is not None:
            self._arena.mark_verified(pack, stored.manifest)
        elif self._arena.find(pack.key) is pack:
            log.warning(
                "the pack of %s in the arena is not what it should be: reading it anew", pack.key.digest
            )
            self._arena.drop(pack.key)

    async def _bring_in(self, key: PackKey, layout: PackLayout) -> None:
        for _ in range(2):
            stored = await self._workers.run(_find_or_build, self._disk, key, layout)
            pack = await self._room(key, stored.manifest.total_bytes)
            try:
                sound = await self._workers.run(_read_into, self._arena, pack, stored)
            except Exception:
                # Not when cancelled: the thread goes on writing then, and the room stays its own.
                self._abandon(pack)
                raise
            if sound:
                self._arena.publish(pack, stored.manifest)
                return
            self._abandon(pack)
            log.warning("the pack of %s on disk is damaged: making it anew", key.digest)
            await self._workers.run(self._disk.forget_pack, key)
        raise data_loss(
            "PACK_LOST", f"the store's disk does not keep the pack of {key.digest}: check the disk"
        )

    async def _room(self, key: PackKey, pack_bytes: int) -> ArenaPack:
        deadline = asyncio.get_running_loop().time() + self._room_seconds
        while (pack := self._arena.begin(key, pack_bytes)) is None:
            self._freed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._freed.wait()
            except TimeoutError as error:
                raise self._no_room() from error
        return pack

    def _abandon(self, pack: ArenaPack) -> None:
        self._arena.abandon(pack)
        self._wake()

    def _wake(self) -> None:
        self._freed.set()

    def _no_room(self) -> LorikeetError:
        return resource_exhausted(
            "ARENA_FULL",
            "everything in the store's memory is being copied by executors: retry, or start the store with a "
            "larger arena_bytes",
            retry_after=1.0,
        )


def _find_or_build(disk: DiskTier, key: PackKey, layout: PackLayout) -> StoredPack:
    return disk.find_pack(key) or rebuild_pack(disk, key.digest, layout)


def _read_into(arena: Arena, pack: ArenaPack, stored: StoredPack) -> bool:
    with arena.view(pack) as view, stored.path.open("rb", buffering=0) as file:
        done = 0
        while done < len(view) and (step := file.readinto(view[done:])):
            done += step
        return done == len(view) and blake3.blake3(view).hexdigest() == stored.checksum


def _has_checksum(arena: Arena, pack: ArenaPack, checksum: str) -> bool:
    with arena.view(pack) as view:
        return blake3.blake3(view).hexdigest() == checksum
