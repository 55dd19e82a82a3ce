"""Packs as streams of chunks, for executors that cannot map the arena."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapter_store.catalog.adapter_names import unknown_digest
from adapter_store.catalog.catalog import Catalog
from adapter_store.formats.layout import PackLayout
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.warm import WarmTier
from lorikeet.v1 import layout_pb2
from rpc.digests import is_digest

_CHUNK_BYTES = 512 << 10


class PackChunks:
    """Reads packs from the arena, leased for as long as a chunk takes: a slow reader keeps nothing there.

    A pack's bytes follow from its digest and layout alone, so a reader whose pack was evicted between two
    chunks goes on in the one that was made anew.
    """

    def __init__(self, *, catalog: Catalog, warm: WarmTier, arena: Arena) -> None:
        self._catalog = catalog
        self._warm = warm
        self._arena = arena

    @asynccontextmanager
    async def open(
        self, digest: str, layout: PackLayout
    ) -> AsyncIterator[tuple[layout_pb2.PackManifest, AsyncIterator[bytes]]]:
        """A pack's manifest and its bytes in order.

        Raises:
            LorikeetError: NOT_FOUND, also when the adapter is unloaded meanwhile; what `WarmTier.acquire`
                raises.
        """
        self._check_known(digest)
        pack = await self._warm.acquire(digest, layout)
        manifest = pack.manifest
        assert manifest is not None
        self._warm.release(pack)
        yield manifest, self._read(digest, layout, manifest.total_bytes)

    async def _read(self, digest: str, layout: PackLayout, total: int) -> AsyncIterator[bytes]:
        for start in range(0, total, _CHUNK_BYTES):
            self._check_known(digest)
            pack = await self._warm.acquire(digest, layout)
            try:
                with self._arena.view(pack) as view:
                    chunk = bytes(view[start : start + _CHUNK_BYTES])
            finally:
                self._warm.release(pack)
            yield chunk

    def _check_known(self, digest: str) -> None:
        if not is_digest(digest) or not self._catalog.knows(digest):
            raise unknown_digest(digest)
