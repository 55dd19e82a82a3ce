"""Settings of the control plane."""

from __future__ import annotations

from dataclasses import dataclass

from executor.control.eviction import EVICTION_POLICIES
from executor.control.queue_policy import QUEUE_POLICIES


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one executor's scheduler. Raises ValueError, naming the setting, where one makes no sense.

    context: most tokens of prompt and output together. pages, page_size: the KV pool. host_pages: pages of
    host memory for prefixes that left it. max_running: rows of a batch. max_waiting: most requests in the
    queue. max_step_tokens: most tokens fed to the model in one step. chunk: most prompt tokens of one request
    in one step; None leaves it to max_step_tokens.
    adapter_slots, pool_units: adapters on the GPU and their room, in units of 128 bytes; no slots turn
    adapters off. max_leases: adapters on their way in at once. slot_quantum: tokens that an adapter is
    served before it must make room for one that waits, so that adapters are not reloaded for every request.
    queue_policy, pool_eviction: names of classes in queue_policy.py and eviction.py.
    eos_token_ids: what ends a sequence unless it says ignore_eos.
    """

    context: int
    pages: int
    page_size: int = 16
    host_pages: int = 0
    max_running: int = 64
    max_waiting: int = 1024
    max_step_tokens: int = 2048
    chunk: int | None = None
    adapter_slots: int = 0
    pool_units: int = 0
    max_leases: int = 16
    slot_quantum: int = 512
    queue_policy: str = "fair"
    pool_eviction: str = "gdsf"
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "context",
            "pages",
            "page_size",
            "max_running",
            "max_waiting",
            "max_step_tokens",
            "max_leases",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("host_pages", "adapter_slots", "pool_units", "slot_quantum"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; it must be at least 1, or left out")
        if self.max_step_tokens < self.max_running:
            limits = f"max_step_tokens is {self.max_step_tokens} and max_running {self.max_running}"
            raise ValueError(f"{limits}; a step must have room for one token of every running request")
        if self.queue_policy not in QUEUE_POLICIES:
            known = ", ".join(sorted(QUEUE_POLICIES))
            raise ValueError(f"queue_policy is {self.queue_policy!r}; it must be one of {known}")
        if self.pool_eviction not in EVICTION_POLICIES:
            known = ", ".join(sorted(EVICTION_POLICIES))
            raise ValueError(f"pool_eviction is {self.pool_eviction!r}; it must be one of {known}")
        if bool(self.adapter_slots) != bool(self.pool_units):
            raise ValueError("adapter_slots and pool_units go together: give both, or neither")

    @property
    def longest(self) -> int:
        """Most tokens that a sequence can have here: the context, or what fits into all pages."""
        return min(self.context, self.pages * self.page_size)
