"""Executors' Lease streams: what each holds, and the end of all of it with the stream."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from adapter_store.catalog.adapter_names import unknown_digest
from adapter_store.catalog.catalog import Catalog
from adapter_store.formats.layout import PackLayout
from adapter_store.peers.retirement import Retirement
from adapter_store.peers.streams import Outbox
from adapter_store.tiers.arena import Arena
from adapter_store.tiers.files import file_errors
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.pack import ArenaPack
from adapter_store.tiers.warm import WarmTier
from lorikeet.v1 import layout_pb2
from rpc.digests import is_digest
from rpc.errors import LorikeetError, internal, invalid_argument, resource_exhausted

log = logging.getLogger(__name__)

_MAX_LEASES = 1024
_QUEUED_MESSAGES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    lease: int
    pack: ArenaPack
    manifest: layout_pb2.PackManifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    lease: int
    error: LorikeetError


@dataclass(frozen=True, kw_only=True, slots=True)
class Retire:
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A lease of an earlier stream that its executor may still be copying from."""

    digest: str
    header_offset: int
    generation: int


class LeaseSession:
    """One executor's stream. Belongs to the event loop; whoever opens it closes it."""

    def __init__(
        self, *, layout: PackLayout, catalog: Catalog, warm: WarmTier, retirement: Retirement
    ) -> None:
        self.outbox: Outbox[Grant | Refusal | Retire] = Outbox(_QUEUED_MESSAGES)
        self.layout = layout
        self._catalog = catalog
        self._warm = warm
        self._retirement = retirement
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, ArenaPack] = {}
        self._claimed: list[ArenaPack] = []
        retirement.join(self)

    @property
    def leases(self) -> int:
        """Leases held or asked for."""
        return len(self._held) + len(self._asked) + len(self._claimed)

    def acquire(self, lease: int, digest: str) -> None:
        """Asks for a lease: answered by a Grant or a Refusal.

        Raises:
            LorikeetError: INVALID_ARGUMENT when the lease's number is in use.
        """
        if lease in self._asked or lease in self._held:
            raise invalid_argument(
                "LEASE_IN_USE", f"lease {lease} is in use on this stream: choose another number"
            )
        if len(self._asked) + len(self._held) >= _MAX_LEASES:
            error = resource_exhausted(
                "TOO_MANY_LEASES", f"this stream has {_MAX_LEASES} leases: release some", retry_after=0.1
            )
            self.outbox.put(Refusal(lease=lease, error=error))
            return
        pack = self._warm.lease_if_there(digest, self.layout) if self._catalog.knows(digest) else None
        if pack is None:
            self._asked[lease] = asyncio.ensure_future(self._acquire(lease, digest))
        else:
            self._lend(lease, pack)

    def release(self, lease: int) -> None:
        """Ends a lease, or takes a question back. A number that is not known was of an earlier stream."""
        task = self._asked.pop(lease, None)
        if task is not None:
            task.cancel()
        pack = self._held.pop(lease, None)
        if pack is not None:
            self._warm.release(pack)

    def prefetch(self, digest: str) -> None:
        """A hint; ignored when there is nothing to it."""
        if is_digest(digest) and self._catalog.knows(digest):
            self._warm.prefetch(digest, self.layout)

    def used(self, digest: str) -> None:
        """The executor copied a pack without a lease: as much a use of it as one with."""
        pack = self._warm.lease_if_there(digest, self.layout)
        if pack is not None:
            self._warm.release(pack)

    def retire(self, digest: str) -> None:
        """Tells the executor to drop a digest."""
        self.outbox.put(Retire(digest=digest))

    def retired(self, digest: str) -> None:
        """The executor has dropped it."""
        self._retirement.answered(self, digest)

    def claim(self, packs: Iterable[ArenaPack]) -> None:
        """Takes over leases of a former life of the store, until `end_claims`."""
        self._claimed += packs

    def end_claims(self) -> None:
        """A copy that began before the stream did has long ended."""
        for pack in self._claimed:
            self._warm.release(pack)
        self._claimed.clear()

    def close(self) -> None:
        """Gives everything back."""
        self.outbox.close()
        for lease in [*self._asked, *self._held]:
            self.release(lease)
        self.end_claims()
        self._retirement.leave(self)

    async def _acquire(self, lease: int, digest: str) -> None:
        try:
            if not is_digest(digest) or not self._catalog.knows(digest):
                raise unknown_digest(digest)
            with file_errors():
                pack = await self._warm.acquire(digest, self.layout)
        except LorikeetError as error:
            if error.reason == "ADAPTER_LOST" and not self._catalog.is_pointed_to(digest):
                # Not damage: its retirement ended meanwhile, or with an earlier life of the store.
                error = unknown_digest(digest)
            self.outbox.put(Refusal(lease=lease, error=error))
        except Exception:
            log.exception("adapter %s could not be leased", digest)
            error = internal("INTERNAL", "the store failed to bring the adapter in; its log has the reason")
            self.outbox.put(Refusal(lease=lease, error=error))
        else:
            self._lend(lease, pack)
        finally:
            # The number may be in use again, if this question was taken back.
            if self._asked.get(lease) is asyncio.current_task():
                del self._asked[lease]

    def _lend(self, lease: int, pack: ArenaPack) -> None:
        """A pack that was leased is the executor's."""
        assert pack.manifest is not None
        self._held[lease] = pack
        self.outbox.put(Grant(lease=lease, pack=pack, manifest=pack.manifest))
        self._retirement.lent(self, pack.key.digest)


class Executors:
    """All Lease streams. Belongs to the event loop."""

    def __init__(
        self,
        *,
        arena: Arena,
        catalog: Catalog,
        warm: WarmTier,
        retirement: Retirement,
        grace_seconds: float,
    ) -> None:
        self._arena = arena
        self._catalog = catalog
        self._warm = warm
        self._retirement = retirement
        self._grace = grace_seconds
        self._sessions: set[LeaseSession] = set()
        self._goodbye: LorikeetError | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def leases(self) -> int:
        """Leases held or asked for, on all streams."""
        return sum(session.leases for session in self._sessions)

    def open(self, layout: PackLayout, held: Iterable[Held]) -> LeaseSession:
        """Begins a stream; what the executor says it still holds stays where it is for the grace period.

        Raises LorikeetError once closed.
        """
        if self._goodbye is not None:
            raise self._goodbye
        session = LeaseSession(
            layout=layout, catalog=self._catalog, warm=self._warm, retirement=self._retirement
        )
        self._sessions.add(session)
        claims = (
            self._arena.claim(PackKey(layout=layout.digest, digest=h.digest), h.header_offset, h.generation)
            for h in held
        )
        session.claim(pack for pack in claims if pack is not None)
        asyncio.get_running_loop().call_later(self._grace, session.end_claims)
        return session

    def close(self, session: LeaseSession) -> None:
        """Ends a stream."""
        self._sessions.discard(session)
        session.close()

    def cut(self, error: LorikeetError) -> None:
        """Ends every stream, and any that comes later, telling executors why."""
        self._goodbye = error
        for session in self._sessions:
            session.outbox.close(error)
