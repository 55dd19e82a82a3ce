"""Checksums of packs and their manifests: what one is known by when it is made again, and when a later store
finds it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from adapter_store.concurrency.crew import Urgency
from adapter_store.packs.recipe import manifest_bytes
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.objects import checksum_of
from adapter_store.tiers.pack import ArenaPack, PackState
from adapter_store.tiers.recipes import Recipes
from lorikeet.v1 import layout_pb2

# A little later and several at once: what came is wanted first, and some will have left by then.
_SECONDS = 0.1
_BATCH_BYTES = 4 << 20


class Sealer:
    """Notes the checksums of packs that came; nobody waits for it. Belongs to the event loop.

    Args:
        run: runs a blocking function on a thread that gives way.
        released: called when packs that were held for this are held no more.
    """

    def __init__(
        self,
        *,
        arena: Arena,
        recipes: Recipes,
        run: Callable[..., Awaitable[Any]],
        released: Callable[[], None],
    ) -> None:
        self._arena = arena
        self._recipes = recipes
        self._thread = run
        self._released = released
        self._waiting: list[ArenaPack] = []
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._task is not None)

    def add(self, pack: ArenaPack) -> None:
        """Seals a stable pack some time soon, if it is still there."""
        self._waiting.append(pack)
        if self._timer is None and self._task is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._begin)

    async def close(self) -> None:
        """Seals what waits, at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._begin()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> None:
        self._timer = None
        self._task = asyncio.ensure_future(self._seal())

    async def _seal(self) -> None:
        try:
            while batch := self._next():
                for pack in batch:
                    self._arena.hold(pack)
                try:
                    for pack, checksum in await self._thread(_checksums, self._arena, batch):
                        self._arena.set_checksum(pack, checksum)
                        self._recipes.note_checksum(pack.key, checksum)
                finally:
                    for pack in batch:
                        self._arena.release(pack)
                    self._released()
        finally:
            self._task = None

    def _next(self) -> list[ArenaPack]:
        """Not many bytes, for they cannot leave meanwhile."""
        batch: list[ArenaPack] = []
        while self._waiting and sum(pack.pack_bytes for pack in batch) < _BATCH_BYTES:
            pack = self._waiting.pop(0)
            if pack.state is PackState.STABLE:
                batch.append(pack)
        return batch


def pack_checksum(
    arena: Arena, pack: ArenaPack, manifest: layout_pb2.PackManifest, urgency: Urgency | None = None
) -> bytes:
    """Of a pack that somebody holds: for a worker thread."""
    with arena.view(pack) as view:
        return checksum_of(view, manifest_bytes(manifest), urgency)


def _checksums(arena: Arena, packs: list[ArenaPack]) -> list[tuple[ArenaPack, bytes]]:
    return [(pack, pack_checksum(arena, pack, pack.manifest)) for pack in packs if pack.manifest is not None]
