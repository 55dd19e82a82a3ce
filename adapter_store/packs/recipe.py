"""How a pack is made again from files that it was made from before: what to read, and where it goes.

Worked out once, and kept in a tenth of what a plan takes. Nothing is looked at on the way: who makes a pack
so must know what it hashes to.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adapter_store.concurrency.crew import ALONE, Crew, Urgency
from adapter_store.formats.safetensors_files import NUMPY_DTYPES
from adapter_store.packs.cutting import copy_cuts
from adapter_store.packs.filling import gaps_of, groups_of
from adapter_store.packs.packing import lies_in_place, read_scattered
from adapter_store.packs.plan import PackPlan, PlacedTensor
from lorikeet.v1 import layout_pb2

# What a tensor that is cut takes: its places are kept as they are.
_PLACE_BYTES = 1000


class Cast(NamedTuple):
    """Brings a matrix of some shape to its place: transposed, cast, padded with zeros."""

    stored: str
    rows: int
    columns: int
    is_transposed: bool
    dtype: str
    place_rows: int
    place_columns: int

    def copy(self, buffer: np.ndarray, begin: int, target: memoryview, offset: int) -> None:
        """Values may overflow to infinity."""
        stored = np.ndarray((self.rows, self.columns), NUMPY_DTYPES[self.stored], buffer, begin)
        stored = stored.T if self.is_transposed else stored
        place = np.ndarray((self.place_rows, self.place_columns), NUMPY_DTYPES[self.dtype], target, offset)
        rows, columns = stored.shape
        if rows < self.place_rows:
            place[rows:] = 0
        if columns < self.place_columns:
            place[:rows, columns:] = 0
        place[:rows, :columns] = stored


class _Reading(NamedTuple):
    """What one call reads, from `begin` of a file on.

    `pieces` [P, 3]: whether to the buffer or the pack, from which byte there, how many; `casts` [C, 3]: which
    of the recipe's, from where in the buffer, to where in the pack.
    """

    file: str
    begin: int
    buffer_bytes: int
    pieces: np.ndarray
    casts: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """What packs of the same tensors have in common."""

    gaps: np.ndarray
    casts: tuple[Cast, ...]
    readings: tuple[_Reading, ...]
    stacks: tuple[tuple[PlacedTensor, ...], ...]

    @property
    def nbytes(self) -> int:
        arrays = sum(500 + reading.pieces.nbytes + reading.casts.nbytes for reading in self.readings)
        return self.gaps.nbytes + arrays + sum(map(len, self.stacks)) * _PLACE_BYTES


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pack of `pack_bytes`; `manifest` is a serialised PackManifest with its digest."""

    manifest: bytes
    pack_bytes: int
    steps: _Steps

    @property
    def nbytes(self) -> int:
        """What it takes itself, about, if it shares nothing."""
        return 1000 + len(self.manifest) + self.steps.nbytes

    def read_manifest(self) -> layout_pb2.PackManifest:
        return layout_pb2.PackManifest.FromString(self.manifest)

    def fill(
        self, folder: Path, target: memoryview, *, crew: Crew = ALONE, urgency: Urgency | None = None
    ) -> None:
        """Writes every byte of the pack.

        Args:
            folder: of the files, wherever they lie now.

        Raises:
            OSError: a file is gone.
            LorikeetError: INVALID_ARGUMENT, BAD_FILE: it is shorter than it was.
        """
        for begin, end in self.steps.gaps.tolist():
            target[begin:end] = bytes(end - begin)

        def work(part: _Reading | tuple[PlacedTensor, ...]) -> None:
            if isinstance(part, _Reading):
                self._read(folder, part, target)
            else:
                _copy_stack(folder, part, target)

        crew.run(work, (*self.steps.readings, *self.steps.stacks), urgency)

    def _read(self, folder: Path, reading: _Reading, target: memoryview) -> None:
        buffer = np.empty(reading.buffer_bytes, np.uint8)
        places = (target, buffer.data)
        pieces = [places[where][begin : begin + size] for where, begin, size in reading.pieces.tolist()]
        read_scattered(os.path.join(folder, reading.file), reading.begin, pieces)
        if len(reading.casts):
            with np.errstate(over="ignore", under="ignore"):
                for which, begin, offset in reading.casts.tolist():
                    self.steps.casts[which].copy(buffer, begin, target, offset)


def manifest_bytes(manifest: layout_pb2.PackManifest) -> bytes:
    """The same for the same manifest."""
    return manifest.SerializeToString(deterministic=True)


def recipe_of(plan: PackPlan) -> Recipe:
    """Of a plan whose manifest has its digest."""
    total = plan.manifest.total_bytes
    return Recipe(manifest=manifest_bytes(plan.manifest), pack_bytes=total, steps=plan.once(_steps_of))


def _steps_of(plan: PackPlan) -> _Steps:
    casts: dict[Cast, int] = {}
    groups = plan.once(groups_of)
    readings = tuple(_reading(group, casts) for group in groups if group[0].cut is None)
    return _Steps(
        gaps=np.array(plan.once(gaps_of), np.int64).reshape(-1, 2),
        casts=tuple(casts),
        readings=readings,
        stacks=tuple(tuple(group) for group in groups if group[0].cut is not None),
    )


def _reading(group: Sequence[PlacedTensor], casts: dict[Cast, int]) -> _Reading:
    pieces: list[tuple[int, int, int]] = []
    moves: list[tuple[int, int, int]] = []
    size = 0
    for placed in group:
        entry = placed.entry
        if lies_in_place(placed):
            pieces.append((0, placed.offset, entry.nbytes))
        else:
            moves.append((casts.setdefault(_cast(placed), len(casts)), size, placed.offset))
            pieces.append((1, size, entry.nbytes))
            size += entry.nbytes
    first = group[0].entry
    return _Reading(
        file=first.file,
        begin=first.begin,
        buffer_bytes=size,
        pieces=np.array(list(_joined(pieces)), np.int64).reshape(-1, 3),
        casts=np.array(moves, np.int64).reshape(-1, 3),
    )


def _cast(placed: PlacedTensor) -> Cast:
    rows, columns = (1, *placed.entry.shape)[-2:]
    return Cast(
        placed.entry.dtype, rows, columns, placed.is_transposed, placed.dtype, placed.rows, placed.columns
    )


def _joined(pieces: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Neighbours at once."""
    where, begin, size = pieces[0]
    for next_where, next_begin, next_size in pieces[1:]:
        if (next_where, next_begin) == (where, begin + size):
            size += next_size
        else:
            yield where, begin, size
            where, begin, size = next_where, next_begin, next_size
    yield where, begin, size


def _copy_stack(folder: Path, stack: Sequence[PlacedTensor], target: memoryview) -> None:
    entry = stack[0].entry
    data = np.empty(entry.nbytes, np.uint8)
    read_scattered(os.path.join(folder, entry.file), entry.begin, [data.data])
    copy_cuts(data.data, stack, target)
