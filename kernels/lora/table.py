"""Where each resident adapter's weights lie: one flat pool and one row of addresses per adapter slot.

Legend: S adapter slots, L slices, R rank (padded to a multiple of 8), K in features, N out features, V
vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.lora.rows import (
    A_UNIT,
    B_UNIT,
    GAIN_UNIT,
    RANK,
    SHIFT_UNIT,
    UNIT_BYTES,
    WEIGHT_UNIT,
    RowChecker,
    SliceColumns,
    SliceEntry,
    SliceShape,
)


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
    """What `SlotTable.show` needs of one adapter, worked out before: `fields` int64 `[L, 6]` and `scaling`
    float32 `[L]`; `places` bool `[L, 6]` says which fields are units of the pool where something lies.
    `views` has what was asked for so far, and everything `if has_all_views`; `has_vectors` if any slice has a
    gain or a shift, `shares` if slices have a lora_b in common; `marks` are what `_Marks` has looked up, the
    same wherever the row is moved to.
    """

    fields: np.ndarray
    scaling: np.ndarray
    places: np.ndarray
    views: dict[int, LoraWeights]
    has_all_views: bool
    saved: dict[int, Tensor]
    rank: int
    has_vectors: bool
    shares: bool
    marks: dict[tuple[int, ...], bool]


class Traits(NamedTuple):
    """Of several slots together: the largest padded rank of any slice, 0 where none has a LoRA; whether any
    has a weight of its own instead of the base's, a gain or a shift, or slices with a lora_b in common, as
    experts may.
    """

    rank: int
    brings_weights: bool
    has_vectors: bool
    shares: bool


_BRINGS_WEIGHTS, _HAS_VECTORS, _SHARES, _IS_HIDDEN = 1, 2, 4, 8


class _Marks:
    """Which slots have any of the fields from `begin` to `end` in slices that are asked about with each step:
    looked at once, when a slot changes.
    """

    def __init__(self, begin: int, end: int) -> None:
        self._fields = slice(begin, end)
        self._marked: dict[tuple[int, ...], set[int]] = {}

    def slots_of(self, slices: Sequence[int], rows: Sequence[SlotRow | None]) -> set[int]:
        asked = tuple(slices)
        if asked not in self._marked:
            self._marked[asked] = {slot for slot, row in enumerate(rows) if self._has(row, asked)}
        return self._marked[asked]

    def note(self, slot: int, row: SlotRow | None) -> None:
        for asked, marked in self._marked.items():
            if self._has(row, asked):
                marked.add(slot)
            else:
                marked.discard(slot)

    def _has(self, row: SlotRow | None, slices: tuple[int, ...]) -> bool:
        if row is None or not slices:
            return False
        key = (self._fields.start, self._fields.stop, *slices)
        found = row.marks.get(key)
        if found is None:
            found = row.marks[key] = bool(row.fields[list(slices), self._fields].any())
        return found


class SlotTable:
    """Addresses of all resident adapters, as tensors for kernels and as views for plain torch.

    `rows_SL6` int64 holds (A unit, B unit, padded rank, gain unit, shift unit, weight unit), the last three
    plus one so that 0 means none, and `scaling_SL` float32 the scaling of each slice of each slot; zeros mean
    untouched. `vectors` is the pool as float32, where gains and shifts lie. The base model is slot -1 and has
    no row. A slot's row changes only while no step reads it; what the table shows, only between launches.
    """

    def __init__(
        self, *, pool: Tensor, shapes: Sequence[SliceShape], slots: int, fixed_order: bool = False
    ) -> None:
        """`pool` is flat, in the compute dtype, and a whole number of units long. `fixed_order`: kernels take
        sums in an order that does not depend on the batch.
        """
        if pool.dim() != 1 or pool.numel() * pool.element_size() % UNIT_BYTES:
            raise ValueError(
                f"the pool must be flat and a multiple of {UNIT_BYTES} bytes, got {tuple(pool.shape)}"
            )
        self.pool = pool
        self.fixed_order = fixed_order
        self.shapes = tuple(shapes)
        self.vectors = pool.view(torch.float32)
        self.rows_SL6 = torch.zeros(slots, len(self.shapes), 6, dtype=torch.int64, device=pool.device)
        self.scaling_SL = torch.zeros(slots, len(self.shapes), dtype=torch.float32, device=pool.device)
        # Made once, for a view costs as much as a copy.
        self._places = list(zip(self.rows_SL6.unbind(), self.scaling_SL.unbind(), strict=True))
        self._unit_elements = UNIT_BYTES // pool.element_size()
        # Asked once: an adapter has views by the dozen.
        self._first_element, self._first_vector = pool.storage_offset(), self.vectors.storage_offset()
        self._checker = RowChecker(
            self.shapes,
            pool_bytes=pool.numel() * pool.element_size(),
            element_bytes=pool.element_size(),
        )
        self._rows: list[SlotRow | None] = [None] * slots
        # By slot, the base last, so that a batch is asked about by one index.
        self._ranks = np.zeros(slots + 1, dtype=np.int64)
        self._bits = np.zeros(slots + 1, dtype=np.uint8)
        self._touching, self._changing = _Marks(RANK, RANK + 1), _Marks(0, WEIGHT_UNIT + 1)

    @property
    def slots(self) -> int:
        return len(self._rows)

    def row_of(self, entries: Sequence[SliceEntry] | SliceColumns) -> SlotRow:
        """Work out a row for weights that lie in the pool; slices not named become untouched. Any thread.

        Raises ValueError when an entry does not fit its slice or the pool.
        """
        columns = entries if isinstance(entries, SliceColumns) else SliceColumns.of(entries)
        self._checker.check(columns)
        fields_L6 = np.zeros((len(self.shapes), 6), dtype=np.int64)
        scaling_L = np.zeros(len(self.shapes), dtype=np.float32)
        fields_L6[columns.slices] = columns.fields
        fields_L6[columns.slices, GAIN_UNIT:] += 1
        scaling_L[columns.slices] = columns.scaling
        is_whole_M = columns.fields[:, WEIGHT_UNIT] >= 0
        views: dict[int, LoraWeights] = {}
        if not self.pool.is_cuda:  # plain torch computes with views; kernels have no use for them
            lists = (columns.slices.tolist(), columns.fields.tolist(), columns.scaling.tolist())
            whole = set(columns.slices[is_whole_M].tolist())
            views = {
                index: self._view(index, units, scale)
                for index, units, scale in zip(*lists, strict=True)
                if index not in whole
            }
        return SlotRow(
            fields=fields_L6,
            scaling=scaling_L,
            places=_places_of(fields_L6),
            views=views,
            has_all_views=not self.pool.is_cuda,
            saved={
                int(index): self._saved_weight(int(index), int(row[WEIGHT_UNIT]))
                for index, row in zip(columns.slices[is_whole_M], columns.fields[is_whole_M], strict=True)
            },
            rank=int(columns.fields[:, RANK].max(initial=0)),
            has_vectors=bool((columns.fields[:, GAIN_UNIT:WEIGHT_UNIT] >= 0).any()),
            shares=_has_twins(columns.fields[columns.fields[:, RANK] > 0, B_UNIT]),
            marks={},
        )

    def moved(self, row: SlotRow, units: int) -> SlotRow:
        """The row of the same weights `units` farther in the pool, where the caller knows that they lie:
        quicker than working it out. Any thread; not for a row with weights of its own.
        """
        assert not row.saved, "views of whole weights are not moved"
        fields_L6 = row.fields + units * row.places
        return row._replace(fields=fields_L6, views={}, has_all_views=False)

    def place(self, slot: int) -> tuple[Tensor, Tensor]:
        """Where a slot's row lies: fields int64 `[L, 6]` and scaling float32 `[L]`. To be written while no
        step in flight has the slot, and before the slot is said to show it.
        """
        return self._places[slot]

    def say_shows(self, slot: int, row: SlotRow) -> None:
        """From the next launch on, the slot is an adapter's whose row lies there already."""
        self._note(slot, row, 0)

    def hide(self, slot: int) -> None:
        """From the next launch on, no step may have the slot, whatever its row says."""
        self._note(slot, None, _IS_HIDDEN)

    def show(self, slot: int, row: SlotRow) -> None:
        """Point a slot at an adapter, waiting for the device."""
        for place, values in zip(self._places[slot], (row.fields, row.scaling), strict=True):
            place.copy_(torch.from_numpy(values))
        self.say_shows(slot, row)

    def set_row(self, slot: int, entries: Sequence[SliceEntry]) -> None:
        """Both at once. Raises ValueError as `row_of` does, leaving the slot as it was."""
        self.show(slot, self.row_of(entries))

    def clear_row(self, slot: int) -> None:
        """Steps may have the slot, which does nothing to their tokens."""
        for place in self._places[slot]:
            place.zero_()
        self._note(slot, None, 0)

    def traits(self, slots: Sequence[int] | np.ndarray) -> Traits:
        """Of these slots, the base's -1 among them or not. Raises RuntimeError where one is hidden: its row
        may point at what others' weights have replaced.
        """
        chosen = np.asarray(slots, dtype=np.int64)
        bits = int(np.bitwise_or.reduce(self._bits[chosen]))
        if bits & _IS_HIDDEN:
            raise RuntimeError(f"a step with slots {chosen.tolist()}, of which some show no adapter")
        return Traits(
            rank=int(self._ranks[chosen].max(initial=0)),
            brings_weights=bool(bits & _BRINGS_WEIGHTS),
            has_vectors=bool(bits & _HAS_VECTORS),
            shares=bool(bits & _SHARES),
        )

    def touches(self, slots: Sequence[int], slices: Sequence[int]) -> bool:
        """Whether any of these slots has LoRA on any of these slices."""
        touching = self._touching.slots_of(slices, self._rows)
        return bool(touching) and not touching.isdisjoint(slots)

    def changes(self, slots: Sequence[int], slices: Sequence[int]) -> bool:
        """Whether any of these slots does anything at all to any of these slices."""
        changing = self._changing.slots_of(slices, self._rows)
        return bool(changing) and not changing.isdisjoint(slots)

    def weights(self, slot: int, slice_index: int) -> LoraWeights | None:
        """What one slot does to the output of one slice, or None where the adapter leaves it untouched."""
        row = self._rows[slot]
        if row is None:
            return None
        view = row.views.get(slice_index)
        if view is None and not row.has_all_views:
            fields = row.fields[slice_index].tolist()
            if any(fields) and not fields[WEIGHT_UNIT]:
                fields[GAIN_UNIT:] = [unit - 1 for unit in fields[GAIN_UNIT:]]
                view = self._view(slice_index, fields, float(row.scaling[slice_index]))
                row.views[slice_index] = view
        return view

    def saved_weight(self, slot: int, slice_index: int) -> Tensor | None:
        """What one slot brings instead of the base's weight: `[N, K]` (linear) or `[V, N]` (embedding)."""
        row = self._rows[slot]
        return None if row is None else row.saved.get(slice_index)

    def _note(self, slot: int, row: SlotRow | None, bits: int) -> None:
        self._rows[slot] = row
        self._ranks[slot] = 0 if row is None else row.rank
        self._bits[slot] = bits if row is None else bits | _bits_of(row)
        self._touching.note(slot, row)
        self._changing.note(slot, row)

    def _view(self, index: int, fields: Sequence[int], scaling: float) -> LoraWeights:
        shape, rank = self.shapes[index], fields[RANK]
        a_shape = (rank, shape.in_features) if shape.kind == "linear" else (shape.in_features, rank)
        return LoraWeights(
            a=self._matrix(fields[A_UNIT], a_shape),
            b=self._matrix(fields[B_UNIT], (shape.out_features, rank)),
            scaling=scaling,
            gain=self._vector(fields[GAIN_UNIT], shape.out_features),
            shift=self._vector(fields[SHIFT_UNIT], shape.out_features),
        )

    def _saved_weight(self, index: int, unit: int) -> Tensor:
        shape = self.shapes[index]
        rows, columns = shape.out_features, shape.in_features
        return self._matrix(unit, (columns, rows) if shape.kind == "embedding" else (rows, columns))

    def _vector(self, unit: int, size: int) -> Tensor | None:
        if unit < 0:
            return None
        first = self._first_vector + unit * (UNIT_BYTES // 4)
        return self.vectors.as_strided((size,), (1,), first)

    def _matrix(self, unit: int, shape: tuple[int, int]) -> Tensor:
        first = self._first_element + unit * self._unit_elements
        return self.pool.as_strided(shape, (shape[1], 1), first)


def _places_of(fields_L6: np.ndarray) -> np.ndarray:
    places_L6 = fields_L6 > 0
    # Unit 0 is a place, too, where there is a LoRA.
    places_L6[:, [A_UNIT, B_UNIT]] = (fields_L6[:, RANK] > 0)[:, None]
    places_L6[:, RANK] = False
    return places_L6


def _bits_of(row: SlotRow) -> int:
    return _BRINGS_WEIGHTS * bool(row.saved) | _HAS_VECTORS * row.has_vectors | _SHARES * row.shares


def _has_twins(units: np.ndarray) -> bool:
    return len(np.unique(units)) < len(units)
