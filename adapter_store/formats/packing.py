"""Packs: an adapter's weights in the executor's layout, one contiguous blob.

Per touched slice, in the layout's order: lora_a, then lora_b, each at a multiple of 128 bytes, in the
layout's compute dtype, ranks padded with zeros. A linear slice has lora_a [padded_rank, in] and lora_b [out,
padded_rank]; an embedding has lora_a transposed, [vocabulary, padded_rank], so that a token's row is
contiguous. The scaling stays apart.
"""

from collections.abc import Callable, Sequence

import blake3
import numpy as np

from adapter_store.formats.checks import AdaptedSlice
from adapter_store.formats.identity import is_finite
from adapter_store.formats.layout import ALIGNMENT_BYTES, PackLayout, itemsize
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry, TensorFiles
from lorikeet.v1 import layout_pb2
from rpc.errors import invalid_argument


def plan_pack(digest: str, slices: Sequence[AdaptedSlice], layout: PackLayout) -> layout_pb2.PackManifest:
    """Decides where every tensor goes.

    Raises:
        LorikeetError: INVALID_ARGUMENT when the pack is larger than the executor's pool.
    """
    manifest = layout_pb2.PackManifest(digest=digest, layout_digest=layout.digest)
    position = 0
    for adapted in slices:
        padded = layout.padded(adapted.rank)
        a_offset = position
        b_offset = a_offset + _aligned(padded * adapted.slice.inputs * itemsize(layout))
        position = b_offset + _aligned(padded * adapted.slice.outputs * itemsize(layout))
        manifest.slices.add(
            slice=adapted.slice.index,
            a_offset=a_offset,
            b_offset=b_offset,
            padded_rank=padded,
            rank=adapted.rank,
            scaling=adapted.scaling,
        )
    manifest.total_bytes = position
    if layout.max_pack_bytes and position > layout.max_pack_bytes:
        raise invalid_argument(
            "PACK_TOO_LARGE",
            f"the adapter takes {position} bytes and the executor's pool holds {layout.max_pack_bytes}; "
            "give the executor a larger adapter pool",
        )
    return manifest


def write_pack(
    manifest: layout_pb2.PackManifest,
    slices: Sequence[AdaptedSlice],
    files: TensorFiles,
    layout: PackLayout,
    write: Callable[[memoryview], object],
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Writes the pack's bytes in order, holding no more than one tensor at a time, and returns their BLAKE3.

    Raises:
        LorikeetError: INVALID_ARGUMENT when a value does not fit the layout's dtype.
    """
    hasher = blake3.blake3()
    position = 0

    def emit(offset: int, data: memoryview) -> None:
        nonlocal position
        for piece in (memoryview(bytes(offset - position)), data):
            hasher.update(piece)
            write(piece)
        position = offset + len(data)

    for adapted, placement in zip(slices, manifest.slices, strict=True):
        a, b = (_cast(files, entry, layout.dtype) for entry in (adapted.lora_a, adapted.lora_b))
        lora_a = a.T if adapted.slice.is_embedding else a
        padded = placement.padded_rank
        rows = lora_a.shape[0] if adapted.slice.is_embedding else padded
        columns = padded if adapted.slice.is_embedding else lora_a.shape[1]
        emit(placement.a_offset, _padded_bytes(lora_a, rows, columns))
        emit(placement.b_offset, _padded_bytes(b, b.shape[0], padded))
        progress(position)
    emit(manifest.total_bytes, memoryview(b""))
    return hasher.hexdigest()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _cast(files: TensorFiles, entry: TensorEntry, dtype: str) -> np.ndarray:
    array = files.array(entry)
    if entry.dtype == dtype:
        return array
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(NUMPY_DTYPES[dtype])
    if not is_finite(cast, dtype):
        raise invalid_argument(
            "OUT_OF_RANGE", f"{entry.name} holds values that {dtype} cannot represent", tensor=entry.name
        )
    return cast


def _padded_bytes(array: np.ndarray, rows: int, columns: int) -> memoryview:
    """The bytes of a 2-D array, row-major, with zeros below and to the right."""
    if array.shape != (rows, columns):
        padded = np.zeros((rows, columns), dtype=array.dtype)
        padded[: array.shape[0], : array.shape[1]] = array
        array = padded
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
