"""Which tokens of a flat batch belong to which adapter slot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kernels.lora.arrivals import Arrivals
from kernels.lora.table import SlotTable
from kernels.lora.tiles import Tiles


class PackedSlice(NamedTuple):
    """A slice whose output is columns `[start, stop)` of a packed projection (q,k,v or gate,up fused in the
    base).
    """

    slice: int
    start: int
    stop: int


@lru_cache(maxsize=1024)
def check_packed(slices: tuple[PackedSlice, ...], columns: int, *, most: int) -> None:
    """Raises ValueError unless slices are consecutive, cover all columns in order and are few."""
    expected = [
        PackedSlice(slices[0].slice + i, packed.start, packed.stop) for i, packed in enumerate(slices)
    ]
    starts = [0, *(packed.stop for packed in slices)]
    if list(slices) != expected or [packed.start for packed in slices] != starts[:-1]:
        raise ValueError(f"slices and their columns must be consecutive, got {slices}")
    if len(slices) > most or starts[-1] != columns:
        raise ValueError(f"at most {most} slices that cover {columns} columns, got {slices}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraBatch:
    """Segments of a flat batch whose tokens are sorted by slot, base tokens (slot -1) first.

    Running example: tokens with slots [-1, -1, 0, 0, 0, 3] make two segments, `slots` (0, 3) and `splits`
    (2, 5, 6): tokens 2..4 are slot 0's, token 5 is slot 3's, tokens 0 and 1 belong to no segment and cost
    nothing.

    With `tiles`, Triton's kernels compute the batch; without, plain torch does. A batch of tiles alone is one
    that the host does not know: tiles are written where a recorded launch reads them. `slots_T`, int32, are
    each token's slot on the device, for those who would otherwise work them out again and again.
    `touches_routers` may be False where no adapter of the batch has LoRA on a router of experts,
    `touches_ends` where none changes embedding or head, `has_vectors` where none has a gain or a shift;
    `shares` may be True where experts share an adapter's matrices. With `arrivals`, linear layers are
    computed together with their adapters, by `product`.
    """

    slots: tuple[int, ...]
    splits: tuple[int, ...]
    tiles: Tiles | None = None
    slots_T: Tensor | None = None
    touches_routers: bool = True
    touches_ends: bool = True
    has_vectors: bool = True
    shares: bool = False
    arrivals: Arrivals | None = None

    @classmethod
    def of_rows(cls, slots_R: np.ndarray, lengths_R: np.ndarray) -> "LoraBatch":
        """From each row's slot and number of tokens, rows in batch order.

        Raises ValueError when rows are not sorted by slot: segments must be contiguous.
        """
        if not len(slots_R) or slots_R[-1] < 0:
            return NO_LORA
        steps = np.diff(slots_R)
        if (steps < 0).any():
            raise ValueError("rows must be sorted by slot")
        first_rows = np.flatnonzero(np.concatenate(([slots_R[0] >= 0], steps > 0)))
        token_splits = np.concatenate(([0], np.cumsum(lengths_R)))
        return cls(
            slots=tuple(slots_R[first_rows].tolist()),
            splits=(*token_splits[first_rows].tolist(), int(token_splits[-1])),
        )

    @classmethod
    def of_tokens(cls, slots_T: Sequence[int]) -> "LoraBatch":
        """From each token's slot, sorted."""
        return cls.of_rows(np.asarray(slots_T), np.ones(len(slots_T), dtype=np.int64))

    def tiled(self, table: SlotTable) -> "LoraBatch":
        """The same batch for Triton's kernels, cut into tiles on the table's device."""
        if self.empty:
            return self
        rank = table.traits(self.slots).rank
        return replace(self, tiles=Tiles.cut(self.slots, self.splits, rank=rank, like=table.pool))

    @property
    def empty(self) -> bool:
        return not self.slots and self.tiles is None


NO_LORA = LoraBatch(slots=(), splits=(0,))
