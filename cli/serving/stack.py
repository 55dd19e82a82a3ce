"""Bringing the three services up, keeping them up and taking them down."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
from rich.console import Console
from rich.progress import Progress

from adapter_store.config import StoreConfig
from adapter_store.sources.urls import SourceUrl, is_url, parse_url
from cli.client import Client, Connection, all_adapters, explain
from cli.errors import usage_error
from cli.flags import to_flags
from cli.loading import load_adapter
from cli.output import print_error, progress
from cli.serving.places import (
    PrivateFolder,
    arena_folder,
    default_data_dir,
    dial_address,
    reserve,
    runtime_folder,
)
from cli.serving.processes import ChildSpec, Supervisor
from cli.serving.settings import Settings
from executor.config import ExecutorConfig
from frontend.config import FrontendConfig
from lorikeet.v1 import adapters_pb2
from rpc.errors import LorikeetError, from_rpc

T = TypeVar("T")

_WAITING = {
    "store": "opening the catalog",
    "executor": "loading weights",
    "frontend": "connecting",
}

# How long the services may need to agree after each is healthy.
_SETTLE_SECONDS = 30.0
_RETRY_SECONDS = 0.2

# On top of the time that a service has for draining.
_STOP_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    Args:
        store, executor, frontend: the services' settings.
        adapters: name to source.
        log_level: of all three.
    """

    store: StoreConfig
    executor: ExecutorConfig
    frontend: FrontendConfig
    adapters: Mapping[str, str]
    log_level: str


@dataclass(frozen=True, kw_only=True)
class Running:
    """What is being served.

    Args:
        model: its name.
        target: where clients on this machine reach it.
        admin_target: where adapters are changed.
        adapters: all names.
        has_tls, has_tokens: what calls need.
    """

    model: str
    target: str
    admin_target: str
    adapters: tuple[str, ...]
    has_tls: bool = False
    has_tokens: bool = False


def make_plan(settings: Settings, *, runtime_dir: Path, arena_dir: Path, held: contextlib.ExitStack) -> Plan:
    """Fits the services' settings together; what was set for a service stays. Raises CliError.

    `held` keeps the ports that were picked until it is closed.
    """
    if settings.model is None:
        raise usage_error(
            "no model: give its folder with --model, LORIKEET_MODEL or `model:` in a settings file"
        )
    sources = {name: _read_source(name, source) for name, source in settings.adapters.items()}
    store = _allow(settings, sources.values()).store_config(
        listen=f"unix:{runtime_dir / 'store.sock'}",
        data_dir=settings.data_dir or default_data_dir(settings.model),
        arena_dir=arena_dir,
    )
    executor = settings.executor_config(
        listen=f"unix:{runtime_dir / 'executor.sock'}", store=store.listen, arena_dir=store.arena_dir
    )
    frontend = settings.frontend_config(
        listen=settings.listen,
        # For this command itself, whatever tokens or certificates the others need.
        local_listen=f"unix:{runtime_dir / 'frontend.sock'}",
        executor=executor.listen,
        store=store.listen,
    )
    return Plan(
        store=store,
        executor=executor,
        frontend=_reserve_ports(frontend, held),
        adapters={
            name: str(source) if isinstance(source, Path) else settings.adapters[name]
            for name, source in sources.items()
        },
        log_level=settings.log_level,
    )


def _read_source(name: str, source: str) -> Path | SourceUrl:
    """A folder that is there, or a URL. Raises CliError."""
    path = source.removeprefix("file://")
    if is_url(path):
        try:
            return parse_url(path)
        except LorikeetError as error:
            raise usage_error(f"adapter {name}: {error.message}") from error
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise usage_error(f"adapter {name}: there is no folder {folder}")
    return folder


def _allow(settings: Settings, sources: Collection[Path | SourceUrl]) -> Settings:
    """The same settings with these sources, and `adapter_roots`, among those that the store may read."""
    folders = [*settings.adapter_roots, *(source for source in sources if isinstance(source, Path))]
    urls = [source.public for source in sources if isinstance(source, SourceUrl)]
    given = settings.store.given()
    more = {
        "roots": (*given.get("roots", ()), *folders),
        "sources": (*given.get("sources", ()), *urls),
    }
    return settings.model_copy(update={"store": settings.store.model_copy(update=more)})


def _reserve_ports(frontend: FrontendConfig, held: contextlib.ExitStack) -> FrontendConfig:
    """The same with addresses that can be had, and no port 0. Raises CliError."""
    listen = reserve(frontend.listen, held)
    admin_listen = frontend.admin_listen
    if admin_listen:
        admin_listen = listen if admin_listen == frontend.listen else reserve(admin_listen, held)
    return replace(frontend, listen=listen, admin_listen=admin_listen)


