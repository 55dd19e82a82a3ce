"""Threads that share one piece of work, and stay out of the way of whoever serves."""

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from rpc.tuning import give_way

T = TypeVar("T")

_NICENESS = 10


class Urgency:
    """Whether somebody waits for a piece of work; it may become urgent while it runs. Thread-safe."""

    def __init__(self, *, is_urgent: bool = True) -> None:
        self._lock = threading.Lock()
        self._is_urgent = is_urgent
        self._listeners: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        return self._is_urgent

    def raise_(self) -> None:
        """Somebody waits now."""
        with self._lock:
            self._is_urgent = True
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def when(self, listener: Callable[[], object]) -> None:
        """Calls `listener` once the work is urgent: now, or from the thread that says so."""
        with self._lock:
            if not self._is_urgent:
                self._listeners.append(listener)
                return
        listener()


class Crew:
    """Helps threads with work that falls into parts; every part runs once, the caller takes part.

    The parts should spend their time without the interpreter lock, and a millisecond or more each.

    Args:
        threads: threads of all pieces of work together, callers not counted; 0 leaves each caller alone.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "store-crew", be_nice) if threads else None
        self._lock = threading.Lock()
        self._pieces = 0

    def run(self, work: Callable[[T], object], parts: Sequence[T], urgency: Urgency | None = None) -> None:
        """Calls `work` with each part, in any order; returns when all are done.

        Nobody helps until it is urgent, so that a hint never takes a thread from a load that is waited for.
        Pieces that are helped at once have far fewer helpers each: their callers are threads, too, and many
        threads wait for one interpreter.

        Raises:
            Exception: the first that `work` raised; parts that had not begun are left out.
        """
        waiting = iter(parts)
        errors: list[Exception] = []
        begun: list[threading.Event] = []

        def drain() -> None:
            # Taking from a list's iterator is one step of the interpreter.
            for part in waiting:
                if errors:
                    return
                try:
                    work(part)
                except Exception as error:
                    errors.append(error)

        def help_out() -> None:
            with gate:
                if is_over:
                    return
                begun.append(end := threading.Event())
            try:
                drain()
            finally:
                end.set()

        def call_helpers() -> None:
            nonlocal is_helped
            with lock:
                if self._pool is not None and not is_done and len(parts) > 1:
                    is_helped = True
                    count = min(self._threads // self._count(1) ** 2, len(parts) - 1)
                    with suppress(RuntimeError):  # no more threads now: fewer help, or none
                        for _ in range(count):
                            self._pool.submit(help_out)

        # Another thread may hurry it, even while it ends.
        lock, is_done, is_helped = threading.Lock(), False, False
        gate, is_over = threading.Lock(), False
        (Urgency() if urgency is None else urgency).when(call_helpers)
        drain()
        with lock:
            is_done = True
        if is_helped:
            self._count(-1)
        with gate:
            is_over = True  # who has not begun, begins nothing
        for end in begun:
            end.wait()
        if errors:
            # What the parts worked on is not kept alive by the error.
            traceback.clear_frames(errors[0].__traceback__)
            raise errors[0]

    def close(self) -> None:
        """Waits for what runs."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _count(self, change: int) -> int:
        with self._lock:
            self._pieces += change
            return self._pieces


ALONE = Crew(0)


def be_nice() -> None:
    """Streams must not feel a load, nor the store's own calls."""
    give_way(_NICENESS)
