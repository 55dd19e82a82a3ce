"""How much an adapter changes each module."""

import numpy as np

from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.formats.safetensors_files import TensorEntry, TensorFiles

# Values that are turned into float64 at once: some 16 MB.
_CHUNK_VALUES = 2 << 20


def delta_norm(adapted: AdaptedSlice, files: TensorFiles) -> float:
    """The Frobenius norm of scaling * lora_b @ lora_a, in float64; 0.0 where there is no LoRA.

    By the Gram matrices, [rank, rank] each, since |B A|^2 is the trace of (B^T B)(A A^T); the product itself
    is never made. Reads both tensors once: for a worker thread.
    """
    if adapted.lora_a is None or adapted.lora_b is None:
        return 0.0
    gram_a = _gram(adapted.lora_a, files, rank_axis=1 if adapted.is_a_transposed else 0)
    gram_b = _gram(adapted.lora_b, files, rank_axis=0 if adapted.is_b_transposed else 1)
    # Rounding can leave a trace of zero a little below it.
    return abs(adapted.scaling) * float(np.sqrt(max(0.0, float(np.sum(gram_a * gram_b)))))


def _gram(entry: TensorEntry, files: TensorFiles, *, rank_axis: int) -> np.ndarray:
    """Inner products of the rank's vectors: [rank, rank]."""
    vectors = np.moveaxis(files.array(entry), rank_axis, 0)
    rank, width = vectors.shape
    step = max(1, _CHUNK_VALUES // max(1, rank))
    gram = np.zeros((rank, rank))
    for start in range(0, width, step):
        chunk = vectors[:, start : start + step].astype(np.float64)
        gram += chunk @ chunk.T
    return gram
