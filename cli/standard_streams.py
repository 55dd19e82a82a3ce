"""Standard streams that a caller closed, or whose encoding or reader is not what we would wish."""

import errno
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import asyncio


def prepare_streams() -> None:
    """To be called first: what is opened later would get a closed stream's number, and its data."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    stdout: Any = sys.stdout
    if stdout.errors == "strict":
        # A character that the encoding lacks ends no answer.
        stdout.reconfigure(errors="backslashreplace")


@contextmanager
def while_read(task: "asyncio.Task[Any]") -> Iterator[None]:
    """Within, the running task is cancelled when nobody reads our stdout any more, though nothing is written.

    Raises BrokenPipeError then.
    """
    if not (sys.platform == "linux" and _is_pipe(sys.stdout)):
        yield
        return
    loop, number, is_over = task.get_loop(), sys.stdout.fileno(), False
    poll = select.poll()
    poll.register(number, 0)

    def look() -> None:
        nonlocal is_over
        is_over = any(events & select.POLLERR for _, events in poll.poll(0))
        loop.remove_reader(number)  # else it is called again at once
        if is_over:
            task.cancel()

    loop.add_reader(number, look)
    try:
        yield
    except BaseException:
        if is_over:
            raise BrokenPipeError(errno.EPIPE, "nobody reads stdout") from None
        raise
    finally:
        loop.remove_reader(number)


class Unfailing:
    """A text stream that drops what it cannot write: its disk is full, say, or its terminal gone.

    Raises BrokenPipeError alone, where its reader has left.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *args: str) -> None:
        try:
            action(*args)
        except BrokenPipeError:
            raise
        except OSError:
            pass


def _is_pipe(stream: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def write_nowhere(stream: Any) -> None:
    """From now on nobody reads it, and what is left in its buffer does not fail once more at the end."""
    with suppress(OSError):  # of one that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
