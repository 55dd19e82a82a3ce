"""The cuts of one tensor: seen without a copy, and copied to their places in a pack.

The experts' cuts lie regularly, in the tensor and in the pack, so that a few strided copies do all of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from adapter_store.formats.adapted import Cut
from adapter_store.formats.safetensors_files import NUMPY_DTYPES
from adapter_store.packs.plan import PlacedTensor

# Of the tensor, taken at a time: what one cut reads of a line of the cache, the next finds there.
_BLOCK_BYTES = 1 << 17


class CutRun(NamedTuple):
    """Cuts that are alike, `step` elements after each other."""

    first: Cut
    number: int
    step: int

    def view(self, data: memoryview, dtype: np.dtype) -> np.ndarray:
        """All of them in a tensor's bytes: [number, rows, columns], no copy."""
        cut, item = self.first, dtype.itemsize
        steps = self.step * item, cut.row_step * item, cut.column_step * item
        return np.ndarray((self.number, cut.rows, cut.columns), dtype, data, cut.start * item, steps)


def copy_cuts(data: memoryview, places: Sequence[PlacedTensor], target: memoryview) -> None:
    """Writes the cuts of a tensor to their places, cast and padded. Values may overflow to infinity."""
    for run, first, place_step in _placed_runs(places):
        _copy(data, run, first, place_step, target)


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


def runs(starts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    """(first, number) of neighbours that follow each other by the same steps."""
    steps = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(starts)]
    begin = 0
    while begin < len(starts):
        end = begin + 1
        while end < len(starts) and steps[end - 1] == steps[begin]:
            end += 1
        yield begin, end - begin
        begin = end


def cut_runs(cuts: Iterable[Cut]) -> Iterator[CutRun]:
    """Cuts that are alike, in runs."""
    ordered = sorted(cuts)
    for begin, number in runs([(cut.start,) for cut in ordered]):
        step = ordered[begin + 1].start - ordered[begin].start if number > 1 else 0
        yield CutRun(ordered[begin], number, step)


def _placed_runs(places: Sequence[PlacedTensor]) -> Iterator[tuple[CutRun, PlacedTensor, int]]:
    """Runs in the tensor that are runs in the pack too: with the first's place, and bytes to the next."""
    ordered = sorted(
        ((placed.cut, placed) for placed in places if placed.cut is not None), key=lambda pair: pair[0]
    )
    for begin, number in runs([(cut.start, placed.offset) for cut, placed in ordered]):
        cut, placed = ordered[begin]
        following, next_placed = ordered[begin + 1] if number > 1 else (cut, placed)
        yield CutRun(cut, number, following.start - cut.start), placed, next_placed.offset - placed.offset


def _copy(data: memoryview, run: CutRun, first: PlacedTensor, place_step: int, target: memoryview) -> None:
    cut, stored = run.first, NUMPY_DTYPES[first.entry.dtype]
    source = run.view(data, stored)
    dtype = NUMPY_DTYPES[first.dtype]
    place = np.ndarray(
        (run.number, first.rows, first.columns),
        dtype,
        target,
        first.offset,
        (place_step, first.columns * dtype.itemsize, dtype.itemsize),
    )
    place[:, cut.rows :], place[:, : cut.rows, cut.columns :] = 0, 0
    inner = place[:, : cut.rows, : cut.columns]
    # Along the longer of the two steps, unless the cuts themselves lie farther apart.
    axis = 1 if cut.row_step > cut.column_step else 2
    step = max(cut.row_step, cut.column_step)
    length = inner.shape[axis] if step <= run.step else max(1, _BLOCK_BYTES // (step * stored.itemsize))
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, inner.shape[axis], length):
            block = slice(start, start + length)
            if axis == 1:
                inner[:, block] = source[:, block]
            else:
                inner[:, :, block] = source[:, :, block]
