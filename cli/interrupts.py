"""Ctrl-C and SIGTERM are heard at any moment, and end quietly what has nothing to end in order."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_EXIT_OF_SIGNALS = 128
"""As shells tell them: 130 after Ctrl-C."""


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process, quietly; where it is ignored it stays so. SIGTERM, too, which a
    container's first process would otherwise not heed.

    For before a command's work has begun, and after its end. Imports take most of a short command's time, and
    a KeyboardInterrupt inside one comes out as a traceback, or as whatever a library makes of it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave)


def end_in_order() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt: there is something to cancel, or to put back."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def waking(loop: "asyncio.AbstractEventLoop") -> Iterator[None]:
    """Within, a signal wakes the event loop whenever it comes.

    asyncio.run ends its task by a handler that Python calls between two of its instructions. A Ctrl-C after
    the last of them before the loop sleeps is otherwise seen with the next event, which may be minutes away.
    """
    import socket
    import threading

    # Other threads hear no signals; on Windows the loop sees to it itself.
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    ours, pythons = socket.socketpair()
    with ours, pythons:
        for end in (ours, pythons):
            end.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(_EXIT_OF_SIGNALS + number)
