"""The layout that an executor published, in the form that checks and packing use."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lorikeet.v1 import layout_pb2
from rpc.digests import layout_digest
from rpc.errors import LorikeetError, invalid_argument, unimplemented

PACK_FORMAT_VERSION = 2
ALIGNMENT_BYTES = 128

_MAX_SLICES = 1_000_000
_MAX_FEATURES = 1 << 24
_DTYPES = {
    layout_pb2.TENSOR_TYPE_FLOAT32: "F32",
    layout_pb2.TENSOR_TYPE_BFLOAT16: "BF16",
    layout_pb2.TENSOR_TYPE_FLOAT16: "F16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A place of the model that can carry a LoRA; an embedding maps vocabulary to hidden size.

    The base's module may have a bias; where it is replaceable, an adapter may bring a whole weight for it.
    """

    index: int
    module: str
    is_embedding: bool
    inputs: int
    outputs: int
    has_bias: bool = False
    is_replaceable: bool = False

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Of the base's weight: [outputs, inputs]; of an embedding [vocabulary, hidden]."""
        return (self.inputs, self.outputs) if self.is_embedding else (self.outputs, self.inputs)


@dataclass(frozen=True, kw_only=True)
class PackLayout:
    """A validated `Layout`; `digest` identifies it, `dtype` is the pack's, in safetensors' words.

    `max_rank` is the executor's, or a lower one of the store's own.
    """

    digest: str
    base_name: str
    dtype: str
    rank_multiple: int
    max_rank: int
    max_pack_bytes: int
    slices: tuple[Slice, ...]
    is_max_rank_the_stores: bool = False

    @cached_property
    def by_module(self) -> Mapping[str, Slice]:
        return {slice_.module: slice_ for slice_ in self.slices}

    def padded(self, rank: int) -> int:
        return -(-rank // self.rank_multiple) * self.rank_multiple


def read_layout(layout: layout_pb2.Layout) -> PackLayout:
    """Validates what an executor published.

    Raises:
        LorikeetError: INVALID_ARGUMENT, or UNIMPLEMENTED for a pack format or sharding that is not made here.
    """
    if layout.pack_format_version != PACK_FORMAT_VERSION:
        raise unimplemented(
            "PACK_FORMAT",
            f"this store writes pack format {PACK_FORMAT_VERSION}, the executor asks for "
            f"{layout.pack_format_version}; run executor and store of the same release",
        )
    if layout.tensor_parallel_size != 1:
        raise unimplemented(
            "TENSOR_PARALLEL", f"tensor_parallel_size is {layout.tensor_parallel_size}, not 1"
        )
    if layout.alignment_bytes != ALIGNMENT_BYTES:
        raise _bad(f"alignment_bytes is {layout.alignment_bytes}; packs are aligned to {ALIGNMENT_BYTES}")
    if layout.compute_dtype not in _DTYPES:
        raise _bad(f"compute_dtype {layout.compute_dtype} is none of float32, bfloat16, float16")
    if not 1 <= layout.rank_multiple <= 256 or layout.max_rank < 1:
        raise _bad(f"rank_multiple {layout.rank_multiple} or max_rank {layout.max_rank} is out of range")
    if not 1 <= len(layout.slices) <= _MAX_SLICES:
        raise _bad(f"it has {len(layout.slices)} slices")
    result = PackLayout(
        digest=layout_digest(layout),
        base_name=layout.base_name,
        dtype=_DTYPES[layout.compute_dtype],
        rank_multiple=layout.rank_multiple,
        max_rank=layout.max_rank,
        max_pack_bytes=layout.max_pack_bytes,
        slices=tuple(_slice(index, spec) for index, spec in enumerate(layout.slices)),
    )
    if len(result.by_module) != len(result.slices):
        raise _bad("two slices have the same module")
    return result


def _slice(index: int, spec: layout_pb2.SliceSpec) -> Slice:
    if spec.kind not in (layout_pb2.SLICE_KIND_LINEAR, layout_pb2.SLICE_KIND_EMBEDDING) or not spec.module:
        raise _bad(f"slice {index} has no module or an unknown kind")
    if not (0 < spec.in_features <= _MAX_FEATURES and 0 < spec.out_features <= _MAX_FEATURES):
        raise _bad(f"{spec.module} has {spec.in_features} inputs and {spec.out_features} outputs")
    return Slice(
        index=index,
        module=spec.module,
        is_embedding=spec.kind == layout_pb2.SLICE_KIND_EMBEDDING,
        inputs=spec.in_features,
        outputs=spec.out_features,
        has_bias=spec.has_bias,
        is_replaceable=spec.is_replaceable,
    )


def _bad(what: str) -> LorikeetError:
    return invalid_argument("BAD_LAYOUT", f"layout: {what}")
