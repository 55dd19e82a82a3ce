"""Packs tensors: each is read once, straight to its place, hashed and checked there.

What a pack looks like is plan.py's, what is packed when filling.py's.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import blake3
import numpy as np

from adapter_store.formats.cutting import copy_cuts, zero_cuts
from adapter_store.formats.identity import TensorScan
from adapter_store.formats.plan import PlacedTensor
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry, TensorFiles
from rpc.errors import LorikeetError, invalid_argument

# Magnitude bits, and the smallest magnitude that is not finite (IEEE 754: infinity, then the NaNs).
_BITS = {
    "F32": (np.dtype("<u4"), 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7FFF, 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7FFF, 0x7F80),
}

_CHECK_BYTES = 1 << 19


class _Read(NamedTuple):
    """A tensor, and where its bytes were read to: its place in the pack, or a buffer."""

    placed: PlacedTensor
    data: memoryview
    is_in_place: bool


def is_finite(array: np.ndarray, dtype: str) -> bool:
    """True when no element of a contiguous array of that safetensors dtype is NaN or infinite."""
    return _largest(array.reshape(-1).view(_BITS[dtype][0]), dtype) < _BITS[dtype][2]


def pack_stack(
    stack: Sequence[PlacedTensor], files: TensorFiles, target: memoryview | None
) -> dict[str, TensorScan]:
    """One tensor and all its cuts; see `pack_group`."""
    entry = stack[0].entry
    bits, magnitude, infinity = _BITS[entry.dtype]
    data = _read_whole(files, entry)
    largest = _largest(data.view(bits), entry.dtype)
    if largest >= infinity:
        raise _not_finite(entry)
    if not _fits(largest, entry.dtype, stack[0].dtype):
        raise _out_of_range(stack[0])
    if target is not None:
        copy_cuts(data.data, stack, target)
    cuts = [placed.cut for placed in stack if placed.cut is not None]
    empty = zero_cuts(data.data, bits, magnitude, cuts)
    digest = blake3.blake3(data.data).hexdigest()
    return {entry.name: TensorScan(digest=digest, is_zero=len(empty) == len(cuts), zero_cuts=empty)}


def pack_group(
    group: Sequence[PlacedTensor], files: TensorFiles, target: memoryview | None
) -> dict[str, TensorScan]:
    """Tensors that lie behind each other in one file; without a target they are only scanned.

    Raises LorikeetError, INVALID_ARGUMENT, naming the tensor.
    """
    reads = _read_group(group, files, target)
    for run in _runs(reads):
        _check_finite(run, target)
    for read in reads:
        if not read.is_in_place:
            _convert(read, target)
    return {read.placed.entry.name: _scan(read) for read in reads}


def copy_group(group: Sequence[PlacedTensor], files: TensorFiles, target: memoryview) -> None:
    """Brings tensors, or one tensor's cuts, to their places and looks at nothing."""
    if group[0].cut is not None:
        copy_cuts(_read_whole(files, group[0].entry).data, group, target)
        return
    for read in _read_group(group, files, target):
        if not read.is_in_place:
            _convert(read, target)


def _read_whole(files: TensorFiles, entry: TensorEntry) -> np.ndarray:
    """The bytes of a tensor that has no place as it is."""
    data = np.empty(entry.nbytes, np.uint8)
    _read(files, entry, [data.data])
    return data


def _read_group(group: Sequence[PlacedTensor], files: TensorFiles, target: memoryview | None) -> list[_Read]:
    reads = [_destination(placed, target) for placed in group]
    _read(files, group[0].entry, [read.data for read in reads])
    return reads


def _destination(placed: PlacedTensor, target: memoryview | None) -> _Read:
    entry = placed.entry
    place = (placed.rows, placed.columns)
    # A vector counts as one row.
    is_same = entry.shape == place or (1, *entry.shape)[-2:] == place
    if target is not None and is_same and entry.dtype == placed.dtype and not placed.is_transposed:
        data = target[placed.offset : placed.offset + placed.nbytes]
        return _Read(placed=placed, data=data, is_in_place=True)
    return _Read(placed=placed, data=memoryview(bytearray(entry.nbytes)), is_in_place=False)


def _read(files: TensorFiles, first: TensorEntry, buffers: list[memoryview]) -> None:
    """One read scatters the whole group: no map, no page faults, no interpreter lock."""
    wanted = sum(map(len, buffers))
    descriptor = os.open(files.path_of(first), os.O_RDONLY | os.O_CLOEXEC)
    try:
        got = os.preadv(descriptor, buffers, first.begin)
        if got != wanted:  # rare: a signal, or more than one call may read
            _read_slowly(descriptor, first.begin, buffers)
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


def _runs(reads: Sequence[_Read]) -> Iterator[list[_Read]]:
    """Neighbours in the pack, which are checked at once."""
    run: list[_Read] = []
    for read in reads:
        if run:
            last = run[-1].placed
            joins = run[-1].is_in_place and read.is_in_place and last.dtype == read.placed.dtype
            if not joins or last.offset + last.nbytes != read.placed.offset:
                yield run
                run = []
        run.append(read)
    if run:
        yield run


def _check_finite(run: Sequence[_Read], target: memoryview | None) -> None:
    dtype = run[0].placed.entry.dtype
    bits, _, infinity = _BITS[dtype]
    if len(run) == 1:
        array = np.frombuffer(run[0].data, bits)
    else:
        first, last = run[0].placed, run[-1].placed
        assert target is not None
        count = (last.offset + last.nbytes - first.offset) // bits.itemsize
        array = np.frombuffer(target, bits, count, first.offset)
    if _largest(array, dtype) < infinity:
        return
    for read in run:
        if _largest(np.frombuffer(read.data, bits), dtype) >= infinity:
            raise _not_finite(read.placed.entry)


def _largest(array: np.ndarray, dtype: str) -> int:
    """The largest magnitude of a flat array of bits."""
    _, magnitude, _ = _BITS[dtype]
    step = _CHECK_BYTES // array.itemsize
    chunks = (array[start : start + step] for start in range(0, array.size, step))
    return max((int((chunk & magnitude).max()) for chunk in chunks), default=0)


def _fits(largest: int, dtype: str, packed: str) -> bool:
    """True when the value of this magnitude, and so every smaller one, is finite in the pack's dtype."""
    value = np.array([largest], _BITS[dtype][0]).view(NUMPY_DTYPES[dtype])
    with np.errstate(over="ignore", under="ignore"):
        return is_finite(value.astype(NUMPY_DTYPES[packed]), packed)


def _scan(read: _Read) -> TensorScan:
    entry = read.placed.entry
    bits, magnitude, _ = _BITS[entry.dtype]
    # Most tensors give themselves away by their first element.
    head = int.from_bytes(read.data[: bits.itemsize], "little") & magnitude
    is_zero = not head and _largest(np.frombuffer(read.data, bits), entry.dtype) == 0
    return TensorScan(digest=blake3.blake3(read.data).hexdigest(), is_zero=is_zero)


def _convert(read: _Read, target: memoryview | None) -> None:
    """Transposes, casts and pads a tensor into its place."""
    placed, entry = read.placed, read.placed.entry
    if target is None and entry.dtype == placed.dtype:
        return
    dtype = NUMPY_DTYPES[placed.dtype]
    stored = np.frombuffer(read.data, NUMPY_DTYPES[entry.dtype]).reshape((1, *entry.shape)[-2:])
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
