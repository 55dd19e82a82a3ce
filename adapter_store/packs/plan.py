"""Where every tensor of an adapter goes in its pack.

Per touched slice, in the layout's order and as far as the adapter has them: lora_a and lora_b in the layout's
compute dtype, ranks padded with zeros; magnitude, lora_bias and bias in float32; a shift of zeros that the
executor fills; a whole weight in the compute dtype. Each starts at a multiple of 128 bytes. A linear slice
has lora_a [padded_rank, in] and lora_b [out, padded_rank]; an embedding has lora_a transposed, [vocabulary,
padded_rank], so that a token's row is contiguous. The scaling stays apart. What several slices share is there
once, at the first of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from adapter_store.formats.adapted import AdaptedSlice, Cut
from adapter_store.formats.layout import ALIGNMENT_BYTES, PackLayout
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry
from lorikeet.v1 import layout_pb2
from rpc.errors import invalid_argument

T = TypeVar("T")


class PlacedTensor(NamedTuple):
    """A tensor's place in a pack: `nbytes` from `offset`, row-major [rows, columns] of `dtype`.

    The stored tensor, or its cut (a vector counts as one row), is transposed if need be, cast, and padded
    with zeros below and to the right.
    """

    offset: int
    nbytes: int
    entry: TensorEntry
    dtype: str
    rows: int
    columns: int
    is_transposed: bool
    cut: Cut | None = None


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """The manifest, and its tensors by ascending offset; every byte that belongs to none of them is zero."""

    manifest: layout_pb2.PackManifest
    tensors: tuple[PlacedTensor, ...]
    known: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)
    """Of `once`; shared with every plan that is made of this one with another digest."""

    def once(self, work: "Callable[[PackPlan], T]") -> T:
        """What a function makes of the tensors, worked out when it is first asked for."""
        if work not in self.known:
            self.known[work] = work(self)
        return self.known[work]


def plan_pack(digest: str, slices: Sequence[AdaptedSlice], layout: PackLayout) -> PackPlan:
    """Decides where every tensor goes.

    Raises:
        LorikeetError: INVALID_ARGUMENT when the pack is larger than the executor's pool.
    """
    manifest = layout_pb2.PackManifest(digest=digest, layout_digest=layout.digest)
    writer = _Planner(layout)
    for adapted in slices:
        writer.place(adapted, manifest.slices.add())
    manifest.total_bytes = writer.position
    if layout.max_pack_bytes and writer.position > layout.max_pack_bytes:
        raise invalid_argument(
            "PACK_TOO_LARGE",
            f"the adapter takes {writer.position} bytes and the executor's pool holds "
            f"{layout.max_pack_bytes}; give the executor a larger adapter pool",
        )
    return PackPlan(manifest=manifest, tensors=tuple(writer.tensors))


class _Planner:
    def __init__(self, layout: PackLayout) -> None:
        self.position = 0
        self.tensors: list[PlacedTensor] = []
        self._layout = layout
        self._cuts: dict[tuple[str, Cut], int] = {}

    def place(self, adapted: AdaptedSlice, placement: layout_pb2.SlicePlacement) -> None:
        slice_, dtype = adapted.slice, self._layout.dtype
        placement.slice = slice_.index
        if adapted.lora_a is not None and adapted.lora_b is not None:
            padded = self._layout.padded(adapted.rank)
            placement.rank, placement.padded_rank, placement.scaling = adapted.rank, padded, adapted.scaling
            rows, columns = (slice_.inputs, padded) if slice_.is_embedding else (padded, slice_.inputs)
            transpose_a = adapted.is_a_transposed != slice_.is_embedding
            placement.a_offset = self._add(adapted.lora_a, dtype, rows, columns, transpose_a, adapted.a_cut)
            placement.b_offset = self._add(
                adapted.lora_b, dtype, slice_.outputs, padded, adapted.is_b_transposed, adapted.b_cut
            )
        if adapted.magnitude is not None:
            placement.magnitude_offset = self._add(adapted.magnitude, "F32", 1, slice_.outputs)
        if adapted.lora_bias is not None:
            placement.lora_bias_offset = self._add(adapted.lora_bias, "F32", 1, slice_.outputs)
        if adapted.bias is not None:
            placement.bias_offset = self._add(adapted.bias, "F32", 1, slice_.outputs)
        if adapted.has_shift:
            placement.shift_offset = self._reserve(slice_.outputs * NUMPY_DTYPES["F32"].itemsize)
        if adapted.weight is not None:
            placement.weight_offset = self._add(adapted.weight, dtype, *slice_.weight_shape)

    def _add(
        self,
        entry: TensorEntry,
        dtype: str,
        rows: int,
        columns: int,
        is_transposed: bool = False,
        cut: Cut | None = None,
    ) -> int:
        if cut is not None and (known := self._cuts.get((entry.name, cut))) is not None:
            return known
        nbytes = rows * columns * NUMPY_DTYPES[dtype].itemsize
        offset = self._reserve(nbytes)
        if cut is not None:
            self._cuts[entry.name, cut] = offset
        self.tensors.append(
            PlacedTensor(
                offset=offset,
                nbytes=nbytes,
                entry=entry,
                dtype=dtype,
                rows=rows,
                columns=columns,
                is_transposed=is_transposed,
                cut=cut,
            )
        )
        return offset

    def _reserve(self, nbytes: int) -> int:
        offset = self.position
        self.position += -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return offset
