"""Settings of one adapter store, validated once."""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from adapter_store.catalog.quota import Limits
from adapter_store.sources.urls import check_allowed, is_url, parse_prefix, parse_url
from adapter_store.tiers.eviction import POLICIES
from rpc.addresses import check_address, check_tcp_address
from rpc.errors import LorikeetError
from rpc.tuning import usable_cores

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - what is wanted is memory that processes share
_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where a store keeps adapters, where it takes them from, and how much of anything it allows.

    Raises ValueError, saying what to change, for values that cannot work.

    Args:
        data_dir: the disk tier: catalog and adapters. Belongs to one store at a time.
        listen: `host:port` (port 0 takes a free one) or `unix:/path`.
        metrics_listen: `host:port` for metrics in Prometheus' format over HTTP; empty serves none.
        roots: folders that adapters may be loaded from; nothing is loaded from anywhere else.
        sources: URLs below which adapters may be loaded, such as s3://bucket/prefix/, gs://, az://,
            https://host/folder/ or hf://owner/; nothing is loaded from any other.
        resolve_from: a folder below a root, or a URL below one of `sources`: a request for an unknown
            adapter NAME loads NAME from there, for all tenants. Empty: unknown names are refused.
        watch_folder: a folder below a root: each subfolder NAME with an adapter is loaded as NAME, and again
            when it changes. One that is removed stays loaded.
        arena_dir: folder, shared with the executors, for the memory tier; a tmpfs. None picks a folder of
            this user's under /dev/shm, or one in data_dir where there is no /dev/shm (macOS).
        arena_bytes: size of the memory tier, reserved at start.
        pinned_bytes: most bytes of it that pinned adapters may take; 0 is half of it.
        memory_eviction: what leaves the memory tier for want of room: "gdsf" weighs uses, size and the
            time to bring it back, "lru" takes what was not asked for the longest.
        disk_bytes: most bytes of all adapters on disk; 0 leaves it to the disk.
        max_adapter_bytes: largest adapter, as the sum of its files.
        max_rank: highest rank of an adapter; 0 leaves it to the executor's own limit.
        max_adapters: names at once.
        max_adapters_per_tenant: names of one tenant; 0 sets no limit of its own.
        max_bytes_per_tenant: packs of one tenant; 0 sets no limit of its own.
        keep_versions: earlier versions of a name that stay on disk, to roll back to.
        source_idle_seconds: how long a folder may give less than 1 MiB before a load from it is given up: a
            file system over a network may never answer.
        max_uploads: uploads taken in at once; one more is refused.
        upload_idle_seconds: how long an upload may send nothing before it is given up.
        upload_seconds: how long an upload may take to arrive.
        workers: threads that copy, check and pack; what they do at once. 0: one for each two cores, 2 to 8.
        max_pending_loads: loads running or waiting; one more is refused.
        follower_seconds: how long a frontend may take to act by a change before its stream is cut.
        executor_grace_seconds: for how long what a lost executor may still read stays untouched.
        drain_seconds: how long running loads may go on after a shutdown began.
    """

    data_dir: Path
    listen: str = "127.0.0.1:50053"
    metrics_listen: str = ""
    roots: tuple[Path, ...] = ()
    sources: tuple[str, ...] = ()
    resolve_from: str = ""
    watch_folder: Path | None = None
    arena_dir: Path | None = None
    arena_bytes: int = _GIB
    pinned_bytes: int = 0
    memory_eviction: str = "gdsf"
    disk_bytes: int = 0
    max_adapter_bytes: int = 8 * _GIB
    max_rank: int = 0
    max_adapters: int = 100_000
    max_adapters_per_tenant: int = 0
    max_bytes_per_tenant: int = 0
    keep_versions: int = 1
    source_idle_seconds: float = 60.0
    max_uploads: int = 8
    upload_idle_seconds: float = 30.0
    upload_seconds: float = 900.0
    workers: int = 0
    max_pending_loads: int = 64
    follower_seconds: float = 10.0
    executor_grace_seconds: float = 10.0
    drain_seconds: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "roots", tuple(Path(root).expanduser().absolute() for root in self.roots))
        check_address("listen", self.listen)
        if self.metrics_listen:
            check_tcp_address("metrics_listen", self.metrics_listen)
        for name, least, most in (
            ("arena_bytes", _MIB, 1 << 44),
            ("pinned_bytes", 0, self.arena_bytes),
            ("disk_bytes", 0, 1 << 50),
            ("max_adapter_bytes", 1, 1 << 44),
            ("max_rank", 0, 1 << 16),
            ("max_adapters", 1, 1 << 24),
            ("max_adapters_per_tenant", 0, 1 << 24),
            ("max_bytes_per_tenant", 0, 1 << 50),
            ("keep_versions", 0, 64),
            ("max_uploads", 1, 1024),
            ("source_idle_seconds", 0.001, 86_400),
            ("upload_idle_seconds", 0.001, 3600),
            ("upload_seconds", 0.001, 86_400),
            ("workers", 0, 256),
            ("max_pending_loads", 1, 1 << 16),
            ("follower_seconds", 0, 3600),
            ("executor_grace_seconds", 0, 3600),
            ("drain_seconds", 0, 3600),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not least <= value <= most:
                raise ValueError(f"{name} is {value}: choose from {least} to {most}")
        if self.memory_eviction not in POLICIES:
            choices = ", ".join(POLICIES)
            raise ValueError(f"memory_eviction is {self.memory_eviction!r}: choose one of {choices}")
        if self.arena_dir is None and sys.platform == "linux" and not _SHARED_MEMORY.is_dir():
            raise ValueError(f"arena_dir: there is no {_SHARED_MEMORY} here: name a folder on another tmpfs")
        for root in self.roots:
            if not root.is_dir():
                raise ValueError(f"roots: {root} is not a folder: create it or name another")
        for source in self.sources:
            try:
                parse_prefix(source)
            except ValueError as error:
                raise ValueError(f"sources: {error}") from error
        self._check_places()

    def _check_places(self) -> None:
        if self.watch_folder is not None:
            object.__setattr__(self, "watch_folder", self.watch_folder.expanduser().absolute())
            self._check_below_root("watch_folder", str(self.watch_folder))
        if is_url(self.resolve_from):
            try:
                check_allowed(parse_url(self.resolve_from), tuple(map(parse_prefix, self.sources)))
            except LorikeetError as error:
                raise ValueError(f"resolve_from: {error.message}") from error
        elif self.resolve_from:
            place = os.path.abspath(os.path.expanduser(self.resolve_from))
            object.__setattr__(self, "resolve_from", place)
            self._check_below_root("resolve_from", place)

    def _check_below_root(self, name: str, place: str) -> None:
        real = Path(os.path.realpath(place))
        if not any(real.is_relative_to(os.path.realpath(root)) for root in self.roots):
            raise ValueError(
                f"{name}: {place} is not below one of the roots: name it, or a folder above, there"
            )

    @property
    def threads(self) -> int:
        """Of each kind of `workers`."""
        return self.workers or max(2, min(8, usable_cores() // 2))

    @property
    def limits(self) -> Limits:
        """What the catalog allows."""
        return Limits(
            keep_versions=self.keep_versions,
            max_adapters=self.max_adapters,
            max_adapters_per_tenant=self.max_adapters_per_tenant,
            max_bytes_per_tenant=self.max_bytes_per_tenant,
            max_pinned_bytes=self.pinned_bytes or self.arena_bytes // 2,
        )

    @property
    def arena_folder(self) -> Path:
        """The folder of the memory tier."""
        if self.arena_dir is not None:
            return self.arena_dir
        if sys.platform == "linux":
            return _SHARED_MEMORY / f"lorikeet-{os.getuid()}"
        return self.data_dir / "arena"
