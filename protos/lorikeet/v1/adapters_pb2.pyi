import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_STATE_UNSPECIFIED: _ClassVar[AdapterState]
    ADAPTER_STATE_LOADING: _ClassVar[AdapterState]
    ADAPTER_STATE_ACTIVE: _ClassVar[AdapterState]
    ADAPTER_STATE_UNLOADING: _ClassVar[AdapterState]
    ADAPTER_STATE_UNLOADED: _ClassVar[AdapterState]
    ADAPTER_STATE_FAILED: _ClassVar[AdapterState]

class AdapterTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_TIER_UNSPECIFIED: _ClassVar[AdapterTier]
    ADAPTER_TIER_COLD: _ClassVar[AdapterTier]
    ADAPTER_TIER_WARM: _ClassVar[AdapterTier]

class AdaptedPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTED_PART_UNSPECIFIED: _ClassVar[AdaptedPart]
    ADAPTED_PART_LORA: _ClassVar[AdaptedPart]
    ADAPTED_PART_MAGNITUDE: _ClassVar[AdaptedPart]
    ADAPTED_PART_LORA_BIAS: _ClassVar[AdaptedPart]
    ADAPTED_PART_BIAS: _ClassVar[AdaptedPart]
    ADAPTED_PART_WEIGHT: _ClassVar[AdaptedPart]

class LoadStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_STAGE_UNSPECIFIED: _ClassVar[LoadStage]
    LOAD_STAGE_COPY: _ClassVar[LoadStage]
    LOAD_STAGE_VALIDATE: _ClassVar[LoadStage]
    LOAD_STAGE_PACK: _ClassVar[LoadStage]
    LOAD_STAGE_PUBLISH: _ClassVar[LoadStage]
ADAPTER_STATE_UNSPECIFIED: AdapterState
ADAPTER_STATE_LOADING: AdapterState
ADAPTER_STATE_ACTIVE: AdapterState
ADAPTER_STATE_UNLOADING: AdapterState
ADAPTER_STATE_UNLOADED: AdapterState
ADAPTER_STATE_FAILED: AdapterState
ADAPTER_TIER_UNSPECIFIED: AdapterTier
ADAPTER_TIER_COLD: AdapterTier
ADAPTER_TIER_WARM: AdapterTier
ADAPTED_PART_UNSPECIFIED: AdaptedPart
ADAPTED_PART_LORA: AdaptedPart
ADAPTED_PART_MAGNITUDE: AdaptedPart
ADAPTED_PART_LORA_BIAS: AdaptedPart
ADAPTED_PART_BIAS: AdaptedPart
ADAPTED_PART_WEIGHT: AdaptedPart
LOAD_STAGE_UNSPECIFIED: LoadStage
LOAD_STAGE_COPY: LoadStage
LOAD_STAGE_VALIDATE: LoadStage
LOAD_STAGE_PACK: LoadStage
LOAD_STAGE_PUBLISH: LoadStage

class Adapter(_message.Message):
    __slots__ = ("name", "digest", "state", "source", "pack_bytes", "max_rank", "load_time", "revision", "report", "tier", "previous", "pinned", "tenant", "has_chat_template")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PACK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    state: AdapterState
    source: str
    pack_bytes: int
    max_rank: int
    load_time: _timestamp_pb2.Timestamp
    revision: int
    report: AdapterReport
    tier: AdapterTier
    previous: _containers.RepeatedCompositeFieldContainer[AdapterVersion]
    pinned: bool
    tenant: str
    has_chat_template: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[AdapterState, str]] = ..., source: _Optional[str] = ..., pack_bytes: _Optional[int] = ..., max_rank: _Optional[int] = ..., load_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., report: _Optional[_Union[AdapterReport, _Mapping]] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., previous: _Optional[_Iterable[_Union[AdapterVersion, _Mapping]]] = ..., pinned: _Optional[bool] = ..., tenant: _Optional[str] = ..., has_chat_template: _Optional[bool] = ...) -> None: ...

