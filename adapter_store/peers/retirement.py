"""Digests that no name points to any more: executors are told, and the files go once nobody needs them.

no name points to it -> every executor is told -> each answers, or leaves and stays away for the grace period
-> nobody uses its files -> removed
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from adapter_store.tiers.holds import Holds

log = logging.getLogger(__name__)


class Holder(Protocol):
    """An executor's stream."""

    def retire(self, digest: str) -> None:
        """Tells it to drop a digest once its requests have ended; it answers with `Retirement.answered`."""
        ...


@dataclass(eq=False)
class _Retiring:
    unanswered: set[Holder] = field(default_factory=set)
    # Loop time before which an executor that left may come back with requests of this digest.
    not_before: float = 0.0
    is_finishing: bool = False


class Retirement:
    """Keeps track of who still has what. Belongs to the event loop.

    Args:
        holds: uses of a digest's files in the store itself.
        grace_seconds: how long an executor that left may take to come back.
        finish: removes a digest for good; answers False when it is in use after all.
    """

    def __init__(
        self, *, holds: Holds, grace_seconds: float, finish: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._holds = holds
        self._grace = grace_seconds
        self._finish = finish
        self._holders: set[Holder] = set()
        self._retiring: dict[str, _Retiring] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        holds.on_free(self.poke)

    def __len__(self) -> int:
        return len(self._retiring)

    def begin(self, digest: str) -> None:
        """The last name of a digest is gone."""
        self._retiring[digest] = _Retiring(unanswered=set(self._holders))
        for holder in self._holders:
            holder.retire(digest)
        self.poke(digest)

    def resume(self, digests: Iterable[str]) -> None:
        """At start: what was retiring when the store ended. Executors get the grace period to come back."""
        for digest in digests:
            self._retiring[digest] = _Retiring()
            self._wait(self._retiring[digest], digest)

    def revive(self, digest: str) -> None:
        """A name points to it again."""
        self._retiring.pop(digest, None)

    def join(self, holder: Holder) -> None:
        """An executor came: it may have requests of anything that is retiring."""
        self._holders.add(holder)
        for digest, retiring in self._retiring.items():
            retiring.unanswered.add(holder)
            holder.retire(digest)

    def lent(self, holder: Holder, digest: str) -> None:
        """An executor got a lease: of a digest that is retiring, it has something again."""
        retiring = self._retiring.get(digest)
        if retiring is not None and holder not in retiring.unanswered:
            retiring.unanswered.add(holder)
            holder.retire(digest)

    def is_waiting(self, digest: str) -> bool:
        """True while an executor has not answered yet."""
        retiring = self._retiring.get(digest)
        return retiring is not None and bool(retiring.unanswered)

    def answered(self, holder: Holder, digest: str) -> None:
        """An executor has nothing left of a digest."""
        retiring = self._retiring.get(digest)
        if retiring is not None:
            retiring.unanswered.discard(holder)
            self.poke(digest)

    def leave(self, holder: Holder) -> None:
        """An executor's stream ended."""
        self._holders.discard(holder)
        for digest, retiring in self._retiring.items():
            if holder in retiring.unanswered:
                retiring.unanswered.discard(holder)
                self._wait(retiring, digest)

    def poke(self, digest: str) -> None:
        """Removes a digest if nothing stands against it any more."""
        retiring = self._retiring.get(digest)
        if retiring is None or retiring.is_finishing or retiring.unanswered:
            return
        if self._holds.is_held(digest) or asyncio.get_running_loop().time() < retiring.not_before:
            return
        retiring.is_finishing = True
        task = asyncio.ensure_future(self._run(digest, retiring))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stops; what is retiring goes on after the next start."""
        for timer in self._timers:
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, digest: str, retiring: _Retiring) -> None:
        try:
            is_gone = await self._finish(digest)
        except Exception:
            # Left as it is: the next start tries again.
            log.exception("the retired adapter %s could not be removed", digest)
            return
        if self._retiring.get(digest) is not retiring:
            return
        if is_gone:
            del self._retiring[digest]
        else:
            # Its use may have ended meanwhile, unheard.
            retiring.is_finishing = False
            self.poke(digest)

    def _wait(self, retiring: _Retiring, digest: str) -> None:
        loop = asyncio.get_running_loop()
        retiring.not_before = loop.time() + self._grace

        def wake() -> None:
            self._timers.discard(timer)
            self.poke(digest)

        # A little late rather than a little early.
        timer = loop.call_at(retiring.not_before + 0.001, wake)
        self._timers.add(timer)
