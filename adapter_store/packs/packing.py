"""Packs tensors: each is read once, straight to its place, hashed and checked there.

What a pack looks like is plan.py's, what is packed when filling.py's.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import blake3
import numpy as np

from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry, TensorFiles
from adapter_store.packs.cutting import copy_cuts, zero_cuts
from adapter_store.packs.identity import TensorScan
from adapter_store.packs.plan import PlacedTensor
from adapter_store.packs.scanning import BITS, Look, largest, scan
from rpc.errors import LorikeetError, invalid_argument


class _Read(NamedTuple):
    """A tensor, and where its bytes are read to: its place in the pack, or a buffer for the group."""

    placed: PlacedTensor
    begin: int
    is_in_place: bool

    @property
    def end(self) -> int:
        return self.begin + self.placed.entry.nbytes


class _Group(NamedTuple):
    """What is read at once; `buffer` has what has no place in the pack as it is."""

    reads: list[_Read]
    buffer: memoryview


def is_finite(array: np.ndarray, dtype: str) -> bool:
    """True when no element of a contiguous array of that safetensors dtype is NaN or infinite."""
    return largest(array.reshape(-1).view(BITS[dtype][0]), dtype) < BITS[dtype][2]


def pack_stack(
    stack: Sequence[PlacedTensor], files: TensorFiles, target: memoryview | None
) -> dict[str, TensorScan]:
    """One tensor and all its cuts; see `pack_group`."""
    entry = stack[0].entry
    bits, magnitude, infinity = BITS[entry.dtype]
    data = _read_whole(files, entry)
    most = largest(data.view(bits), entry.dtype)
    if most >= infinity:
        raise _not_finite(entry)
    if not _fits(most, entry.dtype, stack[0].dtype):
        raise _out_of_range(stack[0])
    if target is not None:
        copy_cuts(data.data, stack, target)
    cuts = [placed.cut for placed in stack if placed.cut is not None]
    empty = zero_cuts(data.data, bits, magnitude, cuts)
    digest = blake3.blake3(data.data).hexdigest()
    return {entry.name: TensorScan(digest=digest, is_zero=len(empty) == len(cuts), zero_cuts=empty)}


def pack_group(
    group: Sequence[PlacedTensor], files: TensorFiles, target: memoryview | None, look: Look | None = None
) -> dict[str, TensorScan]:
    """Tensors that lie behind each other in one file; without a target they are only scanned.

    Args:
        look: at what is in the target; else this thread does.

    Raises LorikeetError, INVALID_ARGUMENT, naming the tensor.
    """
    reads, buffer = _read_group(group, files, target)
    if target is None or look is None:
        look = partial(scan, buffer if target is None else target)
    found = _scans([read for read in reads if read.is_in_place], look)
    converted = [read for read in reads if not read.is_in_place]
    found |= _scans(converted, partial(scan, buffer))
    for read in converted:
        _convert(read, buffer, target)
    return found


def _read_whole(files: TensorFiles, entry: TensorEntry) -> np.ndarray:
    """The bytes of a tensor that has no place as it is."""
    data = np.empty(entry.nbytes, np.uint8)
    read_scattered(files.path_of(entry), entry.begin, [data.data])
    return data


def _read_group(group: Sequence[PlacedTensor], files: TensorFiles, target: memoryview | None) -> _Group:
    reads: list[_Read] = []
    size = 0
    for placed in group:
        if target is not None and lies_in_place(placed):
            reads.append(_Read(placed, placed.offset, is_in_place=True))
        else:
            reads.append(_Read(placed, size, is_in_place=False))
            size += placed.entry.nbytes
    buffer = np.empty(size, np.uint8).data
    first = group[0].entry
    read_scattered(files.path_of(first), first.begin, list(_destinations(reads, buffer, target)))
    return _Group(reads, buffer)


def lies_in_place(placed: PlacedTensor) -> bool:
    """True when a tensor's bytes are those that its place begins with: no more rows than there, and alike."""
    entry = placed.entry
    if entry.dtype != placed.dtype or placed.is_transposed:
        return False
    # A vector counts as one row.
    rows, columns = (1, *entry.shape)[-2:]
    return columns == placed.columns and rows <= placed.rows


