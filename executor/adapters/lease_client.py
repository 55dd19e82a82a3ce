"""The executor's side of the store's PackService: one Lease stream, kept up over restarts of the store."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from executor.adapters.arena_view import ArenaView, StalePackError
from executor.adapters.lease_outbox import LeaseOutbox
from executor.adapters.manifest import ManifestChecker, ManifestError
from executor.adapters.placements import Placements
from executor.adapters.recent import Recent
from lorikeet.v1 import layout_pb2, store_pb2, store_pb2_grpc
from rpc.errors import LorikeetError, data_loss, from_code, from_rpc, internal, unavailable

log = logging.getLogger(__name__)

_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_STEADY_SECONDS = 5.0
_REGISTER_TIMEOUT_SECONDS = 10.0
_MAX_QUEUED_HINTS = 256
# Some 150 bytes each.
_MOST_SLICES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lease:
    """A pack, which stays where it is until the lease is given back; what lies there later is still the pack
    while its generation is the same. `view` is None where its bytes must be fetched in chunks.
    """

    number: int
    header_offset: int
    pack_offset: int
    generation: int
    manifest: layout_pb2.PackManifest
    places: Placements
    view: ArenaView | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """A lease that was asked for at a time of the loop's, and whom to tell."""

    digest: str
    granted: Callable[[Lease], None]
    failed: Callable[[LorikeetError], None]
    since: float


