"""Which digest each adapter name points to, as far as this frontend knows; fed by `catalog_follower`."""

import asyncio

from frontend.validation import AdapterRef
from lorikeet.v1 import store_pb2
from rpc.errors import failed_precondition, not_found, unavailable


class Catalog:
    """Names and their digests at one revision. What is known stays in force while the store is away.

    Args:
        has_store: False serves the base model only.
    """

    def __init__(self, *, has_store: bool) -> None:
        self._has_store = has_store
        self._digests: dict[str, str] = {}
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

    def apply(self, response: store_pb2.FollowResponse) -> None:
        """Acts by a snapshot or a change from now on."""
        if response.snapshot:
            self._digests = {}
        for pointer in response.pointers:
            if pointer.digest:
                self._digests[pointer.name] = pointer.digest
            else:
                self._digests.pop(pointer.name, None)
        self._revision = response.revision
        for revision, waiter in self._waiters:
            if revision <= response.revision and not waiter.done():
                waiter.set_result(None)

    def resolve(self, adapter: AdapterRef) -> str:
        """The digest that answers for an adapter; "" for the base model. A pinned digest stands for itself.

        Raises NOT_FOUND, or UNAVAILABLE while the names are not known yet.
        """
        if not (adapter.name or adapter.digest):
            return ""
        if not self._has_store:
            raise failed_precondition(
                "NO_ADAPTER_STORE",
                "this server runs without an adapter store: only the base model can be asked",
            )
        if adapter.digest:
            return adapter.digest
        if self._revision is None:
            raise unavailable("CATALOG_UNKNOWN", "the adapter store has not been reached yet: retry")
        digest = self._digests.get(adapter.name)
        if digest is None:
            raise not_found(
                "ADAPTER_NOT_FOUND",
                f'no adapter is named "{adapter.name}": load it with AdapterService.LoadAdapter '
                f"(lorikeet adapters load {adapter.name} SOURCE), or see ListAdapters for what there is",
                adapter=adapter.name,
            )
        return digest

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

    def names(self) -> dict[str, list[str]]:
        """All digests that names point to, each with its names."""
        names: dict[str, list[str]] = {}
        for name, digest in self._digests.items():
            names.setdefault(digest, []).append(name)
        return names

    def statistics(self) -> dict[str, int]:
        return {"adapter_names": len(self._digests), "catalog_revision": self.revision}
