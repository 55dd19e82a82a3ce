"""Small file operations that the disk tier is made of."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rpc.errors import resource_exhausted, unavailable

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
# Of the steps that the kernel takes alone. After each the thread waits for the interpreter, which others may
# want all the time; but who waits for progress wants to hear of it.
_FIRST_CHUNKS, _MOST_BYTES, _STEP_SECONDS = 8, 256 << 20, 0.05


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a full disk into RESOURCE_EXHAUSTED; other errors of the operating system pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise resource_exhausted(
                "DISK_FULL",
                "the store's disk is full: unload adapters, or free some of what its data_dir is on",
            ) from error
        raise


@contextmanager
def file_errors() -> Iterator[None]:
    """Turns errors of the operating system into UNAVAILABLE, a full disk's into RESOURCE_EXHAUSTED: they are
    the machine's, and no fault of who asked."""
    try:
        with disk_errors():
            yield
    except OSError as error:
        if error.errno is None:
            # A timeout, or a library's own.
            raise
        log.error("an adapter's files cannot be read or written: %s", error)
        raise unavailable(
            "FILES_FAILED",
            f"the store cannot read or write the adapter's files ({error.strerror}): mend what its log names "
            "(a disk, permissions, limits), and try again",
        ) from error


def copy_bytes(source: int, target: int, size: int, progress: Callable[[int], None]) -> int:
    """Copies up to `size` bytes between file descriptors, in the kernel where it can; returns how many there
    were.

    `progress` is called with the bytes of each step.
    """
    copy = _copy_in_kernel if hasattr(os, "copy_file_range") else _copy_through_memory
    done, most = 0, _CHUNK_BYTES * (_FIRST_CHUNKS if copy is _copy_in_kernel else 1)
    while done < size:
        begun = time.monotonic()
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
            copy, most = _copy_through_memory, _CHUNK_BYTES
            continue
        if step == 0:
            break
        done += step
        if copy is _copy_in_kernel:
            most = _next_step(most, time.monotonic() - begun)
        progress(step)
    return done


def _next_step(size: int, seconds: float) -> int:
    if seconds < _STEP_SECONDS / 2:
        return min(2 * size, _MOST_BYTES)
    return max(size // 2, _CHUNK_BYTES) if seconds > 2 * _STEP_SECONDS else size


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
