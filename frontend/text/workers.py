"""Threads for texts that would hold up the event loop."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from rpc.errors import resource_exhausted

T = TypeVar("T")
_Job: TypeAlias = tuple[Callable[[], Any], Future[Any]]


class TextWorkers:
    """A few threads; refuses when too many texts wait. The process's end does not wait for them, as it would
    for those of an executor of concurrent.futures: a text may take a minute.

    Args:
        counted_as: name of their number in `statistics`.
    """

    def __init__(self, *, threads: int = 2, max_waiting: int = 64, counted_as: str = "texts_waiting") -> None:
        self._most_threads = threads
        self._threads = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._waiting = 0
        self._counted_as = counted_as

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread. Raises RESOURCE_EXHAUSTED when too many texts wait."""
        if self._waiting >= self._max_waiting:
            raise resource_exhausted(
                "TEXT_QUEUE_FULL", "too many long texts are being tokenised: retry shortly", retry_after=0.5
            )
        if self._threads < min(self._waiting + 1, self._most_threads):
            threading.Thread(target=self._work, name=f"text_{self._threads}", daemon=True).start()
            self._threads += 1
        # Counted until the thread is done with it, also when the caller has gone.
        future: Future[T] = Future()
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._tell_done(loop))
        self._jobs.put((work, future))
        try:
            return await asyncio.wrap_future(future)
        finally:
            # An error that the future has leads here: the text would wait for the garbage collector.
            del work, future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del job, work, future  # and the text

    def _tell_done(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # The loop has closed: the process is ending.
            loop.call_soon_threadsafe(self._done)

    def _done(self) -> None:
        self._waiting -= 1

    def statistics(self) -> dict[str, int]:
        return {self._counted_as: self._waiting}

    def close(self) -> None:
        """Drops what waits; nobody waits for a text in work."""
        with suppress(queue.Empty):
            while (job := self._jobs.get_nowait()) is not None:
                job[1].cancel()
        for _ in range(self._threads):
            self._jobs.put(None)
