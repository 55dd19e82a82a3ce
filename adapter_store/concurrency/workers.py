"""Threads for what blocks."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from adapter_store.concurrency.crew import be_nice

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """What a thread is to do, and who waits for it, on which loop."""

    function: Callable[[], T]
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[T]

    def tell(self, listener: Callable[..., None], *outcome: object) -> None:
        """Calls `listener` on the loop, if it still runs."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(listener, self.result, *outcome)


class Workers:
    """A bounded pool of threads. What is handed in waits its turn; callers bound how much that is.

    A visit costs a third of one through an executor of concurrent.futures, most of which is its own futures.

    Args:
        is_nice: they let every other thread of the machine go first.
    """

    def __init__(self, threads: int, name: str, *, is_nice: bool = False) -> None:
        self._most = threads
        self._name = name
        self._is_nice = is_nice
        self._threads: list[threading.Thread] = []
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._running = 0
        self._is_closed = False

    @property
    def running(self) -> int:
        """Calls that run or wait."""
        return self._running

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking function to its end, even when the caller is cancelled meanwhile.

        Raises RuntimeError once closed, and where there is no thread and none can be started.
        """
        if self._is_closed:
            raise RuntimeError(f"the {self._name} threads have ended")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        if self._running >= len(self._threads) < self._most:
            self._start()
        self._running += 1
        self._calls.put(_Call(partial(function, *args, **kwargs), loop, result))
        return await result

    def close(self) -> None:
        """Waits for what runs; what has not begun is cancelled."""
        self._is_closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        # Whoever does not close them does not wait for them at the process's end either.
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine has no more threads now
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        if self._is_nice:
            be_nice()
        while (call := self._calls.get()) is not None:
            self._do(call)
            del call  # and what its result holds

    def _do(self, call: _Call[Any]) -> None:
        if self._is_closed:
            call.tell(self._cancelled)
            return
        try:
            value = call.function()
        except BaseException as error:
            call.tell(self._failed, error)
        else:
            call.tell(self._done, value)

    def _done(self, result: asyncio.Future[T], value: T) -> None:
        self._running -= 1
        if not result.done():  # else nobody waits for it any more
            result.set_result(value)

    def _failed(self, result: asyncio.Future[Any], error: BaseException) -> None:
        self._running -= 1
        if not result.done():
            result.set_exception(error)

    def _cancelled(self, result: asyncio.Future[Any]) -> None:
        self._running -= 1
        result.cancel()
