"""A pack's manifest, checked before anything of it is believed."""

import numpy as np

from executor.adapters.placements import PARTS, Placements, placements_of
from executor.adapters.recent import Recent
from executor.control.loader import UNIT_BYTES
from lorikeet.v1 import layout_pb2

# Some 120 bytes each.
_MOST_SLICES = 100_000

_ELEMENT_BYTES = {
    layout_pb2.TENSOR_TYPE_FLOAT32: 4,
    layout_pb2.TENSOR_TYPE_BFLOAT16: 2,
    layout_pb2.TENSOR_TYPE_FLOAT16: 2,
}


class ManifestError(Exception):
    """The store's manifest does not describe a pack of this layout: a fault of the store's, not of a
    client's.
    """


class ManifestChecker:
    """Knows one layout."""

    def __init__(self, layout: layout_pb2.Layout, layout_digest: str) -> None:
        self._layout = layout
        self._layout_digest = layout_digest
        self._modules = [spec.module for spec in layout.slices]
        self._inputs_L = np.array([spec.in_features for spec in layout.slices], np.int64)
        self._outputs_L = np.array([spec.out_features for spec in layout.slices], np.int64)
        self._has_bias_L = np.array([spec.has_bias for spec in layout.slices], bool)
        self._is_replaceable_L = np.array([spec.is_replaceable for spec in layout.slices], bool)
        self._element_bytes = _ELEMENT_BYTES[layout.compute_dtype]
        self._known: Recent[Placements] = Recent(_MOST_SLICES)

    def check(self, manifest: layout_pb2.PackManifest, digest: str) -> Placements:
        """Raises ManifestError unless this is one of `digest` in the layout with all tensors in the pack.

        A manifest that was good not long ago, if only of an adapter that is alike, is just compared: the
        answer is the same object then.
        """
        if manifest.digest != digest:
            raise ManifestError(f"asked for {digest}, got a pack of {manifest.digest}")
        # All that it says beside the digest, which comes first.
        said = manifest.SerializeToString(deterministic=True).replace(digest.encode(), b"", 1)
        places = self._known.find(said)
        if places is None:
            places = self._check(manifest)
            self._known.keep(said, places, len(places.slices))
        return places

    def _check(self, manifest: layout_pb2.PackManifest) -> Placements:
        layout = self._layout
        if manifest.layout_digest != self._layout_digest:
            raise ManifestError(
                f"the pack has layout {manifest.layout_digest}, expected {self._layout_digest}"
            )
        if manifest.tensor_parallel_rank >= layout.tensor_parallel_size:
            raise ManifestError(f"the pack is for tensor-parallel rank {manifest.tensor_parallel_rank}")
        total = manifest.total_bytes
        if total == 0 or total % UNIT_BYTES or total > layout.max_pack_bytes:
            wanted = f"a multiple of {UNIT_BYTES}, at most {layout.max_pack_bytes}"
            raise ManifestError(f"a pack of {total} bytes: expected {wanted}")
        places = placements_of(manifest)
        unknown_M = places.slices >= len(self._modules)
        if unknown_M.any():
            raise ManifestError(f"slice {places.slices[unknown_M][0]} is unknown")
        if len(places.slices) and np.bincount(places.slices).max() > 1:
            raise ManifestError(f"slice {np.bincount(places.slices).argmax()} is named twice")
        self._check_combinations(places)
        self._check_ranks(places)
        self._check_ranges(places, total)
        return places

    def _check_combinations(self, places: Placements) -> None:
        """What PEFT's forms of LoRA can bring together for one module, and nothing else."""
        if places.is_plain:
            return
        magnitude, lora_bias, bias, shift, weight = map(places.has, PARTS[2:])
        has_bias, no_lora = self._has_bias_L[places.slices], places.ranks == 0
        others = magnitude | lora_bias | bias
        needs_shift = lora_bias | bias | (magnitude & has_bias)
        for wrong_M, why in (
            (no_lora & ~(others | weight), "which is nothing"),
            (weight & ~self._is_replaceable_L[places.slices], "but has no weight to replace"),
            (weight & (~no_lora | others | shift), "a weight with something beside it"),
            (no_lora & (magnitude | lora_bias), "without a LoRA"),
            (magnitude & lora_bias, "which exclude each other"),
            (bias & ~has_bias, "but has no bias"),
            (needs_shift & ~shift, "without room for a shift"),
            (shift & ~needs_shift, "but no use for a shift"),
        ):
            if wrong_M.any():
                first = int(wrong_M.argmax())
                parts = [part for part in PARTS[2:] if places.has(part)[first]]
                said = f"rank {places.ranks[first]} with {', '.join(parts) or 'nothing'}"
                raise ManifestError(f"{self._name(places, first)} brings {said}, {why}")

    def _check_ranks(self, places: Placements) -> None:
        multiple = self._layout.rank_multiple
        padded = -(-places.ranks // multiple) * multiple
        wrong_M = (places.ranks > self._layout.max_rank) | (places.padded_ranks != padded)
        if wrong_M.any():
            first = int(wrong_M.argmax())
            said = f"rank {places.ranks[first]}, padded to {places.padded_ranks[first]}"
            raise ManifestError(f"{self._name(places, first)} has {said}")
        wrong_M = ~np.isfinite(places.scaling)
        if wrong_M.any():
            first = int(wrong_M.argmax())
            raise ManifestError(f"{self._name(places, first)} has scaling {places.scaling[first]}")

    def _check_ranges(self, places: Placements, total: int) -> None:
        inputs_M, outputs_M = self._inputs_L[places.slices], self._outputs_L[places.slices]
        sizes_M7 = np.empty_like(places.offsets)
        sizes_M7[:] = 4 * outputs_M[:, None]
        sizes_M7[:, 0] = inputs_M * places.padded_ranks * self._element_bytes
        sizes_M7[:, 1] = outputs_M * places.padded_ranks * self._element_bytes
        sizes_M7[:, -1] = inputs_M * outputs_M * self._element_bytes
        offsets_M7 = places.offsets
        # Compared so that no sum overflows.
        wrong_M7 = (offsets_M7 % self._layout.alignment_bytes != 0) | (offsets_M7 > total - sizes_M7)
        wrong_M7 &= offsets_M7 >= 0
        if wrong_M7.any():
            part = int(wrong_M7.any(axis=0).argmax())
            first = int(wrong_M7[:, part].argmax())
            said = f"{PARTS[part]} of {self._name(places, first)} at {offsets_M7[first, part]}"
            raise ManifestError(f"{said} is not aligned or outside the pack")

    def _name(self, places: Placements, number: int) -> str:
        return self._modules[int(places.slices[number])]
