"""Which digest each adapter name points to, as far as this frontend knows; fed by `catalog_follower`."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from frontend.adapters.references import AdapterRef
from lorikeet.v1 import store_pb2
from rpc.access import may_use
from rpc.errors import failed_precondition, not_found, unavailable
from rpc.tokens import Caller

# Names that are read between two turns of the event loop: 2 ms.
_SLICE = 500


class _Names:
    """Where names point to, at one revision."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.of: dict[str, dict[str, None]] = {}
        """Of each digest that a name points to; in the order in which they came to do so."""
        self.tenants: dict[str, str] = {}
        self.templated: set[str] = set()

    def point(self, pointer: store_pb2.AdapterPointer) -> str:
        """Moves or removes a name. Returns the digest that no name points to any more, or ""."""
        old = self.digests.pop(pointer.name, "")
        if old:
            del self.of[old][pointer.name]
        if pointer.digest:
            self.digests[pointer.name] = pointer.digest
            self.of.setdefault(pointer.digest, {})[pointer.name] = None
            self.tenants[pointer.name] = pointer.tenant
            if pointer.has_chat_template:
                self.templated.add(pointer.digest)
        else:
            self.tenants.pop(pointer.name, None)
        if not old or self.of[old]:
            return ""
        del self.of[old]
        self.templated.discard(old)
        return old


class Catalog:
    """Names and their digests at one revision. What is known stays in force while the store is away.

    Args:
        has_store: False serves the base model only.
    """

    def __init__(self, *, has_store: bool) -> None:
        self._has_store = has_store
        self._names = _Names()
        self._abort_listeners: list[Callable[[str, str], None]] = []
        self._revision: int | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def known(self) -> bool:
        """True once a snapshot has been seen (or there is no store to send one)."""
        return self._revision is not None or not self._has_store

    @property
    def revision(self) -> int:
        """The revision that requests are answered by; 0 before the first."""
        return self._revision or 0

    def on_abort(self, listener: Callable[[str, str], None]) -> None:
        """`listener` hears of each name that was unloaded by force, and of its digest if no other name points
        to that."""
        self._abort_listeners.append(listener)

    def apply(self, response: store_pb2.FollowResponse) -> None:
        """Acts by a snapshot or a change from now on."""
        for _ in self._apply(response):
            pass

    async def apply_in_turns(self, response: store_pb2.FollowResponse) -> None:
        """The same, while the event loop goes on: of a snapshot nothing counts before all of it does; of
        changes each counts at once, and the revision when all of them do."""
        for _ in self._apply(response):
            await asyncio.sleep(0)

    def _apply(self, response: store_pb2.FollowResponse) -> Iterator[None]:
        yield from (self._replace if response.snapshot else self._change)(response.pointers)
        self._revision = response.revision
        for revision, waiter in self._waiters:
            if revision <= response.revision and not waiter.done():
                waiter.set_result(None)

    def _change(self, pointers: Sequence[store_pb2.AdapterPointer]) -> Iterator[None]:
        for count, pointer in enumerate(pointers, start=1):
            gone = self._names.point(pointer)
            if _ends_requests(pointer):
                self._tell_aborts(pointer.name, gone)
            if count % _SLICE == 0:
                yield

    def _replace(self, pointers: Sequence[store_pb2.AdapterPointer]) -> Iterator[None]:
        names, ended = _Names(), list[str]()
        for count, pointer in enumerate(pointers, start=1):
            names.point(pointer)
            if _ends_requests(pointer):
                ended.append(pointer.name)
            if count % _SLICE == 0:
                yield
        olds, self._names = self._names, names
        # While there was no stream. What such names pointed to only this frontend knows.
        for name in ended:
            old = olds.digests.get(name, "")
            self._tell_aborts(name, "" if old in names.of else old)

    def resolve(self, adapter: AdapterRef, caller: Caller = Caller()) -> str:  # noqa: B008 - immutable
        """The digest that answers for an adapter; "" for the base model. A digest stands for itself as
        long as a name points to it.

        Raises NOT_FOUND, also for what the caller may not use, and UNAVAILABLE while no names are known yet.
        """
        if not (adapter.name or adapter.digest):
            return ""
        if not self._has_store:
            raise failed_precondition(
                "NO_ADAPTER_STORE",
                "this server runs without an adapter store: only the base model can be asked",
            )
        if self._revision is None:
            raise unavailable("CATALOG_UNKNOWN", "the adapter store has not been reached yet: retry")
        if adapter.digest:
            if adapter.digest in self._names.of and self.may_use(adapter, caller):
                return adapter.digest
            raise not_found(
                "UNKNOWN_DIGEST",
                f"no adapter has the digest {adapter.digest} now: load it, or ask for it by name",
                adapter=adapter.digest,
            )
        digest = self._names.digests.get(adapter.name)
        if digest is None or not self.may_use(adapter, caller):
            raise not_found(
                "ADAPTER_NOT_FOUND",
                f'no adapter is named "{adapter.name}": load it with AdapterService.LoadAdapter '
                f"(lorikeet adapters load {adapter.name} SOURCE), or see ListAdapters for what there is",
                adapter=adapter.name,
            )
        return digest

    def tenant_of(self, name: str) -> str | None:
        """Whose a name is; "" for everyone's, None for a name that is not known."""
        return self._names.tenants.get(name)

    def may_use(self, adapter: AdapterRef, caller: Caller) -> bool:
        """Whether a caller may use an adapter: a name, or a digest that one of its names points to."""
        if not caller.tenant:
            return True
        names = [adapter.name] if adapter.name else self._names.of.get(adapter.digest, ())
        return any(may_use(self._names.tenants.get(name, ""), caller) for name in names)

    def _tell_aborts(self, name: str, digest: str) -> None:
        for listener in self._abort_listeners:
            listener(name, digest)

    def brings_template(self, digest: str) -> bool:
        """True for an adapter with a chat template of its own."""
        return digest in self._names.templated

    async def reach(self, revision: int) -> None:
        """Returns once requests are answered by this revision or a later one."""
        if self.revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (revision, waiter)
        self._waiters.append(entry)
        try:
            await waiter
        finally:
            self._waiters.remove(entry)

    def names_of(self, digest: str) -> list[str]:
        """The names that point to a digest."""
        return list(self._names.of.get(digest, ()))

    def statistics(self) -> dict[str, int]:
        return {"adapter_names": len(self._names.digests), "catalog_revision": self.revision}


def _ends_requests(pointer: store_pb2.AdapterPointer) -> bool:
    """A name was unloaded by force."""
    return pointer.abort_running and not pointer.digest
