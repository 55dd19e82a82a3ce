"""Threads for what blocks, and what keeps concurrent calls out of each other's way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Generic, ParamSpec, TypeVar

from adapter_store.crew import be_nice

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A bounded pool of threads. What is handed in waits its turn; callers bound how much that is.

    Args:
        is_nice: they let every other thread of the machine go first.
    """

    def __init__(self, threads: int, name: str, *, is_nice: bool = False) -> None:
        self._pool = ThreadPoolExecutor(threads, name, be_nice if is_nice else None)
        self._running = 0

    @property
    def running(self) -> int:
        """Calls that run or wait."""
        return self._running

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking function to its end, even when the caller is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        # Of our own, not chained to the thread's: that costs a quarter of a small visit.
        result: asyncio.Future[T] = loop.create_future()

        def tell(done: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._done, result, done)

        self._running += 1
        self._pool.submit(function, *args, **kwargs).add_done_callback(tell)
        return await result

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, result: asyncio.Future[T], done: Future[T]) -> None:
        self._running -= 1
        if result.cancelled():
            return  # nobody waits for it any more
        if done.cancelled():
            result.cancel()
        elif (error := done.exception()) is not None:
            result.set_exception(error)
        else:
            result.set_result(done.result())


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
