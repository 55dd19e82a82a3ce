"""A pack's manifest, checked before anything of it is believed."""

import math

from lorikeet.v1 import layout_pb2

UNIT_BYTES = 128


class ManifestError(Exception):
    """The store's manifest does not describe a pack of this layout: a fault of the store's, not of a
    client's.
    """


def check_manifest(
    manifest: layout_pb2.PackManifest, *, digest: str, layout: layout_pb2.Layout, layout_digest: str
) -> None:
    """Raises ManifestError unless the manifest is one of `digest` in this layout, with every tensor inside
    the pack.
    """
    if manifest.digest != digest:
        raise ManifestError(f"asked for {digest}, got a pack of {manifest.digest}")
    if manifest.layout_digest != layout_digest:
        raise ManifestError(f"the pack has layout {manifest.layout_digest}, expected {layout_digest}")
    if manifest.tensor_parallel_rank >= layout.tensor_parallel_size:
        raise ManifestError(f"the pack is for tensor-parallel rank {manifest.tensor_parallel_rank}")
    total = manifest.total_bytes
    if total == 0 or total % UNIT_BYTES or total > layout.max_pack_bytes:
        raise ManifestError(
            f"a pack of {total} bytes: expected a multiple of {UNIT_BYTES}, at most {layout.max_pack_bytes}"
        )
    seen: set[int] = set()
    for place in manifest.slices:
        if place.slice >= len(layout.slices) or place.slice in seen:
            raise ManifestError(f"slice {place.slice} is unknown or named twice")
        seen.add(place.slice)
        _check_place(place, layout, total)


_ELEMENT_BYTES = {
    layout_pb2.TENSOR_TYPE_FLOAT32: 4,
    layout_pb2.TENSOR_TYPE_BFLOAT16: 2,
    layout_pb2.TENSOR_TYPE_FLOAT16: 2,
}


def _check_place(place: layout_pb2.SlicePlacement, layout: layout_pb2.Layout, total: int) -> None:
    spec = layout.slices[place.slice]
    padded = -(-place.rank // layout.rank_multiple) * layout.rank_multiple
    if not 1 <= place.rank <= layout.max_rank or place.padded_rank != padded:
        raise ManifestError(f"{spec.module} has rank {place.rank}, padded to {place.padded_rank}")
    if not math.isfinite(place.scaling):
        raise ManifestError(f"{spec.module} has scaling {place.scaling}")
    row_bytes = padded * _ELEMENT_BYTES[layout.compute_dtype]
    for name, offset, rows in (
        ("lora_a", place.a_offset, spec.in_features),
        ("lora_b", place.b_offset, spec.out_features),
    ):
        if offset % layout.alignment_bytes or offset + rows * row_bytes > total:
            raise ManifestError(f"{name} of {spec.module} at {offset} is not aligned or outside the pack")
