"""What a pack is found by."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PackKey:
    """An adapter's digest, and the digest of the layout that it is packed for."""

    layout: str
    digest: str