def make_specs(plan: Plan) -> list[ChildSpec]:
    """The three processes, in the order of their start."""
    services: Mapping[str, Any] = {"store": plan.store, "executor": plan.executor, "frontend": plan.frontend}
    return [
        ChildSpec(
            name=name,
            # -P: a folder named like one of our packages, where the user happens to stand, is none of ours.
            command=[sys.executable, "-P", "-m", "cli", name, "--supervised", *to_flags(config)],
            environment={"LORIKEET_LOG_LEVEL": plan.log_level},
            address=getattr(config, "local_listen", "") or dial_address(config.listen),
            stop_seconds=config.drain_seconds + _STOP_MARGIN_SECONDS,
            # Each copes with peers that are away, and says so in its log: not at every start.
            after="executor" if name == "frontend" else "",
        )
        for name, config in services.items()
    ]


class Services:
    """Store, executor and frontend of one machine, with the folders and ports that they have for as long.

    Use: `start`, then work, and `stop` in a `finally`, also when `start` failed.
    """

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._held = contextlib.ExitStack()
        self._supervisor: Supervisor | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> Running:
        """Returns once all three are healthy and the adapters are loaded. Raises CliError."""
        plan = make_plan(self._settings, **self._make_folders(), held=self._held)
        listener = Screen(self._console)
        self._supervisor = Supervisor(make_specs(plan), listener)
        self._keeping = asyncio.create_task(self._supervisor.run())
        with progress(self._console) as display:
            for name in self._supervisor.children:
                task = display.add_task(f"{name}: {_WAITING[name]}", total=None)
                listener.follow(
                    name, lambda done, total, t=task: display.update(t, completed=done, total=total)
                )
                await self._unless_failed(self._supervisor.wait_ready(name))
                display.update(task, description=f"{name}: ready", total=1, completed=1)
            return await self._unless_failed(_load_adapters(plan, display))

    async def failed(self) -> None:
        """Waits until one service is given up, and raises the CliError that says why."""
        assert self._keeping is not None
        await self._keeping

    async def stop(self) -> None:
        """Frontend, executor, store; then the folders. Leaves nothing behind."""
        try:
            if self._supervisor is not None:
                await self._supervisor.stop()
            if self._keeping is not None:
                self._keeping.cancel()
                await asyncio.gather(self._keeping, return_exceptions=True)
        finally:
            self._held.close()

    def kill(self) -> None:
        """Ends all three without draining."""
        if self._supervisor is not None:
            self._supervisor.kill()

    def _make_folders(self) -> dict[str, Path]:
        store = self._settings.store
        runtime_dir = self._hold(runtime_folder())
        arena_dir = store.arena_dir or self._hold(arena_folder(store.arena_bytes or StoreConfig.arena_bytes))
        return {"runtime_dir": runtime_dir, "arena_dir": arena_dir}

    def _hold(self, folder: PrivateFolder) -> Path:
        self._held.callback(folder.remove)
        return folder.path

    async def _unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._keeping is not None
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._keeping}, return_when=asyncio.FIRST_COMPLETED)
            if self._keeping.done():
                self._keeping.result()
            return await task
        finally:
            task.cancel()


class Screen:
    """What the children say, on the console that the progress display uses too."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._followed: dict[str, Callable[[int, int], None]] = {}

    def follow(self, name: str, show: Callable[[int, int], None]) -> None:
        """From now on `show(done, total)` gets the progress of the child of this name."""
        self._followed[name] = show

    def notify(self, text: str) -> None:
        self._console.print(f"lorikeet: {text}", markup=False, highlight=False, soft_wrap=True)

    def line(self, name: str, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, name: str, done: int, total: int) -> None:
        if show := self._followed.get(name):
            show(done, total)


async def _load_adapters(plan: Plan, display: Progress) -> Running:
    local = plan.frontend.local_listen or dial_address(plan.frontend.listen)
    connection = Connection(target=local, timeout=0)
    client = Client(connection)
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        for name, source in plan.adapters.items():
            await load_until(client, name, source, display, deadline=deadline)
        names = tuple([adapter.name async for adapter in all_adapters(client)])
    except grpc.RpcError as error:
        raise explain(from_rpc(error), connection) from error
    finally:
        await client.close()
    return Running(
        model=plan.executor.served_name,
        target=dial_address(plan.frontend.listen),
        admin_target=dial_address(plan.frontend.admin_listen or plan.frontend.listen),
        adapters=names,
        has_tls=plan.frontend.tls is not None,
        has_tokens=plan.frontend.auth_file is not None,
    )


async def load_until(client: Client, name: str, source: str, display: Progress, *, deadline: float) -> None:
    """Loads one adapter; until the deadline (monotonic), again when services are not ready for each other.

    What was loaded before is served on where its source cannot be read now: a restart must not depend on it.

    Raises grpc.RpcError.
    """
    while True:
        try:
            request = adapters_pb2.LoadAdapterRequest(name=name, source=source)
            await load_adapter(client, request, display)
            return
        except grpc.RpcError as error:
            told = from_rpc(error)
            if told.reason == "SOURCE_UNAVAILABLE" and await _is_served(client, name):
                print_error(f"{name}: the version loaded before is served, for now: {told.message}")
                return
            settling = told.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
            if not settling or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


async def _is_served(client: Client, name: str) -> bool:
    try:
        await client.adapters.GetAdapter(adapters_pb2.GetAdapterRequest(name=name))
    except grpc.RpcError:
        return False
    return True
