"""The port to the memory that resident packs live in, and one for runners that compute nothing."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from executor.adapters.placements import Placements
from executor.control.loader import UNIT_BYTES
from lorikeet.v1 import layout_pb2

Row = TypeVar("Row")


class PackCopy(NamedTuple, Generic[Row]):
    """A pack on its way to units of the pool from `unit_offset` on, and to a slot that is to show it by this
    row.
    """

    slot: int
    unit_offset: int
    pack: bytes | bytearray | memoryview
    row: Row


class Pool(Protocol[Row]):
    """`prepare`, `write` and `complete`, in this order, may run on any one thread, for ranges and slots that
    no step in flight has; `install_slot` and `clear_slot` come between launches.
    """

    def register(self, memory: np.ndarray) -> None:
        """Packs will come from this memory, uint8; may take seconds. By the thread that writes, before it
        does so from there.
        """
        ...

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> Row:
        """Work out what a slot needs to show a pack that is to lie at `unit_offset`. `places` are the
        manifest's, where they are known.

        Raises ValueError where it and the base do not go together.
        """
        ...

    def write(self, copies: Sequence[PackCopy[Row]]) -> None:
        """Copy packs, and what shows them, though nothing does before `install_slot`."""
        ...

    def complete(self, unit_offset: int, manifest: layout_pb2.PackManifest, row: Row) -> None:
        """Complete a pack that was written. Raises ValueError where it and the base do not go together."""
        ...

    def install_slot(self, slot: int, row: Row) -> None:
        """The slot shows what was written for it."""
        ...

    def clear_slot(self, slot: int) -> None:
        """No step may have the slot from now on."""
        ...


class PlainPool:
    """Bytes without a model: what the arithmetic runner's adapters are copied to."""

    def __init__(self, *, units: int) -> None:
        self.bytes = np.zeros(units * UNIT_BYTES, np.uint8)
        self.slots: dict[int, tuple[int, str]] = {}
        """The unit offset and the digest that each slot shows."""

    def register(self, memory: np.ndarray) -> None:
        pass

    def prepare(
        self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements | None = None
    ) -> tuple[int, str]:
        return unit_offset, manifest.digest

    def write(self, copies: Sequence[PackCopy[tuple[int, str]]]) -> None:
        for copy in copies:
            source, start = np.frombuffer(copy.pack, np.uint8), copy.unit_offset * UNIT_BYTES
            if start + source.size > self.bytes.size:
                raise ValueError(
                    f"a pack of {source.size} bytes at unit {copy.unit_offset} does not fit the pool"
                )
            self.bytes[start : start + source.size] = source

    def complete(self, unit_offset: int, manifest: layout_pb2.PackManifest, row: tuple[int, str]) -> None:
        pass

    def install_slot(self, slot: int, row: tuple[int, str]) -> None:
        self.slots[slot] = row

    def clear_slot(self, slot: int) -> None:
        self.slots.pop(slot, None)
