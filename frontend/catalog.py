"""Which digest each adapter name points to, as far as this frontend knows; fed by `catalog_follower`."""

import asyncio
from collections.abc import Callable

from frontend.validation import AdapterRef
from lorikeet.v1 import store_pb2
from rpc.access import may_use
from rpc.errors import failed_precondition, not_found, unavailable
from rpc.tokens import Caller


class Catalog:
    """Names and their digests at one revision. What is known stays in force while the store is away.

    Args:
        has_store: False serves the base model only.
    """

    def __init__(self, *, has_store: bool) -> None:
        self._has_store = has_store
        self._digests: dict[str, str] = {}
        self._names: dict[str, dict[str, None]] = {}
        """Of each digest that a name points to; in the order in which they came to do so."""
        self._abort_listeners: list[Callable[[str, str], None]] = []
        self._tenants: dict[str, str] = {}
        self._templated: set[str] = set()
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
        if response.snapshot:
            self._digests, self._tenants, self._templated = {}, {}, set()
            self._names.clear()
        for pointer in response.pointers:
            old = self._digests.pop(pointer.name, "")
            if old:
                del self._names[old][pointer.name]
            if pointer.digest:
                self._digests[pointer.name] = pointer.digest
                self._names.setdefault(pointer.digest, {})[pointer.name] = None
                self._tenants[pointer.name] = pointer.tenant
                if pointer.has_chat_template:
                    self._templated.add(pointer.digest)
            else:
                self._tenants.pop(pointer.name, None)
            is_gone = bool(old) and not self._names[old]
            if is_gone:
                del self._names[old]
                self._templated.discard(old)
            if not pointer.digest and pointer.abort_running:
                self._tell_aborts(pointer.name, old if is_gone else "")
        self._revision = response.revision
        for revision, waiter in self._waiters:
            if revision <= response.revision and not waiter.done():
                waiter.set_result(None)

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
            if adapter.digest in self._names and self.may_use(adapter, caller):
                return adapter.digest
            raise not_found(
                "UNKNOWN_DIGEST",
                f"no adapter has the digest {adapter.digest} now: load it, or ask for it by name",
                adapter=adapter.digest,
            )
        digest = self._digests.get(adapter.name)
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
        return self._tenants.get(name)

    def may_use(self, adapter: AdapterRef, caller: Caller) -> bool:
        """Whether a caller may use an adapter: a name, or a digest that one of its names points to."""
        if not caller.tenant:
            return True
        names = [adapter.name] if adapter.name else self._names.get(adapter.digest, ())
        return any(may_use(self._tenants.get(name, ""), caller) for name in names)

    def _tell_aborts(self, name: str, digest: str) -> None:
        for listener in self._abort_listeners:
            listener(name, digest)

    def brings_template(self, digest: str) -> bool:
        """True for an adapter with a chat template of its own."""
        return digest in self._templated

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
        return list(self._names.get(digest, ()))

    def statistics(self) -> dict[str, int]:
        return {"adapter_names": len(self._digests), "catalog_revision": self.revision}
