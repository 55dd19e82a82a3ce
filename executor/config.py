"""Settings of one executor, validated once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rpc.addresses import check_address, check_tcp_address

DType = Literal["float32", "bfloat16", "float16"]
Runner = Literal["torch", "arithmetic"]
LoadFormat = Literal["safetensors", "dummy"]
Device = Literal["cpu", "cuda"]
QueuePolicy = Literal["fair", "pack"]
PoolEviction = Literal["gdsf", "lru"]

GIB = 1 << 30
_RANK_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """What one executor process serves and with how much memory.

    Raises ValueError, saying what to change, for values that cannot work.

    Args:
        model_dir: folder with config.json, tokenizer.json and safetensors files.
        listen: `host:port` (port 0 takes a free one) or `unix:/path`.
        store: the adapter store's address; empty serves the base model only.
        arena_dir: folder, shared with the store, that holds its arena; None fetches packs through gRPC.
        metrics_listen: `host:port` for metrics in Prometheus' format over HTTP; empty serves none.
        model_name: what the model is called to clients; the folder's name when empty.
        device: "cpu" or "cuda", which takes the first GPU that CUDA_VISIBLE_DEVICES leaves visible.
        load_format: "safetensors", or "dummy", which makes up weights from config.json alone (benchmarks).
        dtype: of weights, KV and LoRA packs.
        deterministic: a request's logits have the same bits alone and in any batch, in one chunk or many,
            from cached prefixes or without. Costs speed.
        max_running: rows of a batch.
        max_waiting: requests waiting over all frontends.
        max_step_tokens: tokens computed in one step, prompt chunks and decoding together.
        page_size: tokens of a KV page.
        kv_pages: pages of the KV cache; None takes as many as `kv_bytes` hold.
        kv_bytes: budget of the KV cache when `kv_pages` is None. Where both are None, a GPU gives what the
            largest step leaves of `gpu_memory_utilization`, and the CPU 1 GiB.
        kv_host_bytes: host memory for prefixes that leave the KV cache, to be copied back instead of computed
            again; 0 for none.
        gpu_memory_utilization: share of the GPU's memory for everything: weights, adapters, steps and KV.
        adapter_slots: adapters resident at once.
        adapter_pool_bytes: memory for resident adapters.
        max_lora_rank: adapters of a higher rank are refused by the store.
        queue_policy: "fair" takes turns among adapters; "pack" prefers requests of adapters that already run.
        pool_eviction: which idle adapters leave for another: "gdsf" weighs how often they are asked for and
            what it costs to load them again, "lru" takes the least recently used.
        runner: "torch", or "arithmetic", which computes nothing and makes up tokens (benchmarks, tests).
        arithmetic_step_seconds: how long each step of that runner takes, as a device's would; 0 for no time.
        outbox_bytes: what may wait for one frontend before its stream is cut.
        drain_seconds: how long running requests may go on after a shutdown began.
        store_patience_seconds: how long an adapter's load waits for a store that is away.
    """

    model_dir: Path
    listen: str = "127.0.0.1:50052"
    store: str = ""
    arena_dir: Path | None = None
    metrics_listen: str = ""
    model_name: str = ""
    device: Device = "cpu"
    load_format: LoadFormat = "safetensors"
    dtype: DType = "float32"
    deterministic: bool = False
    max_running: int = 64
    max_waiting: int = 1024
    max_step_tokens: int = 512
    page_size: int = 16
    kv_pages: int | None = None
    kv_bytes: int | None = None
    kv_host_bytes: int = 0
    gpu_memory_utilization: float = 0.9
    adapter_slots: int = 32
    adapter_pool_bytes: int = GIB // 2
    max_lora_rank: int = 256
    queue_policy: QueuePolicy = "fair"
    pool_eviction: PoolEviction = "gdsf"
    runner: Runner = "torch"
    arithmetic_step_seconds: float = 0.0
    outbox_bytes: int = 4 << 20
    drain_seconds: float = 10.0
    store_patience_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.device.startswith("cuda:"):
            raise ValueError(
                f"device is {self.device!r}: use 'cuda', and CUDA_VISIBLE_DEVICES to choose among GPUs"
            )
        _check_choice("device", self.device, get_args(Device))
        _check_choice("load_format", self.load_format, get_args(LoadFormat))
        _check_choice("dtype", self.dtype, get_args(DType))
        _check_choice("queue_policy", self.queue_policy, get_args(QueuePolicy))
        _check_choice("pool_eviction", self.pool_eviction, get_args(PoolEviction))
        _check_choice("runner", self.runner, get_args(Runner))
        check_address("listen", self.listen)
        if self.store:
            check_address("store", self.store)
        if self.metrics_listen:
            check_tcp_address("metrics_listen", self.metrics_listen)
        self._check_numbers()
        if not (self.model_dir / "config.json").is_file():
            raise ValueError(
                f"{self.model_dir} holds no config.json: give the folder of a Hugging Face checkpoint"
            )

    @property
    def served_name(self) -> str:
        """What clients see as the model's name."""
        return self.model_name or self.model_dir.resolve().name

    @property
    def measures_kv(self) -> bool:
        """Whether the KV cache is as large as a run on the GPU shows that it may be."""
        return (
            self.device == "cuda"
            and self.runner == "torch"
            and self.kv_pages is None
            and self.kv_bytes is None
        )

    def _check_numbers(self) -> None:
        for name, least, most in (
            ("max_running", 1, 4096),
            ("max_waiting", 1, 1 << 20),
            ("max_step_tokens", 1, 65_535),  # what a grid of a GPU has in its second dimension
            ("adapter_slots", 0, 1 << 16),
            ("adapter_pool_bytes", 0, 1 << 50),
            ("max_lora_rank", 0, 4096),
            ("kv_host_bytes", 0, 1 << 50),
            ("outbox_bytes", 1 << 10, 1 << 40),
            ("arithmetic_step_seconds", 0, 60),
            ("drain_seconds", 0, 86_400),
            ("store_patience_seconds", 0, 86_400),
        ):
            value = getattr(self, name)
            # Written so that NaN fails as well.
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}: choose from {least} to {most}")
        if self.page_size not in (8, 16, 32, 64, 128):
            raise ValueError(f"page_size is {self.page_size}: choose 8, 16, 32, 64 or 128 (16 suits most)")
        if self.kv_pages is not None and self.kv_pages < 1:
            raise ValueError(f"kv_pages is {self.kv_pages}: give at least 1, or leave it out to use kv_bytes")
        if self.kv_bytes is not None and not 1 <= self.kv_bytes <= 1 << 50:
            raise ValueError(f"kv_bytes is {self.kv_bytes}: choose from 1 to {1 << 50}, or leave it out")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}: give a share above 0, at most 1"
            )
        if self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens ({self.max_step_tokens}) is below max_running ({self.max_running}): "
                "a step must hold one token of each row; raise the first or lower the second"
            )
        if self.store and (self.adapter_slots == 0 or self.adapter_pool_bytes == 0):
            raise ValueError(
                "a store is given but there is no room for adapters: "
                "set adapter_slots and adapter_pool_bytes above 0, or leave out the store"
            )
        if self.max_lora_rank % _RANK_MULTIPLE:
            raise ValueError(f"max_lora_rank is {self.max_lora_rank}: give a multiple of {_RANK_MULTIPLE}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
