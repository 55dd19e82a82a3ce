"""Keeps the catalog up with the store, and tells the store how far it has got."""

import logging
from collections.abc import Callable

from frontend.adapters.catalog import Catalog
from frontend.reconnect import Backoff, closed, why_ended
from lorikeet.v1 import store_pb2, store_pb2_grpc
from rpc.errors import LorikeetError

log = logging.getLogger(__name__)


class CatalogFollower:
    """Follows the store's catalog until cancelled; while the store is away, what is known stays in force.

    Args:
        stub: of the store's CatalogService.
        catalog: written by this follower alone.
        on_snapshot: called in the event loop after each snapshot.
    """

    def __init__(
        self,
        *,
        stub: store_pb2_grpc.CatalogServiceStub,
        catalog: Catalog,
        on_snapshot: Callable[[], None] = lambda: None,
    ) -> None:
        self._stub = stub
        self._catalog = catalog
        self._on_snapshot = on_snapshot
        self._followed = False

    async def run(self) -> None:
        """Follows and, when the store goes away, follows again."""
        backoff, logged = Backoff(), ""
        while True:
            self._followed = False
            error = await self._follow()
            if self._followed or str(error) != logged:
                log.warning("no connection to the adapter store: %s", error)
                logged = str(error)
            if self._followed:
                backoff.reset()
            await backoff.wait()

    async def _follow(self) -> LorikeetError:
        """One stream to its end; returns why it ended."""
        call = self._stub.Follow()
        try:
            await call.write(store_pb2.FollowRequest(acknowledged_revision=self._catalog.revision))
            async for response in call:
                await self._catalog.apply_in_turns(response)
                await call.write(store_pb2.FollowRequest(acknowledged_revision=response.revision))
                if response.snapshot:
                    log.info("following the adapter store at revision %d", response.revision)
                    self._followed = True
                    self._on_snapshot()
            return closed("the adapter store")
        except BaseException as error:
            return why_ended(error, "the adapter store")
        finally:
            call.cancel()
