"""What slots' rows need of a pack's manifest, and what must be derived for it. Legend: M slices of a pack."""

from typing import NamedTuple

import numpy as np

from executor.adapters.placements import PARTS, Placements
from executor.model.layout import NamedSlice
from kernels.lora import UNIT_BYTES, SliceColumns
from lorikeet.v1 import layout_pb2

_VECTORS = ("magnitude", "shift")


class PackRow(NamedTuple):
    """A pack's slices, in units of the pool; `has_vectors`: gains or shifts are to be derived."""

    columns: SliceColumns
    has_vectors: bool


class PackRows:
    """Knows the layout's slices.

    Args:
        element_bytes: of the compute dtype.
    """

    def __init__(self, slices: tuple[NamedSlice, ...], element_bytes: int) -> None:
        self._modules = [named.module for named in slices]
        self._inputs_L = np.array([named.shape.in_features for named in slices], np.int64)
        self._outputs_L = np.array([named.shape.out_features for named in slices], np.int64)
        self._is_plain_L = np.array([named.is_plain for named in slices], bool)
        self._element_bytes = element_bytes

    def of(self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements) -> PackRow:
        """The rows of a pack that lies at `unit_offset`.

        Raises ValueError when the manifest does not fit the layout or the pack.
        """
        if (places.slices >= len(self._modules)).any():
            raise ValueError(
                f"slice {places.slices.max()} is outside the layout of {len(self._modules)} slices"
            )
        beside = [places.has(part) for part in PARTS[2:]]
        plain_M = self._is_plain_L[places.slices] & np.logical_or.reduce(beside)
        if plain_M.any():
            module = self._modules[int(places.slices[plain_M][0])]
            raise ValueError(f"{module} takes plain LoRA alone: no magnitude and no bias")
        inputs_M, outputs_M = self._inputs_L[places.slices], self._outputs_L[places.slices]
        sizes = {
            "a": inputs_M * places.padded_ranks * self._element_bytes,
            "b": outputs_M * places.padded_ranks * self._element_bytes,
            "magnitude": 4 * outputs_M,
            "shift": 4 * outputs_M,
            "weight": inputs_M * outputs_M * self._element_bytes,
        }
        fields_M6 = np.empty((len(places.slices), 6), np.int64)
        fields_M6[:, 2] = places.padded_ranks
        for column, (part, size_M) in zip((0, 1, 3, 4, 5), sizes.items(), strict=True):
            offset_M, has_M = places.offset(part), places.has(part)
            beyond_M = has_M & (offset_M > manifest.total_bytes - size_M)
            if beyond_M.any():
                slice_ = places.slices[beyond_M][0]
                raise ValueError(f"slice {slice_} reaches beyond pack {manifest.digest}")
            if (has_M & (offset_M % UNIT_BYTES != 0)).any():
                raise ValueError(f"a {part} of pack {manifest.digest} is not aligned to {UNIT_BYTES} bytes")
            none = 0 if part in ("a", "b") else -1
            fields_M6[:, column] = np.where(has_M, unit_offset + offset_M // UNIT_BYTES, none)
        return PackRow(
            columns=SliceColumns(slices=places.slices, fields=fields_M6, scaling=places.scaling),
            has_vectors=bool(any(places.has(part).any() for part in _VECTORS)),
        )