class AdapterVersion(_message.Message):
    __slots__ = ("digest", "source", "load_time")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIME_FIELD_NUMBER: _ClassVar[int]
    digest: str
    source: str
    load_time: _timestamp_pb2.Timestamp
    def __init__(self, digest: _Optional[str] = ..., source: _Optional[str] = ..., load_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AdapterReport(_message.Message):
    __slots__ = ("modules", "notes")
    MODULES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    modules: _containers.RepeatedCompositeFieldContainer[ModuleReport]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, modules: _Optional[_Iterable[_Union[ModuleReport, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class ModuleReport(_message.Message):
    __slots__ = ("module", "rank", "scaling", "delta_norm", "parts", "experts", "least_delta_norm")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    DELTA_NORM_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    LEAST_DELTA_NORM_FIELD_NUMBER: _ClassVar[int]
    module: str
    rank: int
    scaling: float
    delta_norm: float
    parts: _containers.RepeatedScalarFieldContainer[AdaptedPart]
    experts: int
    least_delta_norm: float
    def __init__(self, module: _Optional[str] = ..., rank: _Optional[int] = ..., scaling: _Optional[float] = ..., delta_norm: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[AdaptedPart, str]]] = ..., experts: _Optional[int] = ..., least_delta_norm: _Optional[float] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "source", "expected_digest", "pinned", "tenant")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    expected_digest: str
    pinned: bool
    tenant: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., expected_digest: _Optional[str] = ..., pinned: _Optional[bool] = ..., tenant: _Optional[str] = ...) -> None: ...

class UploadAdapterRequest(_message.Message):
    __slots__ = ("start", "tensor", "commit")
    START_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    start: UploadStart
    tensor: UploadTensor
    commit: UploadCommit
    def __init__(self, start: _Optional[_Union[UploadStart, _Mapping]] = ..., tensor: _Optional[_Union[UploadTensor, _Mapping]] = ..., commit: _Optional[_Union[UploadCommit, _Mapping]] = ...) -> None: ...

class UploadStart(_message.Message):
    __slots__ = ("name", "config_json", "expected_digest", "pinned", "tenant")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    name: str
    config_json: str
    expected_digest: str
    pinned: bool
    tenant: str
    def __init__(self, name: _Optional[str] = ..., config_json: _Optional[str] = ..., expected_digest: _Optional[str] = ..., pinned: _Optional[bool] = ..., tenant: _Optional[str] = ...) -> None: ...

class UploadTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadCommit(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class RollbackAdapterRequest(_message.Message):
    __slots__ = ("name", "digest", "expected_digest", "tenant")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    expected_digest: str
    tenant: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., expected_digest: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class RollbackAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter", "changed")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    changed: bool
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., changed: _Optional[bool] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name", "force", "expected_digest", "tenant")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    expected_digest: str
    tenant: str
    def __init__(self, name: _Optional[str] = ..., force: _Optional[bool] = ..., expected_digest: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class PrefetchAdapterRequest(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    def __init__(self, adapter: _Optional[str] = ...) -> None: ...

class PrefetchAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchAdaptersRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class AdapterEvent(_message.Message):
    __slots__ = ("adapter", "progress", "error")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    progress: LoadProgress
    error: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("stage", "bytes_done", "bytes_total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: LoadStage
    bytes_done: int
    bytes_total: int
    def __init__(self, stage: _Optional[_Union[LoadStage, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class GetAdapterStatisticsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class GetAdapterStatisticsResponse(_message.Message):
    __slots__ = ("adapters", "tiers")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterUsage]
    tiers: _containers.RepeatedCompositeFieldContainer[TierUsage]
    def __init__(self, adapters: _Optional[_Iterable[_Union[AdapterUsage, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[TierUsage, _Mapping]]] = ...) -> None: ...

class AdapterUsage(_message.Message):
    __slots__ = ("digest", "names", "requests", "prompt_tokens", "generated_tokens", "running", "waiting", "is_warm", "is_resident", "pool_loads", "pool_hits", "slot_wait_seconds", "load_wait_seconds", "queue_wait_seconds")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    IS_WARM_FIELD_NUMBER: _ClassVar[int]
    IS_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    POOL_LOADS_FIELD_NUMBER: _ClassVar[int]
    POOL_HITS_FIELD_NUMBER: _ClassVar[int]
    SLOT_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    names: _containers.RepeatedScalarFieldContainer[str]
    requests: int
    prompt_tokens: int
    generated_tokens: int
    running: int
    waiting: int
    is_warm: bool
    is_resident: bool
    pool_loads: int
    pool_hits: int
    slot_wait_seconds: float
    load_wait_seconds: float
    queue_wait_seconds: float
    def __init__(self, digest: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., requests: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., is_warm: _Optional[bool] = ..., is_resident: _Optional[bool] = ..., pool_loads: _Optional[int] = ..., pool_hits: _Optional[int] = ..., slot_wait_seconds: _Optional[float] = ..., load_wait_seconds: _Optional[float] = ..., queue_wait_seconds: _Optional[float] = ...) -> None: ...

class TierUsage(_message.Message):
    __slots__ = ("tier", "entries", "bytes", "capacity_bytes", "hits", "misses", "loads", "evictions", "pinned_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    entries: int
    bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    loads: int
    evictions: int
    pinned_bytes: int
    def __init__(self, tier: _Optional[str] = ..., entries: _Optional[int] = ..., bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., loads: _Optional[int] = ..., evictions: _Optional[int] = ..., pinned_bytes: _Optional[int] = ...) -> None: ...
