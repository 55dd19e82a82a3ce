"""Who is using the files of a digest, so that nobody removes them meanwhile."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Holds:
    """Counts the uses of each digest's files; belongs to the event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._listeners: list[Callable[[str], None]] = []

    def is_held(self, digest: str) -> bool:
        return digest in self._counts

    def on_free(self, listener: Callable[[str], None]) -> None:
        """`listener` hears of each digest whose last use ended."""
        self._listeners.append(listener)

    @contextmanager
    def hold(self, digest: str) -> Iterator[None]:
        """Keeps a digest's files for as long as a block takes."""
        self._counts[digest] += 1
        try:
            yield
        finally:
            self._counts[digest] -= 1
            if not self._counts[digest]:
                del self._counts[digest]
                for listener in self._listeners:
                    listener(digest)
