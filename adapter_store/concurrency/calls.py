"""What keeps concurrent calls out of each other's way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Lets callers that want the same thing at once share one attempt.

    An attempt is a task of its own: it goes on when those who wait for it are cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[T]] = {}
        self._departed: set[asyncio.Task[T]] = set()

    def __len__(self) -> int:
        return len(self._flights) + len(self._departed)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    def start(self, key: Hashable, attempt: Callable[[], Awaitable[T]]) -> "asyncio.Task[T]":
        """Joins the attempt for this key, or begins one."""
        task = self._flights.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fly(key, attempt))
            self._flights[key] = task
            task.add_done_callback(_see)
        return task

    async def run(self, key: Hashable, attempt: Callable[[], Awaitable[T]]) -> T:
        """Joins or begins an attempt and waits for it."""
        return await asyncio.shield(self.start(key, attempt))

    def depart(self, key: Hashable) -> None:
        """From within an attempt: nobody joins it any more; who wants the same begins another."""
        task = self._flights.pop(key)
        assert task is asyncio.current_task(), "only an attempt itself says that it departs"
        self._departed.add(task)

    async def close(self) -> None:
        """Cancels every attempt and waits for their ends."""
        tasks = [*self._flights.values(), *self._departed]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, key: Hashable, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await attempt()
        finally:
            task = asyncio.current_task()
            if self._flights.get(key) is task:
                del self._flights[key]
            self._departed.discard(task)


class KeyedLock:
    """One lock per key, for as long as anybody wants it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._users: Counter[Hashable] = Counter()

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Runs what must not stop half-way; a cancellation of the caller reaches it at its next wait instead."""
    task = asyncio.ensure_future(work)
    caller, is_cancelled = asyncio.current_task(), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled and caller is not None:
        caller.cancel()
    return task.result()


def _see(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
