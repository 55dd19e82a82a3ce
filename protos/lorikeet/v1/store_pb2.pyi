from lorikeet.v1 import adapters_pb2 as _adapters_pb2
from lorikeet.v1 import layout_pb2 as _layout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResolveAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetChatTemplateRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class ChatTemplate(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("acknowledged_revision",)
    ACKNOWLEDGED_REVISION_FIELD_NUMBER: _ClassVar[int]
    acknowledged_revision: int
    def __init__(self, acknowledged_revision: _Optional[int] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("revision", "snapshot", "pointers")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    POINTERS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    snapshot: bool
    pointers: _containers.RepeatedCompositeFieldContainer[AdapterPointer]
    def __init__(self, revision: _Optional[int] = ..., snapshot: _Optional[bool] = ..., pointers: _Optional[_Iterable[_Union[AdapterPointer, _Mapping]]] = ...) -> None: ...

class AdapterPointer(_message.Message):
    __slots__ = ("name", "digest", "abort_running", "has_chat_template", "tenant")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ABORT_RUNNING_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    abort_running: bool
    has_chat_template: bool
    tenant: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., abort_running: _Optional[bool] = ..., has_chat_template: _Optional[bool] = ..., tenant: _Optional[str] = ...) -> None: ...

class RegisterLayoutRequest(_message.Message):
    __slots__ = ("layout",)
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    layout: _layout_pb2.Layout
    def __init__(self, layout: _Optional[_Union[_layout_pb2.Layout, _Mapping]] = ...) -> None: ...

class RegisterLayoutResponse(_message.Message):
    __slots__ = ("layout_digest", "arena_file", "arena_bytes")
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARENA_FILE_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    layout_digest: str
    arena_file: str
    arena_bytes: int
    def __init__(self, layout_digest: _Optional[str] = ..., arena_file: _Optional[str] = ..., arena_bytes: _Optional[int] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("hello", "acquire", "release", "prefetch", "retired", "batch", "used")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACQUIRE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    hello: LeaseHello
    acquire: AcquireLease
    release: ReleaseLease
    prefetch: PrefetchPack
    retired: RetiredAdapter
    batch: LeaseBatch
    used: UsedPack
    def __init__(self, hello: _Optional[_Union[LeaseHello, _Mapping]] = ..., acquire: _Optional[_Union[AcquireLease, _Mapping]] = ..., release: _Optional[_Union[ReleaseLease, _Mapping]] = ..., prefetch: _Optional[_Union[PrefetchPack, _Mapping]] = ..., retired: _Optional[_Union[RetiredAdapter, _Mapping]] = ..., batch: _Optional[_Union[LeaseBatch, _Mapping]] = ..., used: _Optional[_Union[UsedPack, _Mapping]] = ...) -> None: ...

class LeaseBatch(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[LeaseRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[LeaseRequest, _Mapping]]] = ...) -> None: ...

class LeaseHello(_message.Message):
    __slots__ = ("layout_digest", "incarnation", "held")
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    layout_digest: str
    incarnation: str
    held: _containers.RepeatedCompositeFieldContainer[HeldLease]
    def __init__(self, layout_digest: _Optional[str] = ..., incarnation: _Optional[str] = ..., held: _Optional[_Iterable[_Union[HeldLease, _Mapping]]] = ...) -> None: ...

class HeldLease(_message.Message):
    __slots__ = ("digest", "header_offset", "generation")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEADER_OFFSET_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    digest: str
    header_offset: int
    generation: int
    def __init__(self, digest: _Optional[str] = ..., header_offset: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class AcquireLease(_message.Message):
    __slots__ = ("lease", "digest")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    lease: int
    digest: str
    def __init__(self, lease: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class ReleaseLease(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class PrefetchPack(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class UsedPack(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class RetiredAdapter(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("grant", "refusal", "retire", "batch")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RETIRE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    grant: LeaseGrant
    refusal: LeaseRefusal
    retire: RetireAdapter
    batch: LeaseAnswers
    def __init__(self, grant: _Optional[_Union[LeaseGrant, _Mapping]] = ..., refusal: _Optional[_Union[LeaseRefusal, _Mapping]] = ..., retire: _Optional[_Union[RetireAdapter, _Mapping]] = ..., batch: _Optional[_Union[LeaseAnswers, _Mapping]] = ...) -> None: ...

class LeaseAnswers(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[LeaseResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[LeaseResponse, _Mapping]]] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("lease", "header_offset", "pack_offset", "generation", "manifest")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HEADER_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PACK_OFFSET_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    lease: int
    header_offset: int
    pack_offset: int
    generation: int
    manifest: _layout_pb2.PackManifest
    def __init__(self, lease: _Optional[int] = ..., header_offset: _Optional[int] = ..., pack_offset: _Optional[int] = ..., generation: _Optional[int] = ..., manifest: _Optional[_Union[_layout_pb2.PackManifest, _Mapping]] = ...) -> None: ...

class LeaseRefusal(_message.Message):
    __slots__ = ("lease", "code", "reason", "message")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    code: int
    reason: str
    message: str
    def __init__(self, lease: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RetireAdapter(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class FetchPackRequest(_message.Message):
    __slots__ = ("digest", "layout_digest")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    layout_digest: str
    def __init__(self, digest: _Optional[str] = ..., layout_digest: _Optional[str] = ...) -> None: ...

class PackChunk(_message.Message):
    __slots__ = ("manifest", "data")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    manifest: _layout_pb2.PackManifest
    data: bytes
    def __init__(self, manifest: _Optional[_Union[_layout_pb2.PackManifest, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetPackStatisticsRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digests: _Optional[_Iterable[str]] = ...) -> None: ...

class PackStatistics(_message.Message):
    __slots__ = ("executors", "leases", "packs_warm", "arena_bytes", "arena_bytes_used", "packs_cold", "tiers", "warm_digests")
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    PACKS_WARM_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    PACKS_COLD_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    WARM_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    executors: int
    leases: int
    packs_warm: int
    arena_bytes: int
    arena_bytes_used: int
    packs_cold: int
    tiers: _containers.RepeatedCompositeFieldContainer[_adapters_pb2.TierUsage]
    warm_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, executors: _Optional[int] = ..., leases: _Optional[int] = ..., packs_warm: _Optional[int] = ..., arena_bytes: _Optional[int] = ..., arena_bytes_used: _Optional[int] = ..., packs_cold: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[_adapters_pb2.TierUsage, _Mapping]]] = ..., warm_digests: _Optional[_Iterable[str]] = ...) -> None: ...
