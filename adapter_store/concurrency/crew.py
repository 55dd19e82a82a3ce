"""Threads that share one piece of work, and stay out of the way of whoever serves."""

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

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


class _Piece(Generic[T]):
    """A piece of work, whose parts its caller takes, and helpers that join before the caller is through.

    open: parts are taken, helpers join -> closed: nobody joins, helpers end -> nobody is at it: over
    """

    def __init__(self, work: Callable[[T], object], parts: Sequence[T]) -> None:
        self._work = work
        self._parts = iter(parts)
        self._errors: list[BaseException] = []
        self._changed = threading.Condition()
        self._helpers = 0
        self.is_open = True

    def take_parts(self) -> None:
        """Until none is left, or one has failed."""
        # Taking from a list's iterator is one step of the interpreter.
        for part in self._parts:
            if self._errors:
                return
            try:
                self._work(part)
            except BaseException as error:  # in a helper nobody else would hear of it
                self._errors.append(error)

    def help(self) -> None:
        """A helper's whole share."""
        with self._changed:
            if not self.is_open:
                return
            self._helpers += 1
        self.take_parts()
        with self._changed:
            self._helpers -= 1
            self._changed.notify()

    def close(self) -> None:
        """Helpers that have not begun begin nothing."""
        with self._changed:
            self.is_open = False

    def end(self) -> None:
        """Waits for those that have begun, and raises what the first part that failed raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._helpers)
        for error in self._errors:
            # What the parts worked on is not kept alive by the errors.
            traceback.clear_frames(error.__traceback__)
        if self._errors:
            raise self._errors.pop(0)


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
        self._helped: set[_Piece[Any]] = set()

    def run(self, work: Callable[[T], object], parts: Sequence[T], urgency: Urgency | None = None) -> None:
        """Calls `work` with each part, in any order; returns when all are done.

        Nobody helps until it is urgent, so that a hint never takes a thread from a load that is waited for.
        Pieces that are helped at once have far fewer helpers each: their callers are threads, too, and many
        threads wait for one interpreter.

        Raises:
            BaseException: the first that `work` raised; parts that had not begun are left out.
        """
        piece = _Piece(work, parts)
        call = partial(self._call_helpers, piece, len(parts) - 1)
        if urgency is None:
            call()
        else:
            urgency.when(call)
        piece.take_parts()
        piece.close()
        with self._lock:
            self._helped.discard(piece)
        piece.end()

    def close(self) -> None:
        """Waits for what runs."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _call_helpers(self, piece: _Piece[Any], most: int) -> None:
        """Called by whoever hurries the piece, perhaps while it ends or after."""
        if self._pool is None or most < 1:
            return
        with self._lock:
            # A piece is closed before it is discarded: one that is open is discarded later.
            if not piece.is_open:
                return
            self._helped.add(piece)
            count = min(self._threads // len(self._helped) ** 2, most)
        with suppress(RuntimeError):  # no more threads now: fewer help, or none
            for _ in range(count):
                self._pool.submit(piece.help)


ALONE = Crew(0)


def be_nice() -> None:
    """Streams must not feel a load, nor the store's own calls."""
    give_way(_NICENESS)
