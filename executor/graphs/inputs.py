"""What changes from step to step, in one buffer, so that it comes in one copy into memory that graphs read.

Running example: row 0 decodes with slot 4, row 2 feeds 3 tokens of its prompt, by the base. Of 8 tokens, 4
rows and 2 tiles of chunks:

    tokens   ids 17 3 5 LAST_SAMPLED | rows 2 2 2 0 | positions 0 1 2 30 | kv 41 42 43 82 -1 -1 -1 -1
    decodes  0 | token 3 | position 30 | length 1, then tiles of length 0, which do nothing
    chunks   2 | token 0 | position 0 | length 3
    sampled  tokens 2 3 0 0 | rows 2 0 4 4, of which 4 is nobody's
    tiles    slot 4 | token 3 | length 1
    changes  of the page table: cells 5 -1 -1 ... | pages 17 0 0 ...
"""

from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from executor.graphs.shapes import LoraShape, StepShape

Array = TypeVar("Array", np.ndarray, Tensor)

_APART = 4
"""Parts begin at multiples of 16 bytes, for which kernels are compiled once."""
_TURNS = 3
"""Steps that may be on their way to the device at once, and the one that is written."""


class Inputs(NamedTuple, Generic[Array]):
    """Views of an int32 buffer. Padding has a row that is nobody's, a place of -1 in the cache, a cell of -1,
    and tiles no length.

    tokens `[4, T]`: id, row, position, place in the cache. decodes `[4, N]` and chunks `[4, C]` are tiles of
    attention, tiles `[3, L]` those of adapters. sampled `[2, R]`: token and row; empty where all are. ends
    `[3, R]`: tiles of adapters of the sampled tokens, where adapters change the head. changes `[2, T]`: cells
    of the page table, flat, and their pages.
    """

    tokens: Array
    decodes: Array
    chunks: Array
    sampled: Array
    tiles: Array
    ends: Array
    changes: Array


class Staging:
    """Owns the buffer that graphs read, `on_device`, and those on the host that it is sent from: in turns,
    for a copy may still be under way while the next step is written.
    """

    def __init__(self, numbers: int, device: torch.device, *, nobody: int = 0) -> None:
        """For shapes of up to so many `numbers`; `nobody` is the row of padding."""
        self._nobody = nobody
        self.on_device = torch.zeros(numbers, dtype=torch.int32, device=device)
        pinned = self.on_device.is_cuda
        self._hosts = [torch.empty(numbers, dtype=torch.int32, pin_memory=pinned) for _ in range(_TURNS)]
        self._numbers = [host.numpy() for host in self._hosts]
        self._inputs: list[dict[StepShape, Inputs[np.ndarray]]] = [{} for _ in range(_TURNS)]
        self._sent = [torch.cuda.Event() for _ in range(_TURNS)] if pinned else []
        self._turn = self._count = 0

    def begin(self, shape: StepShape) -> Inputs[np.ndarray]:
        """Inputs of a step in which nothing is done: to be written to, and then sent."""
        self._turn = (self._turn + 1) % _TURNS
        # To ask gives no other thread the interpreter, as to wait does.
        if self._sent and not self._sent[self._turn].query():
            self._sent[self._turn].synchronize()
        self._count = count(shape)
        self._numbers[self._turn][: self._count] = 0
        of_turn = self._inputs[self._turn]
        inputs = of_turn.get(shape)
        if inputs is None:
            inputs = of_turn[shape] = parts(self._numbers[self._turn], shape)
        inputs.tokens[3] = inputs.changes[0] = -1
        inputs.tokens[1] = inputs.sampled[1] = self._nobody
        return inputs

    def send(self) -> None:
        """What was begun last; after the steps before, which read what this overwrites."""
        host = self._hosts[self._turn][: self._count]
        self.on_device[: self._count].copy_(host, non_blocking=True)
        if self._sent:
            self._sent[self._turn].record()


def parts(buffer: Array, shape: StepShape) -> Inputs[Array]:
    """A buffer's inputs, for one shape."""
    return Inputs(
        *(
            buffer[first : first + rows * apart].reshape(rows, apart)[:, :columns]
            for first, rows, columns, apart in _layout(shape)[0]
        )
    )


def count(shape: StepShape) -> int:
    """How many numbers a shape's inputs are, with what lies between them."""
    return _layout(shape)[1]


def most(shape: StepShape) -> int:
    """`count` with whatever adapters."""
    lora = LoraShape(tiles=shape.tokens, block=1, rank=1, routers=True, ends=True, beside=False)
    return count(shape._replace(lora=lora))


@lru_cache(maxsize=1024)
def _layout(shape: StepShape) -> tuple[tuple[tuple[int, int, int, int], ...], int]:
    """Of each part where it begins, its rows, their columns and how far they are apart; where all end."""
    chosen = shape.rows if shape.chunks else 0
    lora = shape.lora
    sizes = (
        (4, shape.tokens),
        (4, shape.decodes),
        (4, shape.chunks),
        (2, chosen),
        (3, lora.tiles if lora is not None else 0),
        (3, chosen if lora is not None and lora.ends else 0),
        (2, shape.tokens),
    )
    placed, first = [], 0
    for rows, columns in sizes:
        # Rows of tokens go to kernels one by one, tiles as a whole.
        apart = columns if placed else _padded(columns)
        placed.append((first, rows, columns, apart))
        first += _padded(rows * apart)
    return tuple(placed), first


def _padded(number: int) -> int:
    return -(-number // _APART) * _APART
