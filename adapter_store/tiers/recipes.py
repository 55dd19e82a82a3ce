"""Recipes of packs that were made and hashed: an object never changes, so its pack is the same each time."""

from collections import OrderedDict

from adapter_store.packs.recipe import Recipe
from adapter_store.tiers.key import PackKey

_MOST_BYTES = 64 << 20


class Recipes:
    """By pack, the least recently used given up first. Belongs to the event loop.

    A recipe serves once it is known what its pack hashes to: only so is what it brings ever believed.

    Args:
        most_bytes: that all of them take.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._recipes: OrderedDict[PackKey, Recipe] = OrderedDict()
        self._checksums: dict[PackKey, bytes] = {}
        # Of all that were ever kept: few.
        self._layouts: set[str] = set()

    def find(self, key: PackKey) -> tuple[Recipe, bytes] | None:
        """A recipe and the pack's checksum, where both are known."""
        checksum = self._checksums.get(key)
        if checksum is None:
            return None
        self._recipes.move_to_end(key)
        return self._recipes[key], checksum

    def keep(self, key: PackKey, recipe: Recipe, checksum: bytes) -> None:
        """Remembers how a pack was made that was checked, unless it alone is more than may be kept.

        The checksum may be noted later: b"".
        """
        self.forget(key)
        if recipe.nbytes > self._most:
            return
        self._recipes[key] = recipe
        self._layouts.add(key.layout)
        self._bytes += recipe.nbytes
        self.note_checksum(key, checksum)
        while self._bytes > self._most:
            self.forget(next(iter(self._recipes)))

    def note_checksum(self, key: PackKey, checksum: bytes) -> None:
        """What the pack hashes to that was made by the recipe."""
        if checksum and key in self._recipes:
            self._checksums[key] = checksum

    def forget(self, key: PackKey) -> None:
        recipe = self._recipes.pop(key, None)
        self._checksums.pop(key, None)
        if recipe is not None:
            self._bytes -= recipe.nbytes

    def forget_digest(self, digest: str) -> None:
        """In every layout."""
        for layout in self._layouts:
            self.forget(PackKey(layout=layout, digest=digest))
