"""Frontends that follow the catalog: each hears of every change, and says when it acts by it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from adapter_store.catalog.catalog import Catalog
from adapter_store.catalog.history import Pointer
from adapter_store.peers.streams import fell_behind
from rpc.errors import LorikeetError, invalid_argument

log = logging.getLogger(__name__)

# Names removed by force that are remembered, for frontends that were away meanwhile.
_MOST_FORCED = 10_000


class Target(NamedTuple):
    """What a frontend hears of a name; without a digest, that it is gone. A tuple: there may be 100,000."""

    name: str
    digest: str = ""
    # With a name that is gone: its running requests end too.
    abort_running: bool = False
    has_chat_template: bool = False
    tenant: str = ""


def target_of(catalog: Catalog, pointer: Pointer) -> Target:
    """What frontends hear of a name that points somewhere."""
    return Target(
        name=pointer.name,
        digest=pointer.digest,
        has_chat_template=catalog.version(pointer.digest).has_chat_template,
        tenant=pointer.tenant,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What a follower is told, in order; all names in a snapshot."""

    revision: int
    is_snapshot: bool
    targets: Sequence[Target]


class Follower:
    """One stream's changes that were not sent yet; those of one name become one.

    Bounded, because it holds at most two entries per name that there is or was since the last message: where
    it points, and before that its removal if requests have to end with it.

    Args:
        revision: of the catalog now.
        snapshot: where all names point, when the first message is sent.
        missed: names that were removed by force while it had no stream.
    """

    def __init__(
        self, revision: int, snapshot: Callable[[], Sequence[Target]], missed: Iterable[str] = ()
    ) -> None:
        self.acknowledged = 0
        self._sent = 0
        self._revision = revision
        self._snapshot: Callable[[], Sequence[Target]] | None = snapshot
        self._waiting = {name: [Target(name=name, abort_running=True)] for name in missed}
        self._has_news = True
        self._wake = asyncio.Event()
        self._closed = False
        self._error: LorikeetError | None = None

    def tell(self, revision: int, target: Target) -> None:
        """Adds a change to what will be sent next."""
        self._revision, self._has_news = revision, True
        before = self._waiting.pop(target.name, [])
        aborts = target.abort_running or any(each.abort_running for each in before)
        told = [Target(name=target.name, abort_running=True)] if aborts else []
        # Where a name points, or that it is gone, a snapshot that is still to be sent says by itself.
        if self._snapshot is None and (target.digest or not aborts):
            told.append(target)
        if told:
            self._waiting[target.name] = told
        self._wake.set()

    async def next(self) -> Update | None:
        while not self._has_news and not self._closed:
            self._wake.clear()
            await self._wake.wait()
        if self._error is not None:
            raise self._error
        if self._closed:
            return None
        targets = [target for told in self._waiting.values() for target in told]
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            targets += snapshot()
        update = Update(revision=self._revision, is_snapshot=snapshot is not None, targets=targets)
        self._sent, self._waiting, self._has_news = self._revision, {}, False
        return update

    def close(self, error: LorikeetError | None = None) -> None:
        if not self._closed:
            self._closed, self._error = True, error
            self._wake.set()

    def check_acknowledgement(self, revision: int) -> None:
        """Raises LorikeetError, INVALID_ARGUMENT, for a revision that was never sent."""
        if revision > self._sent:
            raise invalid_argument(
                "BAD_ACKNOWLEDGEMENT", f"revision {revision} was acknowledged, {self._sent} was sent last"
            )


class Followers:
    """All Follow streams. Belongs to the event loop.

    Args:
        patience_seconds: how long a follower may take to acknowledge before it is cut off.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._followers: set[Follower] = set()
        self._forced: dict[str, int] = {}
        """The revisions at which names were removed by force, the latest of them, in their order."""
        self._progress = asyncio.Event()
        self._goodbye: LorikeetError | None = None

    def __len__(self) -> int:
        return len(self._followers)

    def join(self, revision: int, snapshot: Callable[[], Sequence[Target]], *, acts_by: int = 0) -> Follower:
        """Adds a follower, whose first message is a snapshot. Raises LorikeetError once closed.

        Args:
            revision, snapshot: see `Follower`.
            acts_by: the revision that it acts by since an earlier stream; 0 for none. It is told also of the
                names that were removed by force after that.
        """
        if self._goodbye is not None:
            raise self._goodbye
        missed = [name for name, removed in self._forced.items() if 0 < acts_by < removed]
        follower = Follower(revision, snapshot, missed)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """The stream has ended."""
        self._followers.discard(follower)
        self._progress.set()

    def publish(self, revision: int, target: Target) -> None:
        """Tells everyone that a name points elsewhere, or nowhere."""
        if target.abort_running:
            self._forced.pop(target.name, None)
            self._forced[target.name] = revision
            if len(self._forced) > _MOST_FORCED:
                del self._forced[next(iter(self._forced))]
        for follower in self._followers:
            follower.tell(revision, target)

    def acknowledge(self, follower: Follower, revision: int) -> None:
        """Raises LorikeetError, INVALID_ARGUMENT, for a revision that was never sent."""
        follower.check_acknowledgement(revision)
        if revision > follower.acknowledged:
            follower.acknowledged = revision
            self._progress.set()

    async def caught_up(self, revision: int) -> None:
        """Returns once every follower acts by a revision or is gone; who takes too long is cut off."""
        try:
            async with asyncio.timeout(self._patience):
                while self._behind(revision):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            for follower in self._behind(revision):
                log.warning("a frontend did not acknowledge revision %d in time: its stream is cut", revision)
                follower.close(fell_behind())
                self.leave(follower)

    def close(self, error: LorikeetError) -> None:
        """Ends every stream, and any that comes later."""
        self._goodbye = error
        for follower in list(self._followers):
            follower.close(error)
            self.leave(follower)

    def _behind(self, revision: int) -> list[Follower]:
        return [follower for follower in self._followers if follower.acknowledged < revision]
