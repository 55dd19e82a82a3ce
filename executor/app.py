"""One executor process: what is composed of what, and the order of start and end."""

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from executor.adapters.base_only import BaseOnlyLoader
from executor.adapters.copier import Copier
from executor.adapters.lease_client import LeaseClient
from executor.adapters.loader import StoreLoader
from executor.base.build import Base, build_base
from executor.config import ExecutorConfig
from executor.control.engine import Engine
from executor.control.loader import UNIT_BYTES, AdapterLoader
from executor.control.mailbox import Mailbox
from executor.control.scheduler import Scheduler
from executor.model.weights import Progress
from executor.service.commands import MAX_LOGPROBS, RequestLimits
from executor.service.metrics import ExecutorMetrics
from executor.service.outbox import Outboxes
from executor.service.servicer import ExecutorServicer
from executor.service.sessions import Sessions
from executor.service.usage import busiest_adapters
from lorikeet.v1 import executor_pb2 as pb
from lorikeet.v1 import executor_pb2_grpc
from rpc.channel import open_channel
from rpc.digests import layout_digest
from rpc.metrics import MetricsServer
from rpc.server import Server
from rpc.tuning import tune_process
from rpc.versions import PROTOCOL_VERSION

log = logging.getLogger(__name__)

SERVICE = "lorikeet.v1.ExecutorService"
_HEALTH_SECONDS = 1.0
_PROGRESS_SECONDS = 5.0


class EngineFailedError(RuntimeError):
    """The engine cannot go on; the process should end and be started again."""


class _StoppedError(Exception):
    """The end was asked for while the start was under way."""


