"""Puts a frontend together and runs it."""

import asyncio
import logging
import signal
import uuid
from collections.abc import Callable

import grpc

from frontend.adapters.adapter_templates import AdapterTemplates
from frontend.adapters.admin import AdapterAdmin
from frontend.adapters.catalog import Catalog
from frontend.adapters.catalog_follower import CatalogFollower
from frontend.adapters.resolving import Resolver
from frontend.adapters.rights import AdapterRights
from frontend.adapters.statistics import AdapterStatistics
from frontend.config import FrontendConfig
from frontend.engine.executor_client import ExecutorClient
from frontend.engine.flights import FlightTable
from frontend.metrics import FrontendMetrics
from frontend.model_folder import ModelFolder, read_model_folder
from frontend.ports import Ports
from frontend.requests.generation import Generation
from frontend.requests.prompts import PromptReader
from frontend.requests.tokenization import Tokenization
from frontend.requests.wakeups import Wakeups
from frontend.service import AdapterServicer, GenerationServicer
from frontend.text.template_process import TemplateProcesses
from frontend.text.workers import TextWorkers
from frontend.usage import UsageTable
from lorikeet.v1 import executor_pb2_grpc, store_pb2_grpc
from rpc.auth_file import AuthFile
from rpc.channel import open_channel
from rpc.metrics import MetricsServer
from rpc.tuning import tune_process

log = logging.getLogger(__name__)


class Frontend:
    """One frontend in this process: `start`, then `stop`.

    Raises ValueError for a broken model folder or file of tokens.
    """

    def __init__(self, config: FrontendConfig) -> None:
        self._config = config
        model = read_model_folder(config.model_dir, max_prompt_bytes=config.max_prompt_bytes)
        self.flights = FlightTable(max_flights=config.max_requests)
        self.catalog = Catalog(has_store=bool(config.store))
        self._workers = TextWorkers()
        self._tokenization = Tokenization(model, max_prompt_bytes=config.max_prompt_bytes)
        self._templates = TemplateProcesses(
            special_tokens=model.special_tokens, max_bytes=config.max_prompt_bytes
        )
        self._channels: list[grpc.aio.Channel] = []
        self._changed = asyncio.Event()
        self._executor_available = False
        executor = self._open_channel(config.executor)
        self._executor = self._executor_client(executor, model)
        store = self._open_channel(config.store) if config.store else None
        stub = self._catalog_stub = store_pb2_grpc.CatalogServiceStub(store) if store else None
        self._follower = (
            CatalogFollower(stub=stub, catalog=self.catalog, on_snapshot=self._on_snapshot) if stub else None
        )
        self._resolver = Resolver(catalog=self.catalog, stub=stub)
        self._auth = AuthFile(config.auth_file) if config.auth_file is not None else None
        self._ports = Ports(config, auth=self._auth)
        self._admin = AdapterAdmin(stub=stub, catalog=self.catalog, hint=self._executor.hint)
        self._usage = UsageTable()
        self._statistics = AdapterStatistics(
            executor=executor_pb2_grpc.ExecutorServiceStub(executor),
            packs=store_pb2_grpc.PackServiceStub(store) if store else None,
            catalog=self.catalog,
            usage=self._usage,
        )
        self._metrics = MetricsServer(
            FrontendMetrics(usage=self._usage, catalog=self.catalog, queues=self.statistics).gather
        )
        self._add_services(model)
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()

    def _open_channel(self, target: str) -> grpc.aio.Channel:
        channel = open_channel(target)
        self._channels.append(channel)
        return channel

    def _executor_client(self, channel: grpc.aio.Channel, model: ModelFolder) -> ExecutorClient:
        return ExecutorClient(
            stub=executor_pb2_grpc.ExecutorServiceStub(channel),
            incarnation=uuid.uuid4().hex,
            model=model,
            flights=self.flights,
            patience_seconds=self._config.patience_seconds,
            on_availability=self._on_availability,
        )

    def _add_services(self, model: ModelFolder) -> None:
        prompts = PromptReader(
            codec=model.codec,
            workers=self._workers,
            max_prompt_bytes=self._config.max_prompt_bytes,
        )
        generation = Generation(
            model=model,
            prompts=prompts,
            templates=AdapterTemplates(
                base=model.template,
                processes=self._templates,
                catalog=self.catalog,
                stub=self._catalog_stub,
            ),
            executor=self._executor,
            catalog=self.catalog,
            resolver=self._resolver,
            usage=self._usage,
            wakeups=Wakeups(asyncio.get_running_loop()),
        )
        self._ports.add(
            GenerationServicer(generation, self._tokenization),
            AdapterServicer(self._admin, self._statistics, AdapterRights(self.catalog)),
        )

    async def start(self) -> str:
        """Listens, and returns the bound address; healthy once executor and store are met. Raises OSError."""
        address = await self._ports.start()
        if self._config.metrics_listen:
            await self._metrics.start(self._config.metrics_listen)
        self._tasks = [asyncio.create_task(self._executor.run()), asyncio.create_task(self._follow_health())]
        if self._follower is not None:
            self._tasks.append(asyncio.create_task(self._follower.run()))
        if self._auth is not None:
            self._tasks.append(asyncio.create_task(self._auth.follow()))
        log.info("listening on %s, for admin calls on %s", address, self._ports.admin_address)
        return address

    @property
    def admin_address(self) -> str:
        """Where AdapterService is; known once it has started."""
        return self._ports.admin_address

    def reload_tokens(self) -> bool:
        """Reads the file of tokens again, if there is one; False when it cannot be used."""
        return self._auth is None or self._auth.refresh()

    def statistics(self) -> dict[str, int]:
        """What is queued and known at this moment."""
        held = (self.flights, self._workers, self._tokenization, self._templates, self.catalog)
        return {what: count for each in held for what, count in each.statistics().items()}

    async def ready(self) -> None:
        """Returns once the frontend is healthy for the first time."""
        await self._ready.wait()

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set. Raises what broke a part of the frontend."""
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopped, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Health NOT_SERVING, no new calls, those in flight get the drain time; then everything is closed."""
        self._admin.end_watches()
        await self._ports.drain(self._config.drain_seconds)
        await self._metrics.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._workers.close()
        self._tokenization.close()
        await self._templates.close()
        for channel in self._channels:
            await channel.close()

    def _on_snapshot(self) -> None:
        self._resolver.store_changed()
        self._changed.set()

    def _on_availability(self, available: bool) -> None:
        self._executor_available = available
        self._changed.set()

    async def _follow_health(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            serving = self._executor_available and self.catalog.known
            await self._ports.set_serving(serving)
            if serving:
                self._ready.set()


async def run(
    config: FrontendConfig,
    *,
    stop: asyncio.Event | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves until `stop` is set (for ever without one), then drains.

    Args:
        config: what to serve.
        stop: set from outside to end the service.
        ready: called with the bound address once executor and store have been met and requests are served.

    Raises ValueError for a broken model folder, OSError for an address that cannot be bound.
    """
    frontend = Frontend(config)
    announcing: asyncio.Task[None] | None = None
    try:
        address = await frontend.start()
        tune_process()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, frontend.reload_tokens)
        announcing = asyncio.create_task(_announce(frontend, address, ready))
        await frontend.serve_until(stop or asyncio.Event())
    finally:
        if announcing is not None:
            announcing.cancel()
        await frontend.stop()


async def _announce(frontend: Frontend, address: str, ready: Callable[[str], None] | None) -> None:
    await frontend.ready()
    log.info("ready on %s", address)
    if ready is not None:
        ready(address)
