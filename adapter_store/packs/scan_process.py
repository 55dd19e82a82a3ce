"""`python -m adapter_store.packs.scan_process`: looks at tensors in the arena for a store, and only reads.

One question after another comes on stdin, each answered on stdout; a pickled message after its length. Ends
with its stdin, and so with its store.
"""

import contextlib
import mmap
import pickle
import signal
import struct
import sys
from collections.abc import Sequence
from typing import IO, NamedTuple

from adapter_store.packs.scanning import Found, scan

_LENGTH = struct.Struct("<Q")
_NICENESS = 10


class Question(NamedTuple):
    """See scanning.Look; `begins` count from `offset` of the file."""

    path: str
    offset: int
    dtype: str
    begins: Sequence[int]
    sizes: Sequence[int]


def send(file: IO[bytes], message: tuple[object, ...]) -> None:
    """Raises OSError when nobody is there."""
    data = pickle.dumps(tuple(message), pickle.HIGHEST_PROTOCOL)
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def receive(file: IO[bytes]) -> tuple[object, ...]:
    """Raises EOFError when nobody is there."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = file.read(_LENGTH.unpack(head)[0])
    if len(data) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 - from the other end of our own pipe


class _Maps:
    """The file that was asked for last, mapped."""

    def __init__(self) -> None:
        self._path = ""
        self._map: mmap.mmap | None = None

    def view(self, path: str) -> memoryview:
        if self._map is None or path != self._path:
            with open(path, "rb") as file:
                self._map, self._path = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path
        return memoryview(self._map)


def answer(question: Question, data: memoryview) -> Found:
    """What there is to know of tensors in the file's bytes."""
    return scan(data[question.offset :], question.dtype, question.begins, question.sizes)


def main() -> None:
    from rpc.tuning import give_way

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the store's own end is ours
    give_way(_NICENESS)
    maps = _Maps()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            question = Question(*receive(sys.stdin.buffer))  # pyright: ignore[reportArgumentType] - ours
            send(sys.stdout.buffer, answer(question, maps.view(question.path)))


if __name__ == "__main__":
    main()
