"""An adapter whose files a thread copies: how much has come, and what begins before the last of it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Fewer are not worth a visit to another thread.
_STEP_BYTES = 64 << 20


class Arrival:
    """Tells the event loop, where `next` is awaited, what `advance` hears from the thread that copies."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._missing: int | None = None
        self._told: int | None = None
        self.is_over = False
        """No more will come, or nobody waits for it any more."""
        self._news = asyncio.Event()

    def advance(self, done: int, total: int) -> None:
        """So many bytes of all files are there, the weights being the last of them. Thread-safe."""
        missing = total - done
        if (total if self._missing is None else self._missing) - missing >= _STEP_BYTES:
            self._missing = missing
            self._loop.call_soon_threadsafe(self._news.set)

    def end(self) -> None:
        """Ends what `next` waits for."""
        self.is_over = True
        self._news.set()

    async def next(self) -> int | None:
        """Waits for more; returns how many bytes are missing at the weights' end, None once it has ended."""
        while not self.is_over and self._missing == self._told:
            self._news.clear()
            await self._news.wait()
        self._told = self._missing
        return None if self.is_over else self._told


class NotWantedError(Exception):
    """Ends a copy of what is refused already."""


class EarlyWork(Generic[T]):
    """Work on an adapter that begins on the event loop once its headers are there, beside the copy.

    Args:
        work: goes on until nothing more arrives.
    """

    def __init__(self, work: Callable[[Arrival], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._arrival = Arrival()
        self._task: asyncio.Task[T] | None = None
        self.is_called = False
        """Belongs to the thread that copies."""

    def call(self) -> None:
        """From the thread that copies: the headers are there."""
        self.is_called = True
        self._loop.call_soon_threadsafe(self._begin)

    def advance(self, done: int, total: int) -> None:
        """From the thread that copies: see `Arrival`. Raises NotWantedError when the work has failed."""
        if not self.is_called:
            return
        if self._arrival.is_over:
            raise NotWantedError
        self._arrival.advance(done, total)

    def end(self) -> None:
        """Nothing more arrives."""
        self._arrival.end()

    async def result(self) -> T | None:
        """What came of it, once it has ended; None where it has not begun."""
        return None if self._task is None else await self._task

    def _begin(self) -> None:
        if self._arrival.is_over:  # the copy was given up, and nobody would give back what the work takes
            return
        self._task = asyncio.ensure_future(self._work(self._arrival))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[T]) -> None:
        self.end()
        # A copy that fails says why: nobody asks any more what came of this.
        if not task.cancelled():
            task.exception()
