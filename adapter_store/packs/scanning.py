"""Looks at tensors' bytes: their digests, whether every value is finite, and which are zero throughout.

Imports next to nothing, since processes that do only this begin here (scan_process.py).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import blake3
import numpy as np

BITS = {
    "F32": (np.dtype("<u4"), 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7FFF, 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7FFF, 0x7F80),
}
"""Of each dtype its bits, those of the magnitude, and the smallest magnitude that is not finite (IEEE 754:
infinity, then the NaNs)."""

# Looked at twice, and still in a core's cache the second time.
_BATCH_BYTES = 1 << 20
_CHECK_BYTES = 1 << 19


class Found(NamedTuple):
    """What is known of some tensors now, in their order: BLAKE3, 32 bytes each, and whether all of it is
    zero, a byte each.

    `not_finite` is the first that holds NaN or infinity; then the others were not all looked at.
    """

    digests: bytes = b""
    zeros: bytes = b""
    not_finite: int | None = None


Look: TypeAlias = Callable[[str, Sequence[int], Sequence[int]], Found]
"""Looks at tensors of one dtype, by where they begin and their sizes."""


def scan(data: memoryview, dtype: str, begins: Sequence[int], sizes: Sequence[int]) -> Found:
    """Looks at tensors of one dtype that lie in `data`, quickest where they lie behind each other."""
    bits, magnitude, infinity = BITS[dtype]
    digests: list[bytes] = [b""] * len(begins)
    zeros = bytearray(len(begins))
    for batch in _batches(begins, sizes):
        for begin, end in _ranges(batch, begins, sizes):
            if largest(np.frombuffer(data[begin:end], bits), dtype) >= infinity:
                return Found(not_finite=_not_finite(data, dtype, begins, sizes))
        for index in batch:
            begin = begins[index]
            tensor = data[begin : begin + sizes[index]]
            digests[index] = blake3.blake3(tensor).digest()
            # Most give themselves away by their first element.
            if not int.from_bytes(tensor[: bits.itemsize], "little") & magnitude:
                zeros[index] = largest(np.frombuffer(tensor, bits), dtype) == 0
    return Found(b"".join(digests), bytes(zeros))


def largest(array: np.ndarray, dtype: str) -> int:
    """The largest magnitude of a flat array of bits."""
    _, magnitude, _ = BITS[dtype]
    step = _CHECK_BYTES // array.itemsize
    chunks = (array[start : start + step] for start in range(0, array.size, step))
    return max((int((chunk & magnitude).max()) for chunk in chunks), default=0)


def _batches(begins: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Indices by where they begin, so that neighbours can be checked at once."""
    batch: list[int] = []
    size = 0
    for index in sorted(range(len(begins)), key=begins.__getitem__):
        if batch and size + sizes[index] > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += sizes[index]
    if batch:
        yield batch


def _ranges(batch: list[int], begins: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of what lies behind each other."""
    begin = end = begins[batch[0]]
    for index in batch:
        if begins[index] != end:
            yield begin, end
            begin = begins[index]
        end = begins[index] + sizes[index]
    yield begin, end


def _not_finite(data: memoryview, dtype: str, begins: Sequence[int], sizes: Sequence[int]) -> int:
    bits, _, infinity = BITS[dtype]
    return next(
        index
        for index, (begin, size) in enumerate(zip(begins, sizes, strict=True))
        if largest(np.frombuffer(data[begin : begin + size], bits), dtype) >= infinity
    )
