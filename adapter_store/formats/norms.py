"""How much an adapter changes each module."""

from collections.abc import Sequence

import numpy as np

from adapter_store.crew import ALONE, Crew
from adapter_store.formats.adapted import AdaptedSlice, Cut
from adapter_store.formats.cutting import CutRun, cut_runs
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry, TensorFiles

# Values that are turned into float64 at once: some 16 MB.
_CHUNK_VALUES = 2 << 20
# Modules that one thread takes at a time.
_GROUP = 64

_Grams = dict[Cut, np.ndarray]


def delta_norms(slices: Sequence[AdaptedSlice], files: TensorFiles, *, crew: Crew = ALONE) -> list[float]:
    """The Frobenius norm of scaling * lora_b @ lora_a of each slice; 0.0 where there is no LoRA.

    In float64; of tensors that are cut, in float32 with float64 between blocks. By the Gram matrices, [rank,
    rank] each, since |B A|^2 is the trace of (B^T B)(A A^T); the product itself is never made. Reads every
    tensor once: for a worker thread, which `crew` helps.
    """
    norms = [0.0] * len(slices)
    whole = [index for index, adapted in enumerate(slices) if adapted.a_cut is None]
    stacks: dict[tuple[str, str], list[int]] = {}
    for index, adapted in enumerate(slices):
        if adapted.a_cut is not None and adapted.lora_a is not None and adapted.lora_b is not None:
            stacks.setdefault((adapted.lora_a.name, adapted.lora_b.name), []).append(index)

    def work(group: Sequence[int]) -> None:
        members = [slices[index] for index in group]
        is_stack = members[0].a_cut is not None
        found = _stack_norms(members, files) if is_stack else [delta_norm(s, files) for s in members]
        for index, norm in zip(group, found, strict=True):
            norms[index] = norm

    groups = [whole[start : start + _GROUP] for start in range(0, len(whole), _GROUP)]
    crew.run(work, [*groups, *stacks.values()])
    return norms


def delta_norm(adapted: AdaptedSlice, files: TensorFiles) -> float:
    """The norm of a slice whose tensors are its own."""
    if adapted.lora_a is None or adapted.lora_b is None:
        return 0.0
    gram_a = _gram(adapted.lora_a, files, rank_axis=1 if adapted.is_a_transposed else 0)
    gram_b = _gram(adapted.lora_b, files, rank_axis=0 if adapted.is_b_transposed else 1)
    return _norm(adapted.scaling, gram_a, gram_b)


def _norm(scaling: float, gram_a: np.ndarray, gram_b: np.ndarray) -> float:
    # Rounding can leave a trace of zero a little below it.
    return abs(scaling) * float(np.sqrt(max(0.0, float(np.sum(gram_a * gram_b)))))


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


def _stack_norms(slices: Sequence[AdaptedSlice], files: TensorFiles) -> list[float]:
    """Of slices that are cuts of the same two tensors."""
    lora_a, lora_b = slices[0].lora_a, slices[0].lora_b
    assert lora_a is not None
    assert lora_b is not None
    grams_a = _grams(lora_a, {s.a_cut for s in slices if s.a_cut is not None}, files, rank_axis=1)
    grams_b = _grams(lora_b, {s.b_cut for s in slices if s.b_cut is not None}, files, rank_axis=2)
    return [
        _norm(s.scaling, grams_a[s.a_cut], grams_b[s.b_cut])
        for s in slices
        if s.a_cut is not None and s.b_cut is not None
    ]


def _grams(entry: TensorEntry, cuts: set[Cut], files: TensorFiles, *, rank_axis: int) -> _Grams:
    found: _Grams = {}
    for run in cut_runs(cuts):
        grams = _run_grams(entry, run, files, rank_axis=rank_axis)
        starts = (run.first.start + number * run.step for number in range(run.number))
        found |= {run.first._replace(start=start): gram for start, gram in zip(starts, grams, strict=True)}
    return found


def _run_grams(entry: TensorEntry, run: CutRun, files: TensorFiles, *, rank_axis: int) -> np.ndarray:
    """Of each of the cuts: [number, rank, rank]."""
    view = run.view(files.bytes_of(entry), NUMPY_DTYPES[entry.dtype])
    number, rank, width = view.shape[0], view.shape[rank_axis], view.shape[3 - rank_axis]
    step = max(1, _CHUNK_VALUES // (number * rank))
    grams = np.zeros((number, rank, rank))
    for start in range(0, width, step):
        block = slice(start, start + step)
        chunk = view[:, :, block] if rank_axis == 1 else view[:, block]
        vectors = np.ascontiguousarray(chunk).astype(np.float32)
        if rank_axis == 2:
            vectors = vectors.transpose(0, 2, 1)
        grams += np.matmul(vectors, vectors.transpose(0, 2, 1))
    return grams
