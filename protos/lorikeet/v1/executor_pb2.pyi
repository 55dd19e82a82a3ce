from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EngineFinish(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_FINISH_UNSPECIFIED: _ClassVar[EngineFinish]
    ENGINE_FINISH_STOP: _ClassVar[EngineFinish]
    ENGINE_FINISH_LENGTH: _ClassVar[EngineFinish]
ENGINE_FINISH_UNSPECIFIED: EngineFinish
ENGINE_FINISH_STOP: EngineFinish
ENGINE_FINISH_LENGTH: EngineFinish

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "commands")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    hello: ClientHello
    commands: ClientCommands
    def __init__(self, hello: _Optional[_Union[ClientHello, _Mapping]] = ..., commands: _Optional[_Union[ClientCommands, _Mapping]] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("hello", "step")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    hello: EngineHello
    step: EngineStep
    def __init__(self, hello: _Optional[_Union[EngineHello, _Mapping]] = ..., step: _Optional[_Union[EngineStep, _Mapping]] = ...) -> None: ...

class ClientHello(_message.Message):
    __slots__ = ("protocol_version", "incarnation", "tokenizer_digest")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    incarnation: str
    tokenizer_digest: str
    def __init__(self, protocol_version: _Optional[int] = ..., incarnation: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ...) -> None: ...

class EngineHello(_message.Message):
    __slots__ = ("protocol_version", "incarnation", "model_name", "model_type", "base_digest", "tokenizer_digest", "layout_digest", "limits", "eos_token_ids")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    incarnation: str
    model_name: str
    model_type: str
    base_digest: str
    tokenizer_digest: str
    layout_digest: str
    limits: EngineLimits
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, protocol_version: _Optional[int] = ..., incarnation: _Optional[str] = ..., model_name: _Optional[str] = ..., model_type: _Optional[str] = ..., base_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., layout_digest: _Optional[str] = ..., limits: _Optional[_Union[EngineLimits, _Mapping]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class EngineLimits(_message.Message):
    __slots__ = ("context_length", "vocab_size", "max_running", "max_waiting", "max_logprobs", "adapter_slots", "max_lora_rank")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    vocab_size: int
    max_running: int
    max_waiting: int
    max_logprobs: int
    adapter_slots: int
    max_lora_rank: int
    def __init__(self, context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_running: _Optional[int] = ..., max_waiting: _Optional[int] = ..., max_logprobs: _Optional[int] = ..., adapter_slots: _Optional[int] = ..., max_lora_rank: _Optional[int] = ...) -> None: ...

class ClientCommands(_message.Message):
    __slots__ = ("submits", "finishes", "aborts", "prefetch_digests")
    SUBMITS_FIELD_NUMBER: _ClassVar[int]
    FINISHES_FIELD_NUMBER: _ClassVar[int]
    ABORTS_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    submits: _containers.RepeatedCompositeFieldContainer[Submit]
    finishes: _containers.RepeatedScalarFieldContainer[int]
    aborts: _containers.RepeatedScalarFieldContainer[int]
    prefetch_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, submits: _Optional[_Iterable[_Union[Submit, _Mapping]]] = ..., finishes: _Optional[_Iterable[int]] = ..., aborts: _Optional[_Iterable[int]] = ..., prefetch_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request", "prompt_ids", "emitted_ids", "adapter_digest", "cache_salt", "remaining_us", "sampling")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_IDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    request: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    emitted_ids: _containers.RepeatedScalarFieldContainer[int]
    adapter_digest: str
    cache_salt: str
    remaining_us: int
    sampling: EngineSampling
    def __init__(self, request: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., emitted_ids: _Optional[_Iterable[int]] = ..., adapter_digest: _Optional[str] = ..., cache_salt: _Optional[str] = ..., remaining_us: _Optional[int] = ..., sampling: _Optional[_Union[EngineSampling, _Mapping]] = ...) -> None: ...

class EngineSampling(_message.Message):
    __slots__ = ("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop_token_ids", "ignore_eos", "logit_bias_ids", "logit_bias_values", "logprobs", "prompt_logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_VALUES_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logit_bias_ids: _containers.RepeatedScalarFieldContainer[int]
    logit_bias_values: _containers.RepeatedScalarFieldContainer[float]
    logprobs: int
    prompt_logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., logit_bias_ids: _Optional[_Iterable[int]] = ..., logit_bias_values: _Optional[_Iterable[float]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class EngineStep(_message.Message):
    __slots__ = ("step", "requests", "token_splits", "token_ids", "logprobs", "finishes", "admitted", "top_logprobs", "prompt_logprobs", "failed")
    STEP_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SPLITS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISHES_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    step: int
    requests: _containers.RepeatedScalarFieldContainer[int]
    token_splits: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    finishes: _containers.RepeatedScalarFieldContainer[int]
    admitted: _containers.RepeatedCompositeFieldContainer[Admitted]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    failed: _containers.RepeatedCompositeFieldContainer[Failed]
    def __init__(self, step: _Optional[int] = ..., requests: _Optional[_Iterable[int]] = ..., token_splits: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., finishes: _Optional[_Iterable[int]] = ..., admitted: _Optional[_Iterable[_Union[Admitted, _Mapping]]] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[Failed, _Mapping]]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("request", "cached_tokens", "queued_us", "adapter_wait_us", "slot_wait_us", "load_wait_us")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_US_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    SLOT_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    LOAD_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    request: int
    cached_tokens: int
    queued_us: int
    adapter_wait_us: int
    slot_wait_us: int
    load_wait_us: int
    def __init__(self, request: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., queued_us: _Optional[int] = ..., adapter_wait_us: _Optional[int] = ..., slot_wait_us: _Optional[int] = ..., load_wait_us: _Optional[int] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("request", "token", "ids", "logprobs")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request: int
    token: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, request: _Optional[int] = ..., token: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("request", "start", "logprobs", "top", "top_ids", "top_logprobs")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request: int
    start: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top: int
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, request: _Optional[int] = ..., start: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., top: _Optional[int] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("request", "code", "reason", "message")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    request: int
    code: int
    reason: str
    message: str
    def __init__(self, request: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetExecutorStatisticsRequest(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: int
    def __init__(self, adapters: _Optional[int] = ...) -> None: ...

class ExecutorStatistics(_message.Message):
    __slots__ = ("steps", "preemptions", "frontends", "requests_waiting", "requests_running", "pages", "pages_held", "pages_cached", "adapters_resident", "adapters_arriving", "adapter_pool_bytes", "adapter_pool_bytes_free", "leases", "commands_queued", "outbox_bytes", "pool_loads", "pool_hits", "pool_misses", "pool_evictions", "adapters", "host_pages_used", "host_pages_saved", "host_pages_restored")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    FRONTENDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGES_HELD_FIELD_NUMBER: _ClassVar[int]
    PAGES_CACHED_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_ARRIVING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_POOL_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_BYTES_FIELD_NUMBER: _ClassVar[int]
    POOL_LOADS_FIELD_NUMBER: _ClassVar[int]
    POOL_HITS_FIELD_NUMBER: _ClassVar[int]
    POOL_MISSES_FIELD_NUMBER: _ClassVar[int]
    POOL_EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_USED_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_SAVED_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_RESTORED_FIELD_NUMBER: _ClassVar[int]
    steps: int
    preemptions: int
    frontends: int
    requests_waiting: int
    requests_running: int
    pages: int
    pages_held: int
    pages_cached: int
    adapters_resident: int
    adapters_arriving: int
    adapter_pool_bytes: int
    adapter_pool_bytes_free: int
    leases: int
    commands_queued: int
    outbox_bytes: int
    pool_loads: int
    pool_hits: int
    pool_misses: int
    pool_evictions: int
    adapters: _containers.RepeatedCompositeFieldContainer[ExecutorAdapter]
    host_pages_used: int
    host_pages_saved: int
    host_pages_restored: int
    def __init__(self, steps: _Optional[int] = ..., preemptions: _Optional[int] = ..., frontends: _Optional[int] = ..., requests_waiting: _Optional[int] = ..., requests_running: _Optional[int] = ..., pages: _Optional[int] = ..., pages_held: _Optional[int] = ..., pages_cached: _Optional[int] = ..., adapters_resident: _Optional[int] = ..., adapters_arriving: _Optional[int] = ..., adapter_pool_bytes: _Optional[int] = ..., adapter_pool_bytes_free: _Optional[int] = ..., leases: _Optional[int] = ..., commands_queued: _Optional[int] = ..., outbox_bytes: _Optional[int] = ..., pool_loads: _Optional[int] = ..., pool_hits: _Optional[int] = ..., pool_misses: _Optional[int] = ..., pool_evictions: _Optional[int] = ..., adapters: _Optional[_Iterable[_Union[ExecutorAdapter, _Mapping]]] = ..., host_pages_used: _Optional[int] = ..., host_pages_saved: _Optional[int] = ..., host_pages_restored: _Optional[int] = ...) -> None: ...

class ExecutorAdapter(_message.Message):
    __slots__ = ("digest", "is_resident", "waiting", "running", "requests", "pool_loads", "pool_hits", "slot_wait_seconds", "load_wait_seconds", "queue_wait_seconds")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    POOL_LOADS_FIELD_NUMBER: _ClassVar[int]
    POOL_HITS_FIELD_NUMBER: _ClassVar[int]
    SLOT_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    is_resident: bool
    waiting: int
    running: int
    requests: int
    pool_loads: int
    pool_hits: int
    slot_wait_seconds: float
    load_wait_seconds: float
    queue_wait_seconds: float
    def __init__(self, digest: _Optional[str] = ..., is_resident: _Optional[bool] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., requests: _Optional[int] = ..., pool_loads: _Optional[int] = ..., pool_hits: _Optional[int] = ..., slot_wait_seconds: _Optional[float] = ..., load_wait_seconds: _Optional[float] = ..., queue_wait_seconds: _Optional[float] = ...) -> None: ...