class LeaseClient:
    """Leases packs from one store. All methods but `recall` belong to the event loop's thread.

    `run` connects, publishes the layout and keeps the stream up until it is cancelled. While the store is
    away who asks for a lease waits for at least `patience_seconds` and at most twice as long.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        layout: layout_pb2.Layout,
        layout_digest: str,
        incarnation: str,
        arena_dir: Path | None,
        patience_seconds: float,
    ) -> None:
        self._stub = store_pb2_grpc.PackServiceStub(channel)
        self._layout = layout
        self._layout_digest = layout_digest
        self._checker = ManifestChecker(layout, layout_digest)
        self._incarnation = incarnation
        self._arena_dir = arena_dir
        self._patience = patience_seconds
        self._on_retire: Callable[[str], None] = lambda digest: None
        self._on_map: Callable[[ArenaView], Awaitable[None]] | None = None
        self._outgoing: LeaseOutbox | None = None
        self._since: float | None = None
        self._view: ArenaView | None = None
        self._next = 1
        self._asked: dict[int, _Asked] = {}
        self._held: dict[int, Lease] = {}
        # What was leased on this stream, wherever it lies now; for two threads.
        self._known: Recent[Lease] = Recent(_MOST_SLICES)
        self._knowing = threading.Lock()
        self._away_since = 0.0
        self._patience_timer: asyncio.TimerHandle | None = None
        self.registered = asyncio.Event()
        """Set once the store has taken the layout."""

    @property
    def connected(self) -> bool:
        return self._outgoing is not None

    @property
    def held(self) -> int:
        """Leases that are held now."""
        return len(self._held)

    def recall(self, digest: str) -> Lease | None:
        """A pack that was leased on this stream before, if it lies where it lay then. From any thread.

        No lease keeps it there: who copies it must look at its generation, before and after. There is nothing
        to give back, but the store is to hear of it by `used`.
        """
        with self._knowing:
            lease = self._known.find(digest)
        if lease is None or lease.view is None or not self.connected:
            return None
        try:
            lease.view.check(lease.header_offset, lease.generation)
        except StalePackError:
            return None
        return lease

    def used(self, digest: str) -> None:
        """Tells that a pack was copied without a lease: what is used often stays."""
        self._send(store_pb2.LeaseRequest(used=store_pb2.UsedPack(digest=digest)), is_urgent=False)

    def ask(
        self, digest: str, granted: Callable[[Lease], None], failed: Callable[[LorikeetError], None]
    ) -> int:
        """Asks for a lease, which the store may first have to read and pack: one of the two is called with
        what comes of it, unless it is ended before. Returns the lease's number.
        """
        number, self._next = self._next, self._next + 1
        since = asyncio.get_running_loop().time()
        self._asked[number] = _Asked(digest=digest, granted=granted, failed=failed, since=since)
        if self.connected:
            self._send(_acquire(number, digest))
        else:
            self._watch_patience()
        return number

    def end(self, number: int) -> None:
        """Gives a lease back, or takes back that it was asked for; nothing where there is neither."""
        asked, held = self._asked.pop(number, None), self._held.pop(number, None)
        if asked is not None or held is not None:
            self._send(_release(number), is_urgent=False)

    def prefetch(self, digest: str) -> None:
        """Hints that a pack will be leased soon; dropped when the store is away or slow."""
        if self._outgoing is not None and len(self._outgoing) < _MAX_QUEUED_HINTS:
            self._send(store_pb2.LeaseRequest(prefetch=store_pb2.PrefetchPack(digest=digest)))

    def retired(self, digest: str) -> None:
        """Tells that nothing of a retired digest is left here."""
        retired = store_pb2.RetiredAdapter(digest=digest)
        self._send(store_pb2.LeaseRequest(retired=retired), is_urgent=False)

    async def fetch(self, lease: Lease) -> bytearray:
        """The pack's bytes through gRPC, for want of a shared arena. Raises LorikeetError."""
        request = store_pb2.FetchPackRequest(digest=lease.manifest.digest, layout_digest=self._layout_digest)
        pack = bytearray()
        try:
            async for chunk in self._stub.FetchPack(request):
                pack += chunk.data
                if len(pack) > lease.manifest.total_bytes:
                    break
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        if len(pack) != lease.manifest.total_bytes:
            raise data_loss(
                "PACK_SIZE", f"the store sent {len(pack)} bytes of a pack of {lease.manifest.total_bytes}"
            )
        return pack

    async def run(
        self,
        on_retire: Callable[[str], None],
        on_map: Callable[[ArenaView], Awaitable[None]] | None = None,
    ) -> None:
        """Keeps the stream up; returns only by cancellation. `on_retire` hears of digests that no name points
        to, `on_map` sees each arena before the first lease of it.
        """
        self._on_retire, self._on_map = on_retire, on_map
        failures = 0
        while True:
            reason: LorikeetError | str = "it closed the lease stream"
            try:
                await self._connect()
            except (grpc.aio.AioRpcError, LorikeetError) as error:
                reason = from_rpc(error) if isinstance(error, grpc.aio.AioRpcError) else error
            finally:
                self._lose_stream()
            # A stream that ends as it begins is a failure too, however politely.
            since, self._since = self._since, None
            steady = since is not None and time.monotonic() - since > _STEADY_SECONDS
            failures = 0 if steady else failures + 1
            if is_news(failures):
                log.warning("no adapter store, trying again: %s", reason)
            await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])

    async def _connect(self) -> None:
        """One life of the stream: ends with it, or raises what ended it."""
        registered = await self._stub.RegisterLayout(
            store_pb2.RegisterLayoutRequest(layout=self._layout), timeout=_REGISTER_TIMEOUT_SECONDS
        )
        if registered.layout_digest != self._layout_digest:
            raise internal(
                "LAYOUT_DIGEST", "the store computes another digest of our layout: versions differ"
            )
        await self._map(registered)
        with self._knowing:
            self._known = Recent(_MOST_SLICES)
        outgoing = LeaseOutbox()
        call = self._stub.Lease(outgoing.messages(self._hello()))
        try:
            self._outgoing = outgoing
            for number, asked in self._asked.items():
                self._send(_acquire(number, asked.digest))
            self.registered.set()
            self._since = time.monotonic()
            async for response in call:
                self._receive(response)
        finally:
            call.cancel()

    async def _map(self, registered: store_pb2.RegisterLayoutResponse) -> None:
        if self._arena_dir is None:
            return
        path, size = self._arena_dir / Path(registered.arena_file).name, registered.arena_bytes
        if self._view is not None and self._view.shows(path, size):
            return
        self._view = None
        try:
            view = ArenaView(path, size)
        except (OSError, ValueError) as error:
            log.warning("cannot map the store's arena, fetching packs through gRPC instead: %s", error)
            return
        if self._on_map is not None:
            await self._on_map(view)
        self._view = view

    def _hello(self) -> store_pb2.LeaseHello:
        return store_pb2.LeaseHello(
            layout_digest=self._layout_digest,
            incarnation=self._incarnation,
            held=[
                store_pb2.HeldLease(
                    digest=lease.manifest.digest,
                    header_offset=lease.header_offset,
                    generation=lease.generation,
                )
                for lease in self._held.values()
            ],
        )

    def _receive(self, response: store_pb2.LeaseResponse) -> None:
        match response.WhichOneof("message"):
            case "grant":
                self._granted(response.grant)
            case "refusal":
                refusal = response.refusal
                asked = self._asked.pop(refusal.lease, None)
                if asked is not None:
                    asked.failed(from_code(refusal.code, refusal.reason, refusal.message))
            case "retire":
                # From here on the store has to say whether it is there.
                with self._knowing:
                    self._known.forget(response.retire.digest)
                self._on_retire(response.retire.digest)
            case "batch":
                for each in response.batch.responses:
                    self._receive(each)
            case _:
                log.warning("the adapter store sent a message that this version does not know")

    def _granted(self, grant: store_pb2.LeaseGrant) -> None:
        asked = self._asked.pop(grant.lease, None)
        if asked is None:
            return  # given up meanwhile; its release is on the way
        try:
            places = self._checker.check(grant.manifest, asked.digest)
        except ManifestError as error:
            self._send(_release(grant.lease))
            asked.failed(internal("BAD_MANIFEST", f"the adapter store sent a wrong manifest: {error}"))
            return
        lease = Lease(
            number=grant.lease,
            header_offset=grant.header_offset,
            pack_offset=grant.pack_offset,
            generation=grant.generation,
            manifest=grant.manifest,
            places=places,
            view=self._view,
        )
        self._held[lease.number] = lease
        with self._knowing:
            self._known.keep(asked.digest, lease, len(places.slices))
        asked.granted(lease)

    def _lose_stream(self) -> None:
        if self._outgoing is not None:
            self._outgoing, self._away_since = None, asyncio.get_running_loop().time()
        if self._asked:
            self._watch_patience()

    def _watch_patience(self) -> None:
        if self._patience_timer is None:
            loop = asyncio.get_running_loop()
            self._patience_timer = loop.call_later(self._patience, self._lose_patience)

    def _lose_patience(self) -> None:
        """Fails who has waited for long enough while the store is away."""
        self._patience_timer = None
        if self.connected:
            return
        # A timer may be a little early by the clock.
        latest = asyncio.get_running_loop().time() - self._patience + 0.001
        for number, asked in list(self._asked.items()):
            if max(asked.since, self._away_since) <= latest:
                del self._asked[number]
                away = "the adapter store cannot be reached: retry once it is back"
                asked.failed(unavailable("ADAPTER_STORE_AWAY", away))
        if self._asked:
            self._watch_patience()

    def _send(self, request: store_pb2.LeaseRequest, *, is_urgent: bool = True) -> None:
        # Without a stream there is nothing to tell: the store forgot our leases with it, and acquires are
        # sent anew.
        if self._outgoing is not None:
            self._outgoing.say(request, is_urgent=is_urgent)


def is_news(failures: int) -> bool:
    """Whether it is worth a warning that so many connections failed in a row; 0: a steady one has ended.

    A store that starts beside us may need a second or two more.
    """
    return failures in (0, 5, 10) or failures % 60 == 0


def _acquire(number: int, digest: str) -> store_pb2.LeaseRequest:
    return store_pb2.LeaseRequest(acquire=store_pb2.AcquireLease(lease=number, digest=digest))


def _release(number: int) -> store_pb2.LeaseRequest:
    return store_pb2.LeaseRequest(release=store_pb2.ReleaseLease(lease=number))
