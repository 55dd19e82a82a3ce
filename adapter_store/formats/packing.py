"""Packs: an adapter's weights in the executor's layout, one contiguous blob, written as planned."""

from collections.abc import Callable

import blake3
import numpy as np

from adapter_store.formats.identity import is_finite
from adapter_store.formats.plan import PackPlan, PlacedTensor
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorFiles
from rpc.errors import invalid_argument


def write_pack(
    plan: PackPlan,
    files: TensorFiles,
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

    for tensor in plan.tensors:
        emit(tensor.offset, _packed_bytes(files, tensor))
        progress(position)
    emit(plan.manifest.total_bytes, memoryview(b""))
    return hasher.hexdigest()


def _packed_bytes(files: TensorFiles, tensor: PlacedTensor) -> memoryview:
    array = np.atleast_2d(_cast(files, tensor))
    if tensor.is_transposed:
        array = array.T
    if array.shape != (tensor.rows, tensor.columns):
        padded = np.zeros((tensor.rows, tensor.columns), dtype=array.dtype)
        padded[: array.shape[0], : array.shape[1]] = array
        array = padded
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _cast(files: TensorFiles, tensor: PlacedTensor) -> np.ndarray:
    entry, dtype = tensor.entry, tensor.dtype
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
