"""Digests that several services compute and must agree on: BLAKE3, as 64 lower-case hex digits."""

from pathlib import Path

import blake3

from lorikeet.v1 import layout_pb2

_DIGITS = frozenset("0123456789abcdef")


def layout_digest(layout: layout_pb2.Layout) -> str:
    """Identity of a layout: over its deterministic serialisation."""
    return blake3.blake3(layout.SerializeToString(deterministic=True)).hexdigest()


def file_digest(path: Path) -> str:
    """Identity of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        digest = blake3.blake3()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_digest(text: str) -> bool:
    """True for 64 lower-case hex digits."""
    return len(text) == 64 and _DIGITS.issuperset(text)
