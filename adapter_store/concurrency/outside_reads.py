"""Threads for reads of folders outside the store: a file system over a network may never answer one."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from adapter_store.concurrency.crew import be_nice
from rpc.errors import LorikeetError, unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

# What a read must give in its time: one that drips keeps a thread, and room, for as long as it likes.
_LEAST_BYTES = 1 << 20
# A process that was stopped for long must not take that for its reads' fault: it is one silent look of these.
_LOOKS = 4
_RETRY_SECONDS = 5.0
_CLOSE_SECONDS = 1.0


class Moved(Protocol):
    """To be called by a read now and then, to say that it gets on. Raises for one that was given up."""

    def __call__(self, got: int = _LEAST_BYTES) -> None:
        """`got`: bytes since the last time; what is not counted in bytes is progress enough."""
        ...


class OutsideReads:
    """Runs reads, and gives up those that do not get on. Belongs to the event loop.

    No thread can be stopped: one whose read is given up is left to itself and ends when the read returns;
    another takes its turn. A place that has kept too many is asked nothing until one returns. So reads at
    other places always get their turn.

    Args:
        threads: reads at once, those not counted that were given up.
        idle_seconds: how long a read may give nothing, or next to nothing.
        most_lost: reads that one place may keep for good, besides those that run when it has kept so many.
    """

    def __init__(self, threads: int, *, idle_seconds: float, most_lost: int = 4) -> None:
        self._turns = asyncio.Semaphore(threads)
        self._idle_seconds = idle_seconds
        self._most_lost = most_lost
        self._lost: Counter[str] = Counter()
        self._running: set[_Read[Any]] = set()
        self._waiting = 0
        self._queue: queue.SimpleQueue[_Read[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # How many of them wait for the queue, or are about to.
        self._idle = 0

    @property
    def running(self) -> int:
        """Reads that run or wait; not those that were given up."""
        return self._waiting + len(self._running)

    @property
    def lost(self) -> int:
        """Reads that were given up and have not returned."""
        return self._lost.total()

    async def run(self, place: str, work: Callable[[Moved], T]) -> T:
        """Runs a blocking read, to its end also when the caller is cancelled meanwhile.

        Args:
            place: what hangs together, such as one mounted file system.

        Raises:
            LorikeetError: UNAVAILABLE when it does not get on, or too many at this place did not.
        """
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        if self._lost[place] >= self._most_lost:
            self._turns.release()
            raise self._hangs(place)
        read = _Read(place, work, self._ended)
        self._running.add(read)
        self._hand_over(read)
        self._look(read)
        return await asyncio.shield(read.result)

    def close(self) -> None:
        """Gives up what runs, and waits a moment for the threads."""
        for read in self._running:
            read.give_up()
            read.result.cancel()
            if read.next_look is not None:
                read.next_look.cancel()
        for _ in range(self._idle):
            self._queue.put(None)
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _hand_over(self, read: "_Read[Any]") -> None:
        if self._idle:
            self._idle -= 1
        else:
            # Nobody waits at the process's end for a thread like this.
            thread = threading.Thread(target=self._work, name="store-read", daemon=True)
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            thread.start()
        self._queue.put(read)

    def _work(self) -> None:
        be_nice()
        while (read := self._queue.get()) is not None:
            read.run()
            if read.is_given_up:
                return

    def _look(self, read: "_Read[Any]") -> None:
        read.silent_looks += 1
        if read.got - read.seen >= _LEAST_BYTES:
            read.silent_looks, read.seen = 0, read.got
        if read.silent_looks >= _LOOKS and read.give_up():
            self._lose(read)
        else:
            loop = asyncio.get_running_loop()
            read.next_look = loop.call_later(self._idle_seconds / _LOOKS, self._look, read)

    def _lose(self, read: "_Read[Any]") -> None:
        self._running.discard(read)
        self._lost[read.place] += 1
        error = self._silent(read.place)
        log.warning("%s; reads that were given up and have not returned: %d", error.message, self.lost)
        if not read.result.cancelled():
            read.result.set_exception(error)
        self._turns.release()

    def _ended(self, read: "_Read[T]", result: T | None, error: Exception | None) -> None:
        if read not in self._running:
            self._lost[read.place] -= 1
            log.warning("a read of %s that was given up has returned", read.place)
            return
        self._running.discard(read)
        self._idle += 1
        self._turns.release()
        if read.next_look is not None:
            read.next_look.cancel()
        if read.result.cancelled():
            return
        if error is not None:
            read.result.set_exception(error)
        else:
            read.result.set_result(result)  # pyright: ignore[reportArgumentType] - T may be None

    def _silent(self, place: str) -> LorikeetError:
        return unavailable(
            "SOURCE_UNAVAILABLE",
            f"{place} has given nothing, or next to nothing, for {self._idle_seconds:g} s, and is given up "
            "(source_idle_seconds): see to its file system, retry later",
            retry_after=_RETRY_SECONDS,
        )

    def _hangs(self, place: str) -> LorikeetError:
        return unavailable(
            "SOURCE_UNAVAILABLE",
            f"{self._lost[place]} reads of {place} were given up and have not returned: see to its file "
            "system, retry later",
            retry_after=_RETRY_SECONDS,
        )


class _GivenUpError(Exception):
    """Ends a read that nobody waits for."""


class _Read(Generic[T]):
    """One read, between the event loop and the thread that runs it.

    Args:
        ended: called on the event loop with what came of it: a result or an error.
    """

    def __init__(
        self,
        place: str,
        work: Callable[[Moved], T],
        ended: "Callable[[_Read[T], T | None, Exception | None], None]",
    ) -> None:
        self.place = place
        self.got = 0
        self.is_given_up = False
        self._work = work
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._is_over = False
        # The event loop's own.
        self.result: asyncio.Future[T] = self._loop.create_future()
        self.result.add_done_callback(_see)
        self.seen = 0
        # The first look is when it begins.
        self.silent_looks = -1
        self.next_look: asyncio.TimerHandle | None = None

    def run(self) -> None:
        """Called by a thread, once."""
        result: T | None = None
        error: Exception | None = None
        try:
            result = self._work(self._moved)
        except Exception as raised:
            error = raised
        with self._lock:
            self._is_over = True
        # The loop may be gone when a read comes back that was given up.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended, self, result, error)

    def give_up(self) -> bool:
        """Its thread goes when it returns. Returns False if it has."""
        with self._lock:
            self.is_given_up = not self._is_over
            return self.is_given_up

    def _moved(self, got: int = _LEAST_BYTES) -> None:
        self.got += got
        if self.is_given_up:
            raise _GivenUpError


def _see(future: "asyncio.Future[Any]") -> None:
    # Nobody may wait for it any more.
    if not future.cancelled():
        future.exception()
