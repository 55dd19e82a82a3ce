"""What a pack is found by."""

from typing import NamedTuple


class PackKey(NamedTuple):  # hashed many times for each pack that comes: at a tenth of a dataclass's cost
    """An adapter's digest, and the digest of the layout that it is packed for."""

    layout: str
    digest: str
