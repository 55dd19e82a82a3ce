"""The store's arena, mapped read-only: where leased packs are copied from."""

import contextlib
import mmap
import os
import struct
from pathlib import Path

import numpy as np

MAGIC = b"LRKTPACK"
HEADER_BYTES = 128
_GENERATION = struct.Struct("<8sQ")


class StalePackError(Exception):
    """The pack at this place is no longer the one that was granted: ask for it again."""


class ArenaView:
    """A read-only map of one arena file.

    A pack is guarded by the generation word in its header: the store makes it odd while it writes or frees
    the pack, and raises it by two for each new content. Bytes that were copied are good only if the word
    still has the granted value after the copy.

    Raises OSError when the file cannot be mapped, ValueError when it is shorter than the store says.
    """

    def __init__(self, path: Path, size: int) -> None:
        with path.open("rb") as file:
            actual = path.stat().st_size
            if size <= 0 or actual < size:
                raise ValueError(f"{path} has {actual} bytes where the store announced {size}")
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            self._file = _identity(os.fstat(file.fileno()))
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    @property
    def size(self) -> int:
        """Bytes of the arena."""
        return len(self._bytes)

    @property
    def memory(self) -> np.ndarray:
        """All of it: uint8, read-only."""
        return self._bytes

    def shows(self, path: Path, size: int) -> bool:
        """Whether it is the file that lies there now."""
        with contextlib.suppress(OSError):
            return size == self.size and _identity(path.stat()) == self._file
        return False

    def pack(self, offset: int, size: int) -> np.ndarray:
        """The uint8 view of a pack, without a copy. Raises StalePackError when it is not inside the arena."""
        if offset < HEADER_BYTES or size < 0 or offset + size > self.size:
            raise StalePackError(
                f"a pack of {size} bytes at {offset} is outside an arena of {self.size} bytes"
            )
        return self._bytes[offset : offset + size]

    def check(self, header_offset: int, generation: int) -> None:
        """Raises StalePackError unless the header there carries this generation, which must be even."""
        if header_offset < 0 or header_offset + HEADER_BYTES > self.size:
            raise StalePackError(f"header offset {header_offset} is outside an arena of {self.size} bytes")
        magic, found = _GENERATION.unpack_from(self._map, header_offset)
        if magic != MAGIC or found != generation or generation % 2:
            raise StalePackError(f"generation {found} at {header_offset}, granted was {generation}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
