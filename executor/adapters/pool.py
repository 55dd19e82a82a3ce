"""The port to the memory that resident packs live in, and one for runners that compute nothing."""

from typing import Protocol, TypeVar

import numpy as np

from executor.adapters.placements import Placements
from executor.control.loader import UNIT_BYTES
from lorikeet.v1 import layout_pb2

Row = TypeVar("Row")


class Pool(Protocol[Row]):
    """`write` and, after it, `prepare` may run on any thread, in a range that no slot shows; the rest comes
    between launches.
    """

    def register(self, memory: np.ndarray) -> None:
        """Packs will come from this memory, uint8; may take seconds. By the thread that writes, before it
        does so from there.
        """
        ...

    def write(self, unit_offset: int, pack: bytes | bytearray | memoryview) -> None: ...

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> Row:
        """Complete a pack that was written, and work out what a slot needs to show it. `places` are the
        manifest's, where they are known.

        Raises ValueError where it and the base do not go together.
        """
        ...

    def install_slot(self, slot: int, row: Row) -> None: ...

    def clear_slot(self, slot: int) -> None: ...


class PlainPool:
    """Bytes without a model: what the arithmetic runner's adapters are copied to."""

    def __init__(self, *, units: int) -> None:
        self.bytes = np.zeros(units * UNIT_BYTES, np.uint8)
        self.slots: dict[int, tuple[int, str]] = {}
        """The unit offset and the digest that each slot shows."""

    def register(self, memory: np.ndarray) -> None:
        pass

    def write(self, unit_offset: int, pack: bytes | bytearray | memoryview) -> None:
        source = np.frombuffer(pack, np.uint8)
        start = unit_offset * UNIT_BYTES
        if start + source.size > self.bytes.size:
            raise ValueError(f"a pack of {source.size} bytes at unit {unit_offset} does not fit the pool")
        self.bytes[start : start + source.size] = source

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> tuple[int, str]:
        return unit_offset, manifest.digest

    def install_slot(self, slot: int, row: tuple[int, str]) -> None:
        self.slots[slot] = row

    def clear_slot(self, slot: int) -> None:
        self.slots.pop(slot, None)
