"""Names that the catalog lacks: the store may know where to find them."""

import grpc

from frontend.adapters.catalog import Catalog
from frontend.adapters.references import AdapterRef
from lorikeet.v1 import store_pb2, store_pb2_grpc
from rpc.errors import LorikeetError, from_rpc, unavailable

_LONGEST_SECONDS = 600.0


class Resolver:
    """Has the store load what the catalog lacks, where the store does that.

    Args:
        catalog: what is known.
        stub: of the store's CatalogService; None without a store.
    """

    def __init__(self, *, catalog: Catalog, stub: store_pb2_grpc.CatalogServiceStub | None) -> None:
        self._catalog = catalog
        self._stub = stub
        self._asks = stub is not None
        self._resolves = False

    def store_changed(self) -> None:
        """Another store may be there, with other settings: it is asked anew."""
        self._asks = self._stub is not None
        self._resolves = False

    async def prepare(self, adapter: AdapterRef, remaining_seconds: float | None) -> None:
        """Returns once the catalog has an adapter's name, or nobody can bring it there.

        Raises LorikeetError: why the store could not load it.
        """
        if not (self._asks and adapter.name):
            return
        try:
            self._catalog.resolve(adapter)
        except LorikeetError as error:
            if error.reason == "ADAPTER_NOT_FOUND":
                # A store answers once the catalogs of its frontends have the name.
                await self._ask(adapter.name, remaining_seconds)

    async def _ask(self, name: str, remaining_seconds: float | None) -> None:
        assert self._stub is not None
        timeout = min(_LONGEST_SECONDS if remaining_seconds is None else remaining_seconds, _LONGEST_SECONDS)
        try:
            await self._stub.Resolve(store_pb2.ResolveAdapterRequest(name=name), timeout=timeout)
        except grpc.aio.AioRpcError as raised:
            error = from_rpc(raised)
            if error.reason == "RESOLVING_OFF" or error.code is grpc.StatusCode.UNIMPLEMENTED:
                self._asks = False
                return
            if error.code is grpc.StatusCode.UNAVAILABLE and error.reason == error.code.name:
                # Nobody there: a name that only a resolving store could know may come back with it.
                if not self._resolves:
                    return
                away = "the adapter store cannot be reached: retry later"
                raise unavailable("STORE_AWAY", away) from raised
            self._resolves = True
            if error.reason == "ADAPTER_NOT_FOUND":
                # The catalog says so, in the words that it has for another tenant's.
                return
            raise error from raised
        self._resolves = True
