"""Packs as streams of chunks, for executors that cannot map the arena."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

import blake3

from adapter_store.catalog import Catalog
from adapter_store.concurrency import Workers
from adapter_store.formats.layout import PackLayout
from adapter_store.formats.strict_json import printable
from adapter_store.tiers.disk import DiskTier, StoredPack
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.warm import WarmTier
from lorikeet.v1 import layout_pb2
from rpc.digests import is_digest
from rpc.errors import data_loss, not_found

_CHUNK_BYTES = 512 << 10


class PackChunks:
    """Reads packs from the disk tier: a slow reader must not keep one in the arena."""

    def __init__(self, *, catalog: Catalog, warm: WarmTier, disk: DiskTier, workers: Workers) -> None:
        self._catalog = catalog
        self._warm = warm
        self._disk = disk
        self._workers = workers

    @asynccontextmanager
    async def open(
        self, digest: str, layout: PackLayout
    ) -> AsyncIterator[tuple[layout_pb2.PackManifest, AsyncIterator[bytes]]]:
        """A pack's manifest and its bytes in order.

        Raises:
            LorikeetError: NOT_FOUND; what the adapter does not fit; DATA_LOSS, after the last byte, when the
                file was damaged, and then it is made anew for the next reader.
        """
        if not is_digest(digest) or not self._catalog.knows(digest):
            raise not_found("UNKNOWN_DIGEST", f"no adapter with digest {printable(digest, 80)!r} is loaded")
        stored = await self._warm.stored(digest, layout)
        try:
            # Open, the file outlives its name.
            file = await self._workers.run(stored.path.open, "rb", buffering=0)
        except FileNotFoundError:
            raise not_found("UNKNOWN_DIGEST", f"the adapter with digest {digest} was just unloaded") from None
        with file:
            yield stored.manifest, self._read(file, stored)

    async def _read(self, file: BinaryIO, stored: StoredPack) -> AsyncIterator[bytes]:
        hasher = blake3.blake3()
        while chunk := await self._workers.run(file.read, _CHUNK_BYTES):
            hasher.update(chunk)
            yield chunk
        if hasher.hexdigest() != stored.checksum:
            manifest = stored.manifest
            self._disk.forget_pack(PackKey(layout=manifest.layout_digest, digest=manifest.digest))
            raise data_loss("PACK_DAMAGED", "the pack was damaged on the store's disk: fetch it again")