async def run(
    config: ExecutorConfig,
    *,
    stop: asyncio.Event | None = None,
    ready: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Serves until `stop` is set, then drains and returns.

    `ready` is called with the bound address once health says SERVING; `progress` with bytes done and bytes in
    all while weights are loaded (from another thread).

    Raises ValueError or OSError when the model cannot be served, EngineFailedError when steps keep failing.
    """
    stop = stop or asyncio.Event()

    def check() -> None:
        if stop.is_set():
            raise _StoppedError

    try:
        base = await asyncio.to_thread(build_base, config, progress or _log_progress(), check)
        check()
    except _StoppedError:
        log.info("stopped before it was ready")
        return
    executor = Executor(config, base)
    async with executor.running(stop) as address:
        tune_process()
        log.info("serving %s on %s", config.served_name, address)
        if ready is not None:
            ready(address)
        await executor.wait(stop)


class Executor:
    """All parts of one executor. Needs a running event loop."""

    def __init__(self, config: ExecutorConfig, base: Base) -> None:
        self._config = config
        self._base = base
        self._incarnation = uuid.uuid4().hex
        self._layout_digest = layout_digest(base.layout)
        self._mailbox = Mailbox()
        self._scheduler = Scheduler(base.scheduling)
        self._outboxes = Outboxes(loop=asyncio.get_running_loop(), limit_bytes=config.outbox_bytes)
        self._sessions = Sessions(
            mailbox=self._mailbox,
            outboxes=self._outboxes,
            limits=RequestLimits(vocab_size=base.model.vocab_size, context_length=base.scheduling.longest),
        )
        self._leases: LeaseClient | None = None
        self._loading: asyncio.Task[None] | None = None
        self._engine: Engine[Any] | None = None

    @contextlib.asynccontextmanager
    async def running(self, stop: asyncio.Event | None = None) -> AsyncIterator[str]:
        """Serves for the length of the block, which gets the bound address; drains at its end.

        Waits for the store first, unless `stop` is set meanwhile.
        """
        config = self._config
        async with contextlib.AsyncExitStack() as stack:
            loader = await self._open_loader(stack)
            self._engine = engine = Engine(
                scheduler=self._scheduler,
                runner=self._base.runner,
                loader=loader,
                mailbox=self._mailbox,
                publish=self._outboxes.publish,
                # Overlap hides the host's time from a device; the CPU would only answer a step later.
                overlap=config.device != "cpu",
                rest=self._base.rest,
            )
            stack.enter_context(_thread(engine))
            server = Server()
            servicer = ExecutorServicer(
                hello=self._hello(), sessions=self._sessions, statistics=self.statistics
            )
            server.add(SERVICE, executor_pb2_grpc.add_ExecutorServiceServicer_to_server, servicer)
            address = await server.start(config.listen)
            stack.push_async_callback(self._drain, server)
            if config.metrics_listen:
                metrics = MetricsServer(ExecutorMetrics(self.statistics).gather)
                await metrics.start(config.metrics_listen)
                stack.push_async_callback(metrics.stop)
            await self._await_store(stop or asyncio.Event())
            await server.set_serving(True)
            yield address

    async def wait(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set. Raises EngineFailedError, or what ended the store's stream for good."""
        assert self._engine is not None
        while self._engine.healthy:
            if self._loading is not None and self._loading.done():
                self._loading.result()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _HEALTH_SECONDS)
                return
        raise EngineFailedError("steps of the engine keep failing; the log says why")

    def statistics(self, adapters: int = 0) -> pb.ExecutorStatistics:
        """What is held now, with the busiest `adapters`; approximate while steps run."""
        assert self._engine is not None
        usage = self._engine.usage
        total = usage.total()
        scheduler = self._scheduler.statistics()
        outboxes = self._outboxes.statistics()
        return pb.ExecutorStatistics(
            steps=scheduler.steps,
            preemptions=scheduler.preemptions,
            frontends=outboxes.frontends,
            requests_waiting=scheduler.waiting,
            requests_running=scheduler.running,
            pages=scheduler.pages,
            pages_held=scheduler.pages_held,
            pages_cached=scheduler.pages_cached,
            host_pages_used=scheduler.host.used,
            host_pages_saved=scheduler.host.saved,
            host_pages_restored=scheduler.host.restored,
            adapters_resident=scheduler.adapters_resident,
            adapters_arriving=scheduler.adapters_arriving,
            adapter_pool_bytes=self._base.scheduling.pool_units * UNIT_BYTES,
            adapter_pool_bytes_free=scheduler.adapter_units_free * UNIT_BYTES,
            leases=self._leases.held if self._leases is not None else 0,
            commands_queued=self._mailbox.statistics().waiting,
            outbox_bytes=outboxes.queued_bytes,
            pool_loads=scheduler.pool_loads,
            pool_hits=total.pool_hits,
            pool_misses=total.requests - total.pool_hits,
            pool_evictions=scheduler.pool_evictions,
            adapters=busiest_adapters(usage, self._scheduler, adapters) if adapters else (),
        )

    async def _open_loader(self, stack: contextlib.AsyncExitStack) -> AdapterLoader:
        config = self._config
        if not config.store:
            return BaseOnlyLoader()
        if config.arena_dir is None:
            log.info("no arena_dir: packs come through gRPC; give the store's folder to share its memory")
        self._leases = LeaseClient(
            channel=await stack.enter_async_context(open_channel(config.store)),
            layout=self._base.layout,
            layout_digest=self._layout_digest,
            incarnation=self._incarnation,
            arena_dir=config.arena_dir,
            patience_seconds=config.store_patience_seconds,
        )
        loader = StoreLoader(
            loop=asyncio.get_running_loop(),
            client=self._leases,
            pool=self._base.pool,
            copier=stack.enter_context(Copier()),
            wake=self._mailbox.wake,
        )
        self._loading = asyncio.create_task(loader.run())
        stack.push_async_callback(_cancel, self._loading)
        return loader

    async def _await_store(self, stop: asyncio.Event) -> None:
        """Waits, for a while, until adapters can be had; the base model is served without."""
        if self._leases is None or self._loading is None:
            return
        registered = self._leases.registered
        events = [asyncio.create_task(event.wait()) for event in (registered, stop)]
        try:
            await asyncio.wait(
                {*events, self._loading},
                timeout=self._config.store_patience_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for event in events:
                event.cancel()
        if not (registered.is_set() or stop.is_set()):
            log.warning("serving without adapters until the store at %s answers", self._config.store)

    def begin_drain(self) -> None:
        """No new streams and requests from now on; each stream is cut once its requests have ended."""
        self._sessions.drain()

    async def _drain(self, server: Server) -> None:
        assert self._engine is not None
        self.begin_drain()
        await server.drain(self._config.drain_seconds if self._engine.healthy else 0)

    def _hello(self) -> pb.EngineHello:
        base, scheduling = self._base, self._base.scheduling
        return pb.EngineHello(
            protocol_version=PROTOCOL_VERSION,
            incarnation=self._incarnation,
            model_name=self._config.served_name,
            model_type=base.model.family,
            base_digest=base.layout.base_digest,
            tokenizer_digest=base.tokenizer_digest,
            layout_digest=self._layout_digest,
            limits=pb.EngineLimits(
                context_length=scheduling.longest,
                vocab_size=base.model.vocab_size,
                max_running=scheduling.max_running,
                max_waiting=scheduling.max_waiting,
                max_logprobs=MAX_LOGPROBS,
                adapter_slots=scheduling.adapter_slots,
                max_lora_rank=self._config.max_lora_rank if scheduling.adapter_slots else 0,
            ),
            eos_token_ids=base.model.eos_ids,
        )


@contextlib.contextmanager
def _thread(engine: Engine[Any]) -> Iterator[None]:
    """The engine's thread; stopped and waited for at the end of the block."""
    thread = threading.Thread(target=_run_engine, args=(engine,), name="engine", daemon=True)
    thread.start()
    try:
        yield
    finally:
        engine.stop()
        thread.join()


def _run_engine(engine: Engine[Any]) -> None:
    # The engine has logged what it raises, and `healthy` tells those who wait.
    with contextlib.suppress(Exception):
        engine.run()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _log_progress() -> Progress:
    """Says how far it is every few seconds, for whoever reads the log."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            log.info("loading weights: %d of %d MB", done >> 20, total >> 20)

    return progress
