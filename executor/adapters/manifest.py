"""A pack's manifest, checked before anything of it is believed."""

import math
from collections.abc import Iterator

from lorikeet.v1 import layout_pb2

UNIT_BYTES = 128

OPTIONAL_PARTS = ("magnitude", "lora_bias", "bias", "shift", "weight")


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
    _check_combination(place, spec)
    padded = -(-place.rank // layout.rank_multiple) * layout.rank_multiple
    if place.rank > layout.max_rank or place.padded_rank != padded:
        raise ManifestError(f"{spec.module} has rank {place.rank}, padded to {place.padded_rank}")
    if not math.isfinite(place.scaling):
        raise ManifestError(f"{spec.module} has scaling {place.scaling}")
    for name, size in _sizes(place, spec, _ELEMENT_BYTES[layout.compute_dtype]):
        offset = getattr(place, f"{name}_offset")
        if offset % layout.alignment_bytes or offset + size > total:
            raise ManifestError(f"{name} of {spec.module} at {offset} is not aligned or outside the pack")


def _check_combination(place: layout_pb2.SlicePlacement, spec: layout_pb2.SliceSpec) -> None:
    """What PEFT's forms of LoRA can bring together for one module, and nothing else."""
    parts = {name for name in OPTIONAL_PARTS if place.HasField(f"{name}_offset")}
    said = f"{spec.module} brings rank {place.rank} with {', '.join(sorted(parts)) or 'nothing'}"
    if not place.rank and not parts - {"shift"}:
        raise ManifestError(said)
    if "weight" in parts and (place.rank or len(parts) > 1 or not spec.is_replaceable):
        raise ManifestError(said)
    if not place.rank and parts & {"magnitude", "lora_bias"}:
        raise ManifestError(said)
    if {"magnitude", "lora_bias"} <= parts or ("bias" in parts and not spec.has_bias):
        raise ManifestError(said)
    needs_shift = bool(parts & {"lora_bias", "bias"}) or ("magnitude" in parts and spec.has_bias)
    if needs_shift != ("shift" in parts):
        raise ManifestError(f"{said}, {'without' if needs_shift else 'but no use for'} room for a shift")


def _sizes(
    place: layout_pb2.SlicePlacement, spec: layout_pb2.SliceSpec, element_bytes: int
) -> Iterator[tuple[str, int]]:
    """Each tensor of a slice and its bytes."""
    if place.rank:
        yield "a", spec.in_features * place.padded_rank * element_bytes
        yield "b", spec.out_features * place.padded_rank * element_bytes
    for name in OPTIONAL_PARTS:
        if place.HasField(f"{name}_offset"):
            whole = spec.in_features * spec.out_features * element_bytes
            yield name, whole if name == "weight" else spec.out_features * 4