def _destinations(
    reads: Sequence[_Read], buffer: memoryview, target: memoryview | None
) -> Iterator[memoryview]:
    """Where the bytes go, neighbours at once."""
    is_in_place, begin, end = reads[0].is_in_place, reads[0].begin, reads[0].begin
    for read in reads:
        if read.is_in_place != is_in_place or read.begin != end:
            yield (target if target is not None and is_in_place else buffer)[begin:end]
            is_in_place, begin = read.is_in_place, read.begin
        end = read.end
    yield (target if target is not None and is_in_place else buffer)[begin:end]


def read_scattered(path: str | Path, begin: int, buffers: list[memoryview]) -> None:
    """One read scatters them all: no map, no page faults, no interpreter lock. Raises BAD_FILE, OSError."""
    wanted = sum(map(len, buffers))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        got = os.preadv(descriptor, buffers, begin)
        if got != wanted:  # rare: a signal, or more than one call may read
            _read_slowly(descriptor, begin, buffers)
    finally:
        os.close(descriptor)


def _read_slowly(descriptor: int, position: int, buffers: list[memoryview]) -> None:
    for buffer in buffers:
        done = 0
        while done < len(buffer):
            step = os.preadv(descriptor, [buffer[done:]], position + done)
            if step == 0:
                raise invalid_argument("BAD_FILE", "a file of the adapter became shorter while it was read")
            done += step
        position += done


def _scans(reads: Sequence[_Read], look: Look) -> dict[str, TensorScan]:
    scans: dict[str, TensorScan] = {}
    for dtype in dict.fromkeys(read.placed.entry.dtype for read in reads):
        alike = [read for read in reads if read.placed.entry.dtype == dtype]
        found = look(dtype, [read.begin for read in alike], [read.placed.entry.nbytes for read in alike])
        if found.not_finite is not None:
            raise _not_finite(alike[found.not_finite].placed.entry)
        digests = found.digests.hex()
        for index, read in enumerate(alike):
            digest = digests[64 * index : 64 * index + 64]
            scans[read.placed.entry.name] = TensorScan(digest, found.zeros[index] != 0)
    return scans


def _fits(most: int, dtype: str, packed: str) -> bool:
    """True when the value of this magnitude, and so every smaller one, is finite in the pack's dtype."""
    value = np.array([most], BITS[dtype][0]).view(NUMPY_DTYPES[dtype])
    with np.errstate(over="ignore", under="ignore"):
        return is_finite(value.astype(NUMPY_DTYPES[packed]), packed)


def _convert(read: _Read, buffer: memoryview, target: memoryview | None) -> None:
    """Transposes, casts and pads a tensor into its place."""
    placed, entry = read.placed, read.placed.entry
    if target is None and entry.dtype == placed.dtype:
        return
    dtype = NUMPY_DTYPES[placed.dtype]
    data = buffer[read.begin : read.end]
    stored = np.frombuffer(data, NUMPY_DTYPES[entry.dtype]).reshape((1, *entry.shape)[-2:])
    stored = stored.T if placed.is_transposed else stored
    rows, columns = stored.shape
    if target is None:
        place = np.empty((placed.rows, placed.columns), dtype)
    else:
        count = placed.rows * placed.columns
        place = np.frombuffer(target, dtype, count, placed.offset).reshape(placed.rows, placed.columns)
    place[rows:], place[:rows, columns:] = 0, 0
    with np.errstate(over="ignore", under="ignore"):
        place[:rows, :columns] = stored
    if entry.dtype != placed.dtype and not is_finite(place, placed.dtype):
        raise _out_of_range(placed)


def _out_of_range(placed: PlacedTensor) -> LorikeetError:
    return invalid_argument(
        "OUT_OF_RANGE",
        f"{placed.entry.name} holds values that {placed.dtype} cannot represent",
        tensor=placed.entry.name,
    )


def _not_finite(entry: TensorEntry) -> LorikeetError:
    return invalid_argument(
        "NOT_FINITE", f"{entry.name} holds NaN or infinity: the training diverged", tensor=entry.name
    )
