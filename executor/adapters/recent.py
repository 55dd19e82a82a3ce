"""What was worked out for adapters that come again and again."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by key, the least recently used given up first. Not thread-safe.

    Args:
        most: slices, of all adapters together; one without any counts as one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._slices = 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def find(self, key: Hashable) -> T | None:
        known = self._values.get(key)
        if known is None:
            return None
        self._values.move_to_end(key)
        return known[0]

    def forget(self, key: Hashable) -> None:
        self._slices -= self._values.pop(key, (None, 0))[1]

    def keep(self, key: Hashable, value: T, slices: int) -> None:
        """In place of what was kept under this key; nothing where it alone is too much."""
        self.forget(key)
        slices = max(slices, 1)
        if slices > self._most:
            return
        self._values[key] = value, slices
        self._slices += slices
        while self._slices > self._most:
            self._slices -= self._values.popitem(last=False)[1][1]
