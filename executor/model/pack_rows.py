"""What slots' rows need of a pack's manifest. Legend: M slices of a pack."""

import numpy as np

from executor.adapters.placements import PARTS, Placements
from executor.model.layout import NamedSlice
from kernels.lora import UNIT_BYTES, SliceColumns
from kernels.lora.rows import A_UNIT, B_UNIT, GAIN_UNIT, RANK, SHIFT_UNIT, WEIGHT_UNIT
from lorikeet.v1 import layout_pb2

# The parts that a row shows, where Placements and rows have them, and what says that there is none.
_SHOWN = ("a", "b", "magnitude", "shift", "weight")
_COLUMNS = [PARTS.index(part) for part in _SHOWN]
_FIELDS = [A_UNIT, B_UNIT, GAIN_UNIT, SHIFT_UNIT, WEIGHT_UNIT]
_NONE_5 = np.array([0, 0, -1, -1, -1])


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

    def of(self, unit_offset: int, manifest: layout_pb2.PackManifest, places: Placements) -> SliceColumns:
        """A pack's slices, in units of the pool, where it lies at `unit_offset`.

        Raises ValueError when the manifest does not fit the layout or the pack.
        """
        if (places.slices >= len(self._modules)).any():
            raise ValueError(
                f"slice {places.slices.max()} is outside the layout of {len(self._modules)} slices"
            )
        has_M7 = places.offsets >= 0
        plain_M = self._is_plain_L[places.slices] & has_M7[:, 2:].any(axis=1)
        if plain_M.any():
            module = self._modules[int(places.slices[plain_M][0])]
            raise ValueError(f"{module} takes plain LoRA alone: no magnitude and no bias")
        inputs_M, outputs_M = self._inputs_L[places.slices], self._outputs_L[places.slices]
        sizes_M5 = np.empty((len(places.slices), len(_SHOWN)), np.int64)
        sizes_M5[:, 0] = inputs_M * places.padded_ranks * self._element_bytes
        sizes_M5[:, 1] = outputs_M * places.padded_ranks * self._element_bytes
        sizes_M5[:, 2:4] = 4 * outputs_M[:, None]
        sizes_M5[:, 4] = inputs_M * outputs_M * self._element_bytes
        offsets_M5, has_M5 = places.offsets[:, _COLUMNS], has_M7[:, _COLUMNS]
        beyond_M = ((offsets_M5 > manifest.total_bytes - sizes_M5) & has_M5).any(axis=1)
        if beyond_M.any():
            raise ValueError(f"slice {places.slices[beyond_M][0]} reaches beyond pack {manifest.digest}")
        astray_5 = ((offsets_M5 % UNIT_BYTES != 0) & has_M5).any(axis=0)
        if astray_5.any():
            part = _SHOWN[int(astray_5.argmax())]
            raise ValueError(f"a {part} of pack {manifest.digest} is not aligned to {UNIT_BYTES} bytes")
        fields_M6 = np.empty((len(places.slices), 6), np.int64)
        fields_M6[:, _FIELDS] = np.where(has_M5, unit_offset + offsets_M5 // UNIT_BYTES, _NONE_5)
        fields_M6[:, RANK] = places.padded_ranks
        return SliceColumns(slices=places.slices, fields=fields_M6, scaling=places.scaling)
