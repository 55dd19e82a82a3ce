"""Objects of the disk tier whose headers have been read: an object never changes, so once is enough."""

from collections import OrderedDict

from adapter_store.formats.reading import OpenedAdapter
from adapter_store.tiers.key import PackKey

# About 1 KB each.
_MOST_TENSORS = 100_000


class OpenedObjects:
    """Plans of packs, the least recently used given up first. Belongs to the event loop.

    What a plan says of the tensors' bytes is checked again with every pack that is made by it; by the pack's
    checksum, once there is one.

    Args:
        most_tensors: kept in all.
    """

    def __init__(self, most_tensors: int = _MOST_TENSORS) -> None:
        self._most = most_tensors
        self._tensors = 0
        self._opened: OrderedDict[PackKey, OpenedAdapter] = OrderedDict()
        self._checksums: dict[PackKey, bytes] = {}

    def find(self, key: PackKey) -> OpenedAdapter | None:
        opened = self._opened.get(key)
        if opened is not None:
            self._opened.move_to_end(key)
        return opened

    def keep(self, key: PackKey, opened: OpenedAdapter) -> None:
        """Remembers an object, unless it alone is more than may be kept."""
        self.forget(key)
        if len(opened.plan.tensors) > self._most:
            return
        self._opened[key] = opened
        self._tensors += len(opened.plan.tensors)
        while self._tensors > self._most:
            self.forget(next(iter(self._opened)))

    def checksum(self, key: PackKey) -> bytes:
        """What the pack of an object that is remembered hashes to; b"" until that was noted."""
        return self._checksums.get(key, b"")

    def note_checksum(self, key: PackKey, checksum: bytes) -> None:
        """The pack that was made by a plan, and checked, hashes to this."""
        if key in self._opened:
            self._checksums[key] = checksum

    def forget(self, key: PackKey) -> None:
        opened = self._opened.pop(key, None)
        self._checksums.pop(key, None)
        if opened is not None:
            self._tensors -= len(opened.plan.tensors)

    def forget_digest(self, digest: str) -> None:
        """In every layout."""
        for key in [key for key in self._opened if key.digest == digest]:
            self.forget(key)
