"""How much an adapter changes each module."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from adapter_store.concurrency.crew import ALONE, Crew
from adapter_store.formats.adapted import AdaptedSlice, Cut
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry, TensorFiles
from adapter_store.packs.cutting import cut_runs

# Values that are turned into float64 at once: some 16 MB.
_CHUNK_VALUES = 2 << 20
# From here on what float32 saves is worth the look at what it may have lost.
_LARGE_VALUES = 1 << 14
# Modules that one thread takes at a time.
_GROUP = 64

_Grams = dict[Cut, np.ndarray]
_Group = tuple[Callable[[Sequence[AdaptedSlice], TensorFiles], Iterable[float]], list[int]]


def delta_norms(slices: Sequence[AdaptedSlice], files: TensorFiles, *, crew: Crew = ALONE) -> list[float]:
    """The Frobenius norm of scaling * lora_b @ lora_a of each slice; 0.0 where there is no LoRA.

    In float64; of large tensors of 16 bits, and of experts, many at once, in float32. By the Gram matrices,
    [rank, rank] each, since |B A|^2 is the trace of (B^T B)(A A^T); the product itself is never made. Reads
    every tensor once: for a worker thread, which `crew` helps.
    """
    norms = [0.0] * len(slices)

    def work(group: _Group) -> None:
        compute, indices = group
        for index, norm in zip(indices, compute([slices[i] for i in indices], files), strict=True):
            norms[index] = norm

    crew.run(work, list(_groups(slices)))
    return norms


def _groups(slices: Sequence[AdaptedSlice]) -> Iterator[_Group]:
    """Slices whose norms are computed together, and how."""
    alone: list[int] = []
    alike: dict[tuple[object, ...], list[int]] = {}
    stacks: dict[tuple[str, str], list[int]] = {}
    for index, s in enumerate(slices):
        if s.lora_a is None or s.lora_b is None:
            continue
        if s.a_cut is not None:
            stacks.setdefault((s.lora_a.name, s.lora_b.name), []).append(index)
        elif s.slice.is_expert:
            orientation = s.is_a_transposed, s.is_b_transposed
            a, b = s.lora_a, s.lora_b
            alike.setdefault((a.dtype, a.shape, b.dtype, b.shape, *orientation), []).append(index)
        else:
            alone.append(index)
    for compute, found in ((_each_norm, [alone]), (_alike_norms, alike.values())):
        for indices in found:
            yield from ((compute, indices[i : i + _GROUP]) for i in range(0, len(indices), _GROUP))
    yield from ((_stack_norms, indices) for indices in stacks.values())


def _each_norm(slices: Sequence[AdaptedSlice], files: TensorFiles) -> Iterator[float]:
    return (delta_norm(adapted, files) for adapted in slices)


def _alike_norms(slices: Sequence[AdaptedSlice], files: TensorFiles) -> Iterator[float]:
    """Of slices with tensors of the same shapes."""
    first = slices[0]
    lora_a = np.stack([files.array(s.lora_a) for s in slices if s.lora_a is not None])
    lora_b = np.stack([files.array(s.lora_b) for s in slices if s.lora_b is not None])
    grams_a = _grams(lora_a, rank_axis=2 if first.is_a_transposed else 1)
    grams_b = _grams(lora_b, rank_axis=1 if first.is_b_transposed else 2)
    return (_norm(s.scaling, a, b) for s, a, b in zip(slices, grams_a, grams_b, strict=True))


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
    matrix = files.array(entry)
    vectors = matrix.T if rank_axis else matrix
    if entry.dtype != "F32" and vectors.size >= _LARGE_VALUES:
        with np.errstate(over="ignore", invalid="ignore"):
            gram = _products(vectors, np.float32)
        if 0 < gram.trace() < np.inf:  # else squares were too large, or too small, for float32
            return gram
    return _products(vectors, np.float64)


def _products(vectors: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    rank, width = vectors.shape
    step = max(1, _CHUNK_VALUES // max(1, rank))
    gram = np.zeros((rank, rank))
    for start in range(0, width, step):
        chunk = vectors[:, start : start + step].astype(dtype)
        gram += chunk @ chunk.T
    return gram


def _stack_norms(slices: Sequence[AdaptedSlice], files: TensorFiles) -> Iterator[float]:
    """Of slices that are cuts of the same two tensors."""
    lora_a, lora_b = slices[0].lora_a, slices[0].lora_b
    assert lora_a is not None
    assert lora_b is not None
    grams_a = _cut_grams(lora_a, {s.a_cut for s in slices if s.a_cut is not None}, files, rank_axis=1)
    grams_b = _cut_grams(lora_b, {s.b_cut for s in slices if s.b_cut is not None}, files, rank_axis=2)
    for s in slices:
        assert s.a_cut is not None
        assert s.b_cut is not None
        yield _norm(s.scaling, grams_a[s.a_cut], grams_b[s.b_cut])


def _cut_grams(entry: TensorEntry, cuts: set[Cut], files: TensorFiles, *, rank_axis: int) -> _Grams:
    found: _Grams = {}
    for run in cut_runs(cuts):
        grams = _grams(run.view(files.bytes_of(entry), NUMPY_DTYPES[entry.dtype]), rank_axis=rank_axis)
        starts = (run.first.start + number * run.step for number in range(run.number))
        found |= {run.first._replace(start=start): gram for start, gram in zip(starts, grams, strict=True)}
    return found


def _grams(matrices: np.ndarray, *, rank_axis: int) -> np.ndarray:
    """Inner products of the rank's vectors in each of many matrices: [number, rank, rank]."""
    number, rank, width = matrices.shape[0], matrices.shape[rank_axis], matrices.shape[3 - rank_axis]
    step = max(1, _CHUNK_VALUES // (number * rank))
    grams = np.zeros((number, rank, rank))
    for start in range(0, width, step):
        block = slice(start, start + step)
        chunk = matrices[:, :, block] if rank_axis == 1 else matrices[:, block]
        vectors = np.ascontiguousarray(chunk).astype(np.float32)
        if rank_axis == 2:
            vectors = vectors.transpose(0, 2, 1)
        grams += np.matmul(vectors, vectors.transpose(0, 2, 1))
    return grams
