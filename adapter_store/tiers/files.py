"""Small file operations that the disk tier is made of."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rpc.errors import resource_exhausted

_CHUNK_BYTES = 4 << 20
# After each step the thread waits for the interpreter, which others may want all the time.
_CHUNKS_IN_KERNEL = 8


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk into RESOURCE_EXHAUSTED; other errors of the operating system pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise resource_exhausted(
                "DISK_FULL", f"the store's disk is full: free some of {folder} or unload adapters"
            ) from error
        raise


def copy_bytes(source: int, target: int, size: int, progress: Callable[[int], None]) -> int:
    """Copies up to `size` bytes between file descriptors, in the kernel where it can; returns how many there
    were.

    `progress` is called with the bytes of each step.
    """
    copy = _copy_in_kernel if hasattr(os, "copy_file_range") else _copy_through_memory
    done = 0
    while done < size:
        most = _CHUNK_BYTES * (_CHUNKS_IN_KERNEL if copy is _copy_in_kernel else 1)
        try:
            step = copy(source, target, min(most, size - done))
        except OSError as error:
            # Not every pair of file systems can.
            if copy is _copy_through_memory or error.errno not in (
                errno.EXDEV,
                errno.EINVAL,
                errno.ENOSYS,
                errno.EOPNOTSUPP,
            ):
                raise
            copy = _copy_through_memory
            continue
        if step == 0:
            break
        done += step
        progress(step)
    return done


def sync_file(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_in_kernel(source: int, target: int, size: int) -> int:
    return os.copy_file_range(source, target, size)


def _copy_through_memory(source: int, target: int, size: int) -> int:
    data = os.read(source, size)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]
    return len(data)
