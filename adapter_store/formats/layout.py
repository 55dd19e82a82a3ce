"""The layout that an executor published, in the form that checks and packing use."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lorikeet.v1 import layout_pb2
from rpc.digests import layout_digest
from rpc.errors import LorikeetError, invalid_argument, unimplemented

PACK_FORMAT_VERSION = 2
ALIGNMENT_BYTES = 128

EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""An expert's, in the order of its slices."""

_MAX_SLICES = 1_000_000
_MAX_FEATURES = 1 << 24
_EXPERT = re.compile(r".+\.experts\.\d+\.[a-z_]+")
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
    is_expert: bool = False

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Of the base's weight: [outputs, inputs]; of an embedding [vocabulary, hidden]."""
        return (self.inputs, self.outputs) if self.is_embedding else (self.outputs, self.inputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """A layer's experts: `slices[e]` are expert e's gate, up and down projection; all experts are alike.

    `module` is the path of them all, for example "model.layers.0.mlp.experts".
    """

    module: str
    slices: tuple[tuple[Slice, Slice, Slice], ...]

    @property
    def count(self) -> int:
        return len(self.slices)


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

    @cached_property
    def experts(self) -> Mapping[str, Experts]:
        """By their module."""
        return {experts.module: experts for experts in _experts(self.slices)}

    @cached_property
    def endings(self) -> frozenset[str]:
        """The last parts, one or more of them, of every module's path."""
        return endings_of(self.by_module)

    def padded(self, rank: int) -> int:
        return -(-rank // self.rank_multiple) * self.rank_multiple


def endings_of(paths: Iterable[str]) -> frozenset[str]:
    """The last parts, one or more, of these paths: what a list of targets may have for them."""
    found: set[str] = set()
    for path in paths:
        # Of paths that end alike, the first has brought the rest.
        while path not in found:
            found.add(path)
            path = path.partition(".")[2] or path
    return frozenset(found)


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
    _ = result.experts  # refuses what is out of order
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
        is_expert=_EXPERT.fullmatch(spec.module) is not None,
    )


def _experts(slices: Sequence[Slice]) -> Iterator[Experts]:
    found: dict[str, list[Slice]] = {}
    for slice_ in slices:
        if slice_.is_expert:
            found.setdefault(slice_.module.rsplit(".", 2)[0], []).append(slice_)
    for module, members in found.items():
        if len(members) % 3:
            raise _bad(f"the experts of {module} have not three projections each")
        triples = tuple(zip(members[::3], members[1::3], members[2::3], strict=True))
        _check_experts(module, triples)
        yield Experts(module=module, slices=triples)


def _check_experts(module: str, triples: Sequence[tuple[Slice, Slice, Slice]]) -> None:
    hidden, width = triples[0][0].inputs, triples[0][0].outputs
    shapes = ((hidden, width), (hidden, width), (width, hidden))
    for number, triple in enumerate(triples):
        for slice_, name, shape in zip(triple, EXPERT_PROJECTIONS, shapes, strict=True):
            if slice_.module != f"{module}.{number}.{name}" or (slice_.inputs, slice_.outputs) != shape:
                raise _bad(f"{slice_.module} is not in the order of experts, or not of their shape")


def _bad(what: str) -> LorikeetError:
    return invalid_argument("BAD_LAYOUT", f"layout: {what}")
