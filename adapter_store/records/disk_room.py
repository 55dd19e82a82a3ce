"""Room on the disk for a load that exceeds the quota: kept versions are given up, oldest first."""

import asyncio
import logging

from adapter_store.catalog.catalog import Catalog
from adapter_store.records.ledger import Ledger
from adapter_store.tiers.disk import DiskTier

log = logging.getLogger(__name__)


class DiskRoom:
    """Gives up what names could go back to, never what one points to. Belongs to the event loop.

    Args:
        seconds: how long to wait for executors that still have requests of a version.
    """

    def __init__(self, *, catalog: Catalog, ledger: Ledger, disk: DiskTier, seconds: float = 10.0) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._disk = disk
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()
        ledger.on_settled(lambda _: self._settled.set())

    async def make(self, missing: int) -> bool:
        """Gives up one version; False, and nothing given up, when all together would not do.

        Args:
            missing: bytes.
        """
        async with self._turn:
            kept = self._catalog.only_earlier()
            if not kept or sum(map(self._disk.bytes_of, kept)) < missing:
                return False
            digest = kept[0]
            log.info("the disk's quota is full: the earlier version %s is given up", digest)
            while await self._ledger.do(lambda: self._catalog.plan_forget(digest)) is not None:
                pass
            return await self._gone(digest)

    async def _gone(self, digest: str) -> bool:
        try:
            async with asyncio.timeout(self._seconds):
                # Somebody may load the same again meanwhile.
                while self._catalog.keeps(digest) and digest in self._catalog.retiring:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            return False
        return True
