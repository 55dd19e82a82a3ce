"""Where each resident adapter's weights lie: one flat pool and one row of addresses per adapter slot.

Legend: S adapter slots, L slices, R rank (padded to a multiple of 8), K in features, N out features, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

UNIT_BYTES = 128
"""Offsets in a slot row count units of this many bytes, so that a kernel may load whole vectors from any of
them.
"""

RANK_MULTIPLE = 8

_FIELDS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceShape:
    """One place that an adapter can touch.

    `linear` keeps lora_a as `[R, K]`; `embedding` keeps it transposed, `[V, R]`, so that one token's row is
    contiguous. lora_b is `[N, R]` in both.
    """

    kind: Literal["linear", "embedding"]
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceEntry:
    """One slice of one adapter: places in the pool (units from the pool's start), padded rank and scaling.

    Rank 0 has no lora_a and lora_b.
    """

    slice: int
    a_unit: int = 0
    b_unit: int = 0
    rank: int = 0
    scaling: float = 0.0
    gain_unit: int | None = None
    shift_unit: int | None = None
    weight_unit: int | None = None


class LoraWeights(NamedTuple):
    """Views into the pool: `a` is `[R, K]` (linear) or `[V, R]` (embedding), `b` is `[N, R]`; gain and shift
    are float32 `[N]`. Of rank 0, `a` and `b` are empty.
    """

    a: Tensor
    b: Tensor
    scaling: float
    gain: Tensor | None = None
    shift: Tensor | None = None


class SlotRow(NamedTuple):
    """What `SlotTable.show` needs of one adapter, worked out before; on the host, `fields` int64 `[L, 6]` and
    `scaling` float32 `[L]`.
    """

    fields: Tensor
    scaling: Tensor
    views: list[LoraWeights | None]
    saved: dict[int, Tensor]
    rank: int


class SlotTable:
    """Addresses of all resident adapters, as tensors for kernels and as views for plain torch.

    `rows_SL6` int64 holds (A unit, B unit, padded rank, gain unit, shift unit, weight unit), the last three
    plus one so that 0 means none, and `scaling_SL` float32 the scaling of each slice of each slot; zeros mean
    untouched. `vectors` is the pool as float32, where gains and shifts lie. The base model is slot -1 and has
    no row. Rows change only between steps.
    """

    def __init__(self, *, pool: Tensor, shapes: Sequence[SliceShape], slots: int) -> None:
        """`pool` is flat, in the compute dtype, and a whole number of units long."""
        if pool.dim() != 1 or pool.numel() * pool.element_size() % UNIT_BYTES:
            raise ValueError(
                f"the pool must be flat and a multiple of {UNIT_BYTES} bytes, got {tuple(pool.shape)}"
            )
        self.pool = pool
        self.shapes = tuple(shapes)
        self.vectors = pool.view(torch.float32)
        self.rows_SL6 = torch.zeros(slots, len(self.shapes), _FIELDS, dtype=torch.int64, device=pool.device)
        self.scaling_SL = torch.zeros(slots, len(self.shapes), dtype=torch.float32, device=pool.device)
        self._unit_elements = UNIT_BYTES // pool.element_size()
        self._views: list[list[LoraWeights | None]] = [[None] * len(self.shapes) for _ in range(slots)]
        self._saved: list[dict[int, Tensor]] = [{} for _ in range(slots)]
        self._ranks = [0] * slots

    @property
    def slots(self) -> int:
        return len(self._views)

    def row_of(self, entries: Sequence[SliceEntry]) -> SlotRow:
        """Work out a row for weights that lie in the pool; slices not named become untouched. Any thread.

        Raises ValueError when an entry does not fit its slice or the pool.
        """
        views: list[LoraWeights | None] = [None] * len(self.shapes)
        saved: dict[int, Tensor] = {}
        fields_L6 = np.zeros((len(self.shapes), _FIELDS), dtype=np.int64)
        scaling_L = np.zeros(len(self.shapes), dtype=np.float32)
        for entry in entries:
            if not 0 <= entry.slice < len(self.shapes):
                raise ValueError(f"slice {entry.slice} is outside the layout of {len(self.shapes)} slices")
            if views[entry.slice] is not None or entry.slice in saved:
                raise ValueError(f"slice {entry.slice} is named twice")
            if entry.weight_unit is not None:
                saved[entry.slice] = self._saved_weight(entry)
            else:
                views[entry.slice] = self._view(entry)
            others = (entry.gain_unit, entry.shift_unit, entry.weight_unit)
            fields_L6[entry.slice] = (
                entry.a_unit,
                entry.b_unit,
                entry.rank,
                *(0 if unit is None else unit + 1 for unit in others),
            )
            scaling_L[entry.slice] = entry.scaling
        fields, scaling = torch.from_numpy(fields_L6), torch.from_numpy(scaling_L)
        if self.pool.is_cuda:  # pinned, so that showing it waits for no step in flight
            fields, scaling = fields.pin_memory(), scaling.pin_memory()
        rank = max((entry.rank for entry in entries), default=0)
        return SlotRow(fields=fields, scaling=scaling, views=views, saved=saved, rank=rank)

    def show(self, slot: int, row: SlotRow) -> None:
        """Point a slot at an adapter."""
        self.rows_SL6[slot].copy_(row.fields, non_blocking=True)
        self.scaling_SL[slot].copy_(row.scaling, non_blocking=True)
        self._views[slot] = row.views
        self._saved[slot] = row.saved
        self._ranks[slot] = row.rank

    def set_row(self, slot: int, entries: Sequence[SliceEntry]) -> None:
        """Both at once. Raises ValueError as `row_of` does, leaving the slot as it was."""
        self.show(slot, self.row_of(entries))

    def clear_row(self, slot: int) -> None:
        self.rows_SL6[slot].zero_()
        self.scaling_SL[slot].zero_()
        self._views[slot] = [None] * len(self.shapes)
        self._saved[slot] = {}
        self._ranks[slot] = 0

    def largest_rank(self, slots: Sequence[int]) -> int:
        """The largest padded rank of any slice of these slots; 0 where none has a LoRA."""
        return max((self._ranks[slot] for slot in slots), default=0)

    def brings_weights(self, slots: Sequence[int]) -> bool:
        """Whether any of these slots has a weight of its own instead of the base's."""
        return any(self._saved[slot] for slot in slots)

    def weights(self, slot: int, slice_index: int) -> LoraWeights | None:
        """What one slot does to the output of one slice, or None where the adapter leaves it untouched."""
        return self._views[slot][slice_index]

    def saved_weight(self, slot: int, slice_index: int) -> Tensor | None:
        """What one slot brings instead of the base's weight: `[N, K]` (linear) or `[V, N]` (embedding)."""
        return self._saved[slot].get(slice_index)

    def _view(self, entry: SliceEntry) -> LoraWeights:
        shape = self.shapes[entry.slice]
        rank, is_lora = entry.rank, entry.gain_unit is None and entry.shift_unit is None
        if rank < is_lora or rank % RANK_MULTIPLE:
            raise ValueError(
                f"slice {entry.slice}: rank {rank} is not a positive multiple of {RANK_MULTIPLE}"
            )
        a_shape = (rank, shape.in_features) if shape.kind == "linear" else (shape.in_features, rank)
        return LoraWeights(
            a=self._matrix(entry.a_unit, a_shape, f"lora_a of slice {entry.slice}"),
            b=self._matrix(entry.b_unit, (shape.out_features, rank), f"lora_b of slice {entry.slice}"),
            scaling=entry.scaling,
            gain=self._vector(entry.gain_unit, shape.out_features, f"gain of slice {entry.slice}"),
            shift=self._vector(entry.shift_unit, shape.out_features, f"shift of slice {entry.slice}"),
        )

    def _saved_weight(self, entry: SliceEntry) -> Tensor:
        assert entry.weight_unit is not None
        if entry.rank or entry.gain_unit is not None or entry.shift_unit is not None:
            raise ValueError(f"slice {entry.slice} has a weight of its own and a LoRA as well")
        shape = self.shapes[entry.slice]
        rows, columns = shape.out_features, shape.in_features
        if shape.kind == "embedding":
            rows, columns = columns, rows
        return self._matrix(entry.weight_unit, (rows, columns), f"weight of slice {entry.slice}")

    def _vector(self, unit: int | None, size: int, what: str) -> Tensor | None:
        if unit is None:
            return None
        start = unit * (UNIT_BYTES // 4)
        if start < 0 or start + size > self.vectors.numel():
            raise ValueError(f"{what}, {size} numbers at unit {unit}, reaches outside the pool")
        return self.vectors[start : start + size]

    def _matrix(self, unit: int, shape: tuple[int, int], what: str) -> Tensor:
        start = unit * self._unit_elements
        end = start + shape[0] * shape[1]
        if start < 0 or end > self.pool.numel():
            raise ValueError(f"{what}, {shape} at unit {unit}, reaches outside the pool")
        return self.pool[start:end].view(shape)
