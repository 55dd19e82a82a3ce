"""What was worked out for adapters that come again and again."""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by digest, the least recently used given up first. Not thread-safe.

    Args:
        most: slices, of all adapters together; one without any counts as one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._slices = 0
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def find(self, digest: str) -> T | None:
        known = self._values.get(digest)
        if known is None:
            return None
        self._values.move_to_end(digest)
        return known[0]

    def forget(self, digest: str) -> None:
        self._slices -= self._values.pop(digest, (None, 0))[1]

    def keep(self, digest: str, value: T, slices: int) -> None:
        """In place of what was kept of this digest; nothing where it alone is too much."""
        self.forget(digest)
        slices = max(slices, 1)
        if slices > self._most:
            return
        self._values[digest] = value, slices
        self._slices += slices
        while self._slices > self._most:
            self._slices -= self._values.popitem(last=False)[1][1]
