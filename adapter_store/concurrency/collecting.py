"""Python's garbage collector, put off while many objects are made that all stay alive."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_users = 0


@contextmanager
def collection_put_off() -> Iterator[None]:
    """For blocks of a second or so that make no cycles; they may overlap."""
    global _users
    with _lock:
        _users += 1
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                gc.enable()
