from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_TYPE_UNSPECIFIED: _ClassVar[TensorType]
    TENSOR_TYPE_FLOAT32: _ClassVar[TensorType]
    TENSOR_TYPE_BFLOAT16: _ClassVar[TensorType]
    TENSOR_TYPE_FLOAT16: _ClassVar[TensorType]

class SliceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLICE_KIND_UNSPECIFIED: _ClassVar[SliceKind]
    SLICE_KIND_LINEAR: _ClassVar[SliceKind]
    SLICE_KIND_EMBEDDING: _ClassVar[SliceKind]
TENSOR_TYPE_UNSPECIFIED: TensorType
TENSOR_TYPE_FLOAT32: TensorType
TENSOR_TYPE_BFLOAT16: TensorType
TENSOR_TYPE_FLOAT16: TensorType
SLICE_KIND_UNSPECIFIED: SliceKind
SLICE_KIND_LINEAR: SliceKind
SLICE_KIND_EMBEDDING: SliceKind

class Layout(_message.Message):
    __slots__ = ("pack_format_version", "base_digest", "base_name", "compute_dtype", "tensor_parallel_size", "alignment_bytes", "rank_multiple", "max_rank", "slices", "max_pack_bytes")
    PACK_FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_NAME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RANK_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    MAX_PACK_BYTES_FIELD_NUMBER: _ClassVar[int]
    pack_format_version: int
    base_digest: str
    base_name: str
    compute_dtype: TensorType
    tensor_parallel_size: int
    alignment_bytes: int
    rank_multiple: int
    max_rank: int
    slices: _containers.RepeatedCompositeFieldContainer[SliceSpec]
    max_pack_bytes: int
    def __init__(self, pack_format_version: _Optional[int] = ..., base_digest: _Optional[str] = ..., base_name: _Optional[str] = ..., compute_dtype: _Optional[_Union[TensorType, str]] = ..., tensor_parallel_size: _Optional[int] = ..., alignment_bytes: _Optional[int] = ..., rank_multiple: _Optional[int] = ..., max_rank: _Optional[int] = ..., slices: _Optional[_Iterable[_Union[SliceSpec, _Mapping]]] = ..., max_pack_bytes: _Optional[int] = ...) -> None: ...

class SliceSpec(_message.Message):
    __slots__ = ("module", "kind", "in_features", "out_features", "has_bias", "is_replaceable")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    HAS_BIAS_FIELD_NUMBER: _ClassVar[int]
    IS_REPLACEABLE_FIELD_NUMBER: _ClassVar[int]
    module: str
    kind: SliceKind
    in_features: int
    out_features: int
    has_bias: bool
    is_replaceable: bool
    def __init__(self, module: _Optional[str] = ..., kind: _Optional[_Union[SliceKind, str]] = ..., in_features: _Optional[int] = ..., out_features: _Optional[int] = ..., has_bias: _Optional[bool] = ..., is_replaceable: _Optional[bool] = ...) -> None: ...

class PackManifest(_message.Message):
    __slots__ = ("digest", "layout_digest", "tensor_parallel_rank", "total_bytes", "slices")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    layout_digest: str
    tensor_parallel_rank: int
    total_bytes: int
    slices: _containers.RepeatedCompositeFieldContainer[SlicePlacement]
    def __init__(self, digest: _Optional[str] = ..., layout_digest: _Optional[str] = ..., tensor_parallel_rank: _Optional[int] = ..., total_bytes: _Optional[int] = ..., slices: _Optional[_Iterable[_Union[SlicePlacement, _Mapping]]] = ...) -> None: ...

class SlicePlacement(_message.Message):
    __slots__ = ("slice", "a_offset", "b_offset", "padded_rank", "rank", "scaling", "magnitude_offset", "lora_bias_offset", "bias_offset", "shift_offset", "weight_offset")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    A_OFFSET_FIELD_NUMBER: _ClassVar[int]
    B_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PADDED_RANK_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    LORA_BIAS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BIAS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SHIFT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    slice: int
    a_offset: int
    b_offset: int
    padded_rank: int
    rank: int
    scaling: float
    magnitude_offset: int
    lora_bias_offset: int
    bias_offset: int
    shift_offset: int
    weight_offset: int
    def __init__(self, slice: _Optional[int] = ..., a_offset: _Optional[int] = ..., b_offset: _Optional[int] = ..., padded_rank: _Optional[int] = ..., rank: _Optional[int] = ..., scaling: _Optional[float] = ..., magnitude_offset: _Optional[int] = ..., lora_bias_offset: _Optional[int] = ..., bias_offset: _Optional[int] = ..., shift_offset: _Optional[int] = ..., weight_offset: _Optional[int] = ...) -> None: ...
