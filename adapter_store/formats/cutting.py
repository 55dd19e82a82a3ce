"""Copies the cuts of one tensor to their places in a pack.

The experts' cuts lie regularly, in the tensor and in the pack, so that a few strided copies do all of them.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from adapter_store.formats.adapted import Cut
from adapter_store.formats.plan import PlacedTensor
from adapter_store.formats.safetensors_files import NUMPY_DTYPES

# Of the tensor, taken at a time: what one cut reads of a line of the cache, the next finds there.
_BLOCK_BYTES = 1 << 17


class _Run(NamedTuple):
    """Cuts that are alike, `cut_step` elements and `place_step` bytes after each other."""

    first: PlacedTensor
    cut: Cut
    number: int
    cut_step: int
    place_step: int


def copy_cuts(data: memoryview, places: Sequence[PlacedTensor], target: memoryview) -> None:
    """Writes the cuts of a tensor to their places, cast and padded. Values may overflow to infinity."""
    for run in _runs(places):
        _copy(data, run, target)


def view_of(data: memoryview, dtype: np.dtype, cut: Cut) -> np.ndarray:
    """A cut of a tensor's bytes: [rows, columns], no copy."""
    steps = cut.row_step * dtype.itemsize, cut.column_step * dtype.itemsize
    return np.ndarray((cut.rows, cut.columns), dtype, data, cut.start * dtype.itemsize, steps)


def zero_cuts(data: memoryview, bits: np.dtype, mask: int, cuts: Sequence[Cut]) -> frozenset[Cut]:
    """Those that have nothing but zeros under the mask, of a tensor's bits."""
    heads = np.frombuffer(data, bits)[[cut.start for cut in cuts]] & mask
    # Most give themselves away by their first element.
    suspects = [cuts[int(index)] for index in np.flatnonzero(heads == 0)]
    return frozenset(cut for cut in suspects if _is_zero(view_of(data, bits, cut), mask))


def _is_zero(bits: np.ndarray, mask: int) -> bool:
    return not any((row & mask).any() for row in bits)


def _runs(places: Sequence[PlacedTensor]) -> Iterator[_Run]:
    """Groups cuts by their steps, in the tensor's order."""
    ordered = sorted(
        ((placed.cut, placed) for placed in places if placed.cut is not None), key=lambda pair: pair[0]
    )
    begin = 0
    steps = [(b[0].start - a[0].start, b[1].offset - a[1].offset) for a, b in pairwise(ordered)]
    while begin < len(ordered):
        end = begin + 1
        while end < len(ordered) and steps[end - 1] == steps[begin]:
            end += 1
        cut, first = ordered[begin]
        cut_step, place_step = steps[begin] if end > begin + 1 else (0, 0)
        yield _Run(first=first, cut=cut, number=end - begin, cut_step=cut_step, place_step=place_step)
        begin = end


def _copy(data: memoryview, run: _Run, target: memoryview) -> None:
    cut, first = run.cut, run.first
    stored = NUMPY_DTYPES[first.entry.dtype]
    item = stored.itemsize
    source = np.ndarray(
        (run.number, cut.rows, cut.columns),
        stored,
        data,
        cut.start * item,
        (run.cut_step * item, cut.row_step * item, cut.column_step * item),
    )
    dtype = NUMPY_DTYPES[first.dtype]
    place = np.ndarray(
        (run.number, first.rows, first.columns),
        dtype,
        target,
        first.offset,
        (run.place_step, first.columns * dtype.itemsize, dtype.itemsize),
    )
    place[:, cut.rows :], place[:, : cut.rows, cut.columns :] = 0, 0
    inner = place[:, : cut.rows, : cut.columns]
    # Along the longer of the two steps, unless the cuts themselves lie farther apart.
    axis = 1 if cut.row_step > cut.column_step else 2
    step = max(cut.row_step, cut.column_step)
    length = inner.shape[axis] if step <= run.cut_step else max(1, _BLOCK_BYTES // (step * item))
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, inner.shape[axis], length):
            block = slice(start, start + length)
            if axis == 1:
                inner[:, block] = source[:, block]
            else:
                inner[:, :, block] = source[:, :, block]
