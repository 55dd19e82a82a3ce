"""Adapters loaded when somebody first asks for their name. Off unless configured."""

import time
from collections import OrderedDict
from collections.abc import Callable

import grpc

from adapter_store.catalog.adapter_names import check_name
from adapter_store.catalog.history import NOTHING
from adapter_store.catalog.views import AdapterView
from adapter_store.concurrency.calls import SingleFlight
from adapter_store.concurrency.outside_reads import OutsideReads
from adapter_store.concurrency.workers import Workers
from adapter_store.loads.admin import Admin
from adapter_store.loads.request import MAY_PASS, LoadRequest
from adapter_store.sources.folder import FolderReader
from adapter_store.sources.opening import Sources
from adapter_store.sources.remote import RemoteReader
from rpc.errors import LorikeetError, not_found, permission_denied, resource_exhausted

# Anybody who may generate can ask for any name: what that costs is bounded.
_MAX_PENDING = 16
_MAX_REMEMBERED = 4096
_REFUSED_SECONDS = 10.0
_BUSY_SECONDS = 1.0
_NOTHING_THERE = ("NO_SOURCE", "NO_CONFIG")
_NOT_TO_BE_HAD = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
)


class SharedNames:
    """The names that have an adapter in the place for unknown ones: those are everyone's.

    Args:
        place: a folder or URL that `sources` can open; "" has no names.
        reads, fetchers: threads that look into a folder; that ask over a network.
    """

    def __init__(self, *, sources: Sources, place: str, reads: OutsideReads, fetchers: Workers) -> None:
        self._sources = sources
        self._place = place.rstrip("/")
        self._reads = reads
        self._fetchers = fetchers

    def __bool__(self) -> bool:
        return bool(self._place)

    def open(self, name: str) -> FolderReader | RemoteReader:
        """A reader of where a name is looked for."""
        return self._sources.open(f"{self._place}/{name}")

    async def check_free(self, name: str) -> None:
        """For a name that a tenant wants for itself. What the store cannot read there is nobody's.

        Raises LorikeetError: PERMISSION_DENIED for a name that is everyone's, UNAVAILABLE while that is
            unknown.
        """
        if not self:
            return
        try:
            is_shared = await self._is_there(self.open(name))
        except LorikeetError as error:
            if error.code not in _NOT_TO_BE_HAD:
                raise
            return
        if is_shared:
            raise permission_denied(
                "NAME_TAKEN",
                f"{name} is the name of an adapter for everyone, which is loaded when it is first asked for: "
                "choose another name",
            )

    async def _is_there(self, reader: FolderReader | RemoteReader) -> bool:
        if isinstance(reader, RemoteReader):
            return await self._fetchers.run(reader.is_there)
        return await self._reads.run(reader.place, lambda _: reader.is_there())


class Resolver:
    """Loads a shared name when it is unknown. Belongs to the event loop.

    Callers who ask for one name share one load; a refusal is remembered for some seconds.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self, *, admin: Admin, shared: SharedNames, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._admin = admin
        self._shared = shared
        self._clock = clock
        # Loads go on when those who asked leave, and count until they end.
        self._flights: SingleFlight[AdapterView] = SingleFlight()
        self._refused: OrderedDict[str, tuple[float, LorikeetError]] = OrderedDict()

    async def resolve(self, name: str) -> AdapterView:
        """The adapter with this name, loaded if need be.

        Raises:
            LorikeetError: NOT_FOUND (RESOLVING_OFF where nothing is resolved), RESOURCE_EXHAUSTED, and those
                of `Admin.load`.
        """
        if not self._shared:
            raise not_found("RESOLVING_OFF", "the store loads no adapter by itself: load it with LoadAdapter")
        check_name(name)
        known = self._find(name)
        if known is not None:
            return known
        self._check_refused(name)
        if name not in self._flights and len(self._flights) >= _MAX_PENDING:
            raise resource_exhausted(
                "TOO_MANY_LOADS", f"{_MAX_PENDING} unknown adapters are being loaded already", retry_after=1.0
            )
        return await self._flights.run(name, lambda: self._load(name))

    async def _load(self, name: str) -> AdapterView:
        # Only as long as nobody has loaded something else under that name: it may be a tenant's.
        request = LoadRequest(name=name, reader=self._shared.open(name), expected_digest=NOTHING)
        try:
            view, _ = await self._admin.load(request)
        except LorikeetError as error:
            if (known := self._find(name)) is not None:
                return known
            # Who asks for a name need not know where names are looked for.
            told = _nowhere(name) if error.reason in _NOTHING_THERE else error
            self._remember(name, told)
            raise told from None
        return view

    def _find(self, name: str) -> AdapterView | None:
        try:
            return self._admin.get(name)
        except LorikeetError:
            return None

    def _check_refused(self, name: str) -> None:
        until, error = self._refused.get(name, (0.0, None))
        if error is not None and self._clock() < until:
            raise error
        self._refused.pop(name, None)

    def _remember(self, name: str, error: LorikeetError) -> None:
        seconds = _BUSY_SECONDS if error.code in MAY_PASS else _REFUSED_SECONDS
        self._refused[name] = (self._clock() + seconds, error)
        self._refused.move_to_end(name)
        while len(self._refused) > _MAX_REMEMBERED:
            self._refused.popitem(last=False)


def _nowhere(name: str) -> LorikeetError:
    return not_found(
        "ADAPTER_NOT_FOUND",
        f"no adapter is loaded as {name!r}, and the store finds none: load it, or list what there is",
        adapter=name,
    )
