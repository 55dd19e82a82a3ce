"""An adapter's identity: a digest of what it computes, whatever files it came in."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import blake3
import numpy as np

from adapter_store.formats.checks import AdaptedSlice
from adapter_store.formats.safetensors_files import TensorEntry, TensorFiles
from rpc.errors import invalid_argument

# Magnitude bits, and the smallest magnitude that is not finite (IEEE 754: infinity, then the NaNs).
_BITS = {
    "F32": (np.dtype("<u4"), 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7FFF, 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7FFF, 0x7F80),
}

# Small enough that a chunk that was hashed is still in the core's cache when it is checked.
_CHUNK_BYTES = 1 << 19


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorScan:
    """What one pass over a tensor's bytes found: its BLAKE3, and whether all of it is zero."""

    digest: str
    is_zero: bool


def scan_tensor(files: TensorFiles, entry: TensorEntry) -> TensorScan:
    """Hashes a tensor and refuses NaN and infinity: INVALID_ARGUMENT, naming it."""
    data = files.bytes_of(entry)
    dtype, magnitude, infinity = _BITS[entry.dtype]
    hasher = blake3.blake3()
    largest = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        chunk = data[start : start + _CHUNK_BYTES]
        hasher.update(chunk)
        largest = max(largest, int((np.frombuffer(chunk, dtype=dtype) & magnitude).max()))
    if largest >= infinity:
        raise invalid_argument(
            "NOT_FINITE", f"{entry.name} holds NaN or infinity: the training diverged", tensor=entry.name
        )
    return TensorScan(digest=hasher.hexdigest(), is_zero=largest == 0)


def is_finite(array: np.ndarray, dtype: str) -> bool:
    """True when no element of a contiguous array of that safetensors dtype is NaN or infinite."""
    bits, magnitude, infinity = _BITS[dtype]
    return array.size == 0 or int((array.reshape(-1).view(bits) & magnitude).max()) < infinity


def adapter_digest(slices: Iterable[tuple[AdaptedSlice, Mapping[str, TensorScan]]]) -> str:
    """The digest of an adapter, from its slices and the scans of their tensors by part: 64 hex digits.

    BLAKE3 over canonical JSON of the sorted (canonical tensor name, dtype, shape, BLAKE3 of the bytes), and
    of each module's effective scaling. r, lora_alpha, use_rslora and both patterns act through ranks (which
    are shapes) and scalings only, so two spellings of the same arithmetic have one digest. File layout,
    tensor order, metadata and PEFT's version are not in it, nor are tensors that are left out.
    """
    tensors, scalings = [], []
    for adapted, scans in slices:
        module = adapted.slice.module
        if adapted.rank:
            scalings.append([module, adapted.scaling.hex()])
        for part, entry in adapted.tensors():
            tensors.append([f"{module}.{part}", entry.dtype, list(entry.shape), scans[part].digest])
    content = {"form": "lora-1", "scalings": sorted(scalings), "tensors": sorted(tensors)}
    return blake3.blake3(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
