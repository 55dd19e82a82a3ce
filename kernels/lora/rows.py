"""One adapter's row of the slot table, worked out for all slices at once: adapters of experts have thousands.

Legend: L slices of the layout, M slices of an adapter, R rank, K in features, N out features, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np

UNIT_BYTES = 128
"""Offsets in a slot row count units of this many bytes, so that a kernel may load whole vectors from any of
them.
"""

RANK_MULTIPLE = 8

A_UNIT, B_UNIT, RANK, GAIN_UNIT, SHIFT_UNIT, WEIGHT_UNIT = range(6)
"""Columns of a row's fields: places of lora_a and lora_b, padded rank, places of gain, shift and weight."""


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


class SliceColumns(NamedTuple):
    """Many entries by column: `slices` int64 `[M]`; `fields` int64 `[M, 6]`, A_UNIT to WEIGHT_UNIT, of which
    the last three are -1 where there is none; `scaling` float32 `[M]`.
    """

    slices: np.ndarray
    fields: np.ndarray
    scaling: np.ndarray

    @classmethod
    def of(cls, entries: Sequence[SliceEntry]) -> Self:
        """Raises ValueError for a place before the pool."""
        fields = np.zeros((len(entries), 6), np.int64)
        for number, entry in enumerate(entries):
            others = {"gain": entry.gain_unit, "shift": entry.shift_unit, "weight": entry.weight_unit}
            for part, unit in others.items():
                if unit is not None and unit < 0:
                    raise ValueError(f"slice {entry.slice} has its {part} where it reaches outside the pool")
            units = (-1 if unit is None else unit for unit in others.values())
            fields[number] = (entry.a_unit, entry.b_unit, entry.rank, *units)
        return cls(
            slices=np.array([entry.slice for entry in entries], np.int64),
            fields=fields,
            scaling=np.array([entry.scaling for entry in entries], np.float32),
        )


class RowChecker:
    """Knows the layout's shapes and the pool's size.

    Args:
        element_bytes: of the pool's dtype.
    """

    def __init__(self, shapes: Sequence[SliceShape], *, pool_bytes: int, element_bytes: int) -> None:
        self._inputs_L = np.array([shape.in_features for shape in shapes], np.int64)
        self._outputs_L = np.array([shape.out_features for shape in shapes], np.int64)
        self._pool_bytes = pool_bytes
        self._element_bytes = element_bytes

    def check(self, columns: SliceColumns) -> None:
        """Raises ValueError, naming the slice, when an entry does not fit its slice or the pool."""
        slices_M, fields_M6 = columns.slices, columns.fields
        self._refuse((slices_M < 0) | (slices_M >= len(self._inputs_L)), columns, "is outside the layout")
        if len(slices_M) and np.bincount(slices_M).max() > 1:
            raise ValueError(f"slice {np.bincount(slices_M).argmax()} is named twice")
        rank_M, has_M3 = fields_M6[:, RANK], fields_M6[:, GAIN_UNIT:] >= 0
        has_vectors_M, is_whole_M = has_M3[:, 0] | has_M3[:, 1], has_M3[:, 2]
        both_M = is_whole_M & (has_vectors_M | (rank_M != 0))
        self._refuse(both_M, columns, "has a weight of its own and a LoRA as well")
        needs_rank_M = ~(has_vectors_M | is_whole_M)
        bad_rank_M = (rank_M < needs_rank_M) | (rank_M % RANK_MULTIPLE != 0)
        self._refuse(bad_rank_M, columns, f"has a rank that is not a positive multiple of {RANK_MULTIPLE}")
        inputs_M, outputs_M = self._inputs_L[slices_M], self._outputs_L[slices_M]
        self._check_place("lora_a", A_UNIT, rank_M * inputs_M * self._element_bytes, columns)
        self._check_place("lora_b", B_UNIT, rank_M * outputs_M * self._element_bytes, columns)
        self._check_place("gain", GAIN_UNIT, 4 * outputs_M, columns, has_M3[:, 0])
        self._check_place("shift", SHIFT_UNIT, 4 * outputs_M, columns, has_M3[:, 1])
        self._check_place(
            "weight", WEIGHT_UNIT, inputs_M * outputs_M * self._element_bytes, columns, is_whole_M
        )

    def _check_place(
        self,
        part: str,
        field: int,
        bytes_M: np.ndarray,
        columns: SliceColumns,
        is_there_M: np.ndarray | bool = True,
    ) -> None:
        units_M = columns.fields[:, field]
        outside_M = (units_M < 0) | (units_M * UNIT_BYTES + bytes_M > self._pool_bytes)
        self._refuse(outside_M & is_there_M, columns, f"has its {part} where it reaches outside the pool")

    def _refuse(self, bad_M: np.ndarray, columns: SliceColumns, what: str) -> None:
        if bad_M.any():
            first = int(bad_M.argmax())
            raise ValueError(f"slice {columns.slices[first]} ({columns.fields[first].tolist()}) {what}")
