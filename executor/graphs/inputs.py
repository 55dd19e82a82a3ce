"""What changes from step to step, in one buffer, so that it comes in one copy into memory that graphs read.

Running example: row 0 decodes with slot 4, row 2 feeds 3 tokens of its prompt, by the base. Of 8 tokens, 4
rows and 2 tiles of chunks:

    tokens   ids 17 3 5 LAST_SAMPLED | rows 2 2 2 0 | positions 0 1 2 30 | kv 41 42 43 82 -1 -1 -1 -1
    decodes  0 | token 3 | position 30 | length 1, then tiles of length 0, which do nothing
    chunks   2 | token 0 | position 0 | length 3
    sampled  tokens 2 3 0 0 | rows 2 0 0 0
    tiles    slot 4 | token 3 | length 1
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from executor.graphs.shapes import LoraShape, StepShape

Array = TypeVar("Array", np.ndarray, Tensor)

_APART = 4
"""Parts begin at multiples of 16 bytes, for which kernels are compiled once."""


class Inputs(NamedTuple, Generic[Array]):
    """Views of an int32 buffer. Padding has a place of -1 in the cache, and tiles no length.

    tokens `[4, T]`: id, row, position, place in the cache. decodes `[4, N]` and chunks `[4, C]` are tiles of
    attention, tiles `[3, L]` those of adapters. sampled `[2, R]`: token and row; empty where all are. ends
    `[3, R]`: tiles of adapters of the sampled tokens, where adapters change the head.
    """

    tokens: Array
    decodes: Array
    chunks: Array
    sampled: Array
    tiles: Array
    ends: Array


def parts(buffer: Array, shape: StepShape) -> Inputs[Array]:
    """A buffer's inputs, for one shape."""
    views, first = [], 0
    for rows, columns in _sizes(shape):
        # Rows of tokens go to kernels one by one, tiles as a whole.
        apart = _padded(columns) if not views else columns
        views.append(buffer[first : first + rows * apart].reshape(rows, apart)[:, :columns])
        first += _padded(rows * apart)
    return Inputs(*views)


def count(shape: StepShape) -> int:
    """How many numbers a shape's inputs are, with what lies between them."""
    (rows, columns), *others = _sizes(shape)
    return rows * _padded(columns) + sum(_padded(rows * columns) for rows, columns in others)


def most(shape: StepShape) -> int:
    """`count` with whatever adapters."""
    lora = LoraShape(tiles=shape.tokens, block=1, rank=1, routers=True, ends=True, beside=False)
    return count(shape._replace(lora=lora))


def idle(shape: StepShape) -> np.ndarray:
    """Inputs of a step in which nothing is done."""
    numbers = np.zeros(count(shape), dtype=np.int32)
    parts(numbers, shape).tokens[3] = -1
    return numbers


def _sizes(shape: StepShape) -> tuple[tuple[int, int], ...]:
    chosen = shape.rows if shape.chunks else 0
    lora = shape.lora
    return (
        (4, shape.tokens),
        (4, shape.decodes),
        (4, shape.chunks),
        (2, chosen),
        (3, lora.tiles if lora is not None else 0),
        (3, chosen if lora is not None and lora.ends else 0),
    )


def _padded(number: int) -> int:
    return -(-number // _APART) * _APART
