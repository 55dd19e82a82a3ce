"""Loading, unloading and listing adapters: what the catalog's clients can do."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from adapter_store.catalog.adapter_names import check_name
from adapter_store.catalog.catalog import Catalog
from adapter_store.catalog.history import Pointer
from adapter_store.catalog.views import AdapterView, Event, Progress, Stage, State
from adapter_store.concurrency.calls import KeyedLock, SingleFlight
from adapter_store.loads.loader import Loader
from adapter_store.loads.request import LoadRequest
from adapter_store.peers.followers import Follower, Followers, Target, target_of
from adapter_store.peers.watchers import Watcher, Watchers
from adapter_store.records.layouts import Layouts
from adapter_store.records.ledger import Ledger
from adapter_store.tiers.files import file_errors
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.warm import WarmTier
from rpc.errors import LorikeetError, resource_exhausted


class Admin:
    """Runs the calls of the catalog service. Belongs to the event loop.

    Args:
        check_free: raises LorikeetError for a new name that a tenant may not have for itself.
        max_pending_loads: loads running or waiting at once.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        ledger: Ledger,
        layouts: Layouts,
        loader: Loader,
        warm: WarmTier,
        followers: Followers,
        watchers: Watchers,
        check_free: Callable[[str], Awaitable[None]],
        max_pending_loads: int,
    ) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._layouts = layouts
        self._loader = loader
        self._warm = warm
        self._followers = followers
        self._watchers = watchers
        self._check_free = check_free
        self._max_pending = max_pending_loads
        # Attempts are tasks of their own: a caller that goes away must not stop a change half-way.
        self._flights: SingleFlight[tuple[AdapterView, bool]] = SingleFlight()
        self._names = KeyedLock()
        # Names that were removed and whose digest still retires.
        self._unloading: dict[str, list[AdapterView]] = {}
        ledger.on_settled(self._tell_unloaded)

    @property
    def pending(self) -> int:
        """Loads and unloads that run or wait."""
        return len(self._flights)

    async def load(self, request: LoadRequest) -> tuple[AdapterView, bool]:
        """Points a name at what a source has; the second value is False when it did already.

        Goes on when the caller is cancelled. A caller who wants the same joins one that waits, but never one
        that reads its source already: what it reads may be older than what this caller has put there.

        Raises:
            LorikeetError: see AdapterService.LoadAdapter.
        """
        check_name(request.name)
        key = request.flight
        if key not in self._flights and len(self._flights) >= self._max_pending:
            raise resource_exhausted(
                "TOO_MANY_LOADS", f"{self._max_pending} loads are running or waiting already", retry_after=1.0
            )
        return await self._flights.run(key, lambda: self._load(request))

    async def roll_back(
        self, name: str, *, digest: str = "", expected_digest: str = "", tenant: str = ""
    ) -> AdapterView:
        """Points a name back at the latest earlier version, or at the one with this digest.

        Raises LorikeetError: NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, ABORTED, INVALID_ARGUMENT.
        """
        # Decided again when the name moves; this saves the wait for its turn.
        self._catalog.owned(name, tenant)
        key = ("rollback", name, digest, expected_digest, tenant)
        view, _ = await self._flights.run(key, lambda: self._roll_back(name, digest, expected_digest, tenant))
        return view

    async def unload(
        self, name: str, *, force: bool = False, expected_digest: str = "", tenant: str = ""
    ) -> AdapterView:
        """Removes a name; with `force` its requests in flight end too.

        Raises LorikeetError: NOT_FOUND, PERMISSION_DENIED, ABORTED, INVALID_ARGUMENT.
        """
        self._catalog.owned(name, tenant)
        key = ("unload", name, force, expected_digest, tenant)
        view, _ = await self._flights.run(key, lambda: self._unload(name, force, expected_digest, tenant))
        return view

    def get(self, name: str) -> AdapterView:
        """Raises LorikeetError: NOT_FOUND."""
        return self._view(self._catalog.get(name))

    def page(self, size: int, token: str) -> tuple[list[AdapterView], str]:
        """A page of adapters by name, and the token of the next. Raises LorikeetError: INVALID_ARGUMENT."""
        pointers, following = self._catalog.page(size, token)
        return [self._view(pointer) for pointer in pointers], following

    def prefetch(self, adapter: str) -> None:
        """Brings an adapter into memory, some time soon. Raises LorikeetError: NOT_FOUND."""
        self._warm.prefetch(self._catalog.resolve(adapter), self._layouts.current)

    def follow(self, acts_by: int) -> Follower:
        """Begins a Follow stream of a frontend that acts by a revision already, or by 0; `Followers.leave`
        ends it.
        """

        def snapshot() -> list[Target]:
            return [target_of(self._catalog, pointer) for pointer in self._catalog.pointers()]

        return self._followers.join(self._catalog.revision, snapshot, acts_by=acts_by)

    def watch(self, name: str) -> Watcher:
        """Begins a Watch stream; `Watchers.leave` ends it. Raises LorikeetError: RESOURCE_EXHAUSTED."""
        pointers = [pointer for pointer in self._catalog.pointers() if name in ("", pointer.name)]
        return self._watchers.join(name, [Event(adapter=self._view(pointer)) for pointer in pointers])

    async def close(self) -> None:
        """Cancels what runs and waits for it."""
        await self._flights.close()

    async def _load(self, request: LoadRequest) -> tuple[AdapterView, bool]:
        async with self._names.hold(request.name):
            self._flights.depart(request.flight)
            try:
                with file_errors():
                    view, changed = await self._load_alone(request)
            except Exception as error:
                known = isinstance(error, LorikeetError)
                message = str(error) if known else "internal error: the store's log has the reason"
                self._publish(self._unfinished(request, State.FAILED), error=message)
                raise
            self._publish(view)
        # Also when nothing changed: a former attempt may have ended before everyone had heard of it.
        await self._followers.caught_up(view.revision)
        return view, changed

    async def _load_alone(self, request: LoadRequest) -> tuple[AdapterView, bool]:
        name, loading = request.name, self._unfinished(request, State.LOADING)
        # Both are decided again when the name moves; this saves the work.
        self._catalog.check_owner(name, request.tenant, for_everyone=request.for_everyone)
        self._catalog.check_expected(name, request.expected_digest)
        before = self._catalog.find(name)
        if before is None and request.tenant:
            await self._check_free(name)

        def report(progress: Progress) -> None:
            self._publish(loading, progress)

        report(Progress(stage=Stage.COPY, bytes_done=0, bytes_total=0))
        layout = self._layouts.current
        async with self._loader.load(request.reader, layout, report) as version:
            request.check_content(version)
            change = await self._ledger.do(
                lambda: self._catalog.plan_point(
                    name,
                    version,
                    request.source,
                    time.time_ns(),
                    expected=request.expected_digest,
                    tenant=request.tenant,
                    for_everyone=request.for_everyone,
                    pinned=request.pinned,
                )
            )
            self._warm.prefetch(version.digest, layout)
        moved = change is not None and (before is None or before.digest != version.digest)
        return self._view(self._catalog.get(name)), moved

    async def _roll_back(
        self, name: str, digest: str, expected: str, tenant: str
    ) -> tuple[AdapterView, bool]:
        async with self._names.hold(name):
            change = await self._ledger.do(
                lambda: self._catalog.plan_rollback(name, digest, expected, tenant)
            )
            view = self._view(self._catalog.get(name))
            if change is not None:
                if (layout := self._layouts.latest) is not None:
                    self._warm.prefetch(view.digest, layout)
                self._publish(view)
        await self._followers.caught_up(view.revision)
        return view, change is not None

    async def _unload(self, name: str, force: bool, expected: str, tenant: str) -> tuple[AdapterView, bool]:
        async with self._names.hold(name):
            gone = self._view(self._catalog.get(name))
            change = await self._ledger.do(
                lambda: self._catalog.plan_remove(name, expected, tenant), abort_running=force
            )
            assert change is not None
            view = replace(gone, state=State.UNLOADING, revision=change.revision, is_warm=False)
            self._publish(view)
            self._unloading.setdefault(gone.digest, []).append(view)
            if gone.digest not in change.retired:
                self._tell_unloaded(gone.digest)
        await self._followers.caught_up(change.revision)
        is_retiring = view in self._unloading.get(gone.digest, [])
        return (view if is_retiring else replace(view, state=State.UNLOADED)), True

    def _tell_unloaded(self, digest: str) -> None:
        for view in self._unloading.pop(digest, []):
            self._publish(replace(view, state=State.UNLOADED))

    def _publish(self, view: AdapterView, progress: Progress | None = None, error: str = "") -> None:
        self._watchers.publish(Event(adapter=view, progress=progress, error=error))

    def _unfinished(self, request: LoadRequest, state: State) -> AdapterView:
        return AdapterView(
            name=request.name,
            source=request.source,
            state=state,
            revision=self._catalog.revision,
            tenant=request.tenant,
        )

    def _view(self, pointer: Pointer) -> AdapterView:
        keys = (PackKey(layout=layout, digest=pointer.digest) for layout in self._layouts.digests)
        return AdapterView(
            name=pointer.name,
            source=pointer.source,
            state=State.ACTIVE,
            revision=pointer.revision,
            pointer=pointer,
            version=self._catalog.version(pointer.digest),
            tenant=pointer.tenant,
            is_warm=any(map(self._warm.is_warm, keys)),
        )
