"""The life cycle of a service: start, serve, drain, stop."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from rpc.addresses import binding_error, try_binding
from rpc.channel import SERVER_OPTIONS
from rpc.health import Health
from rpc.interceptor import ErrorInterceptor
from rpc.reflection import SERVICE as REFLECTION
from rpc.reflection import Reflection
from rpc.tuning import give_way, give_way_as_session

log = logging.getLogger(__name__)

# Of a service that gives way.
_NICENESS = 5


class Server:
    """A gRPC server with health checking, reflection and our error mapping.

    Use: `add` each servicer, `start`, `set_serving(True)` when ready, and `drain` at the end.
    """

    def __init__(
        self,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Sequence[tuple[str, Any]] = (),
        maximum_concurrent_rpcs: int | None = None,
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor(), *interceptors],
            options=[*SERVER_OPTIONS, *options],
            maximum_concurrent_rpcs=maximum_concurrent_rpcs,
        )
        self._health = Health()
        self._reflection: Reflection | None = None
        self._by_name: Any = _ByName(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._by_name)
        self._names: list[str] = []

    def add(self, name: str, register: Callable[[Any, Any], None], servicer: Any) -> None:
        """Adds a servicer under its full service name, with its generated `add_..._to_server`."""
        register(servicer, self._by_name)
        self._names.append(name)

    async def start(self, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
        """Binds `host:port` (port 0: any) or `unix:/path` and serves; health is NOT_SERVING until told.

        In plaintext without credentials.

        Returns the address that was bound. Raises OSError when it cannot be bound now, ValueError when it
        never can be.
        """
        if address.startswith("unix:"):
            try:
                _remove_stale_socket(Path(address.removeprefix("unix:")))
            except OSError as error:
                raise binding_error(f"cannot listen on {address}", error) from error
        self._reflection = Reflection([*self._names, health.SERVICE_NAME, REFLECTION])
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self._reflection, self._by_name)
        await self.set_serving(False)
        try:
            port = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise _not_bound(address) from error
        await self._server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def set_serving(self, serving: bool) -> None:
        """Tells health checks of the whole server and of each service."""
        for name in ("", *self._names):
            self._health.set(name, serving)

    async def drain(self, grace_seconds: float) -> None:
        """Health NOT_SERVING, no new calls, calls in flight get `grace_seconds`, then they are cancelled."""
        self._health.end()
        if self._reflection is not None:
            self._reflection.end()
        await self._server.stop(grace_seconds)


class _ByName:
    """A server that finds all handlers by name.

    Of methods that are registered one by one, grpc.aio watches each one anew for every call that comes.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Generated code adds them as generic ones, too."""


def _not_bound(address: str) -> OSError | ValueError:
    """gRPC does not say why it could not bind: whoever tries it again is told."""
    what = f"cannot listen on {address}"
    try:
        try_binding(address)
    except OSError as error:
        return binding_error(what, error)
    return OSError(f"{what}: the reason has passed, or gRPC does not take the certificate")


def _remove_stale_socket(path: Path) -> None:
    # A service that was killed leaves its socket file behind, and binding to it would fail for ever after.
    if path.is_socket():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)


def check_platform() -> None:
    """Raises RuntimeError on a platform that Lorikeet is not made for."""
    if sys.platform not in ("linux", "darwin"):
        raise RuntimeError(f"Lorikeet runs on Linux and macOS, not on {sys.platform}; on Windows use WSL 2")


def run_service(
    load: Callable[[], Callable[[asyncio.Event], Coroutine[Any, Any, None]]],
    *,
    process_name: str,
    gives_way: bool = False,
) -> None:
    """Runs a service's main coroutine on uvloop until it returns.

    `load` imports what the service is made of, which takes seconds, and returns its main function. That gets
    an event that SIGTERM and SIGINT set; it drains and returns. A second signal ends the process.
    With `gives_way` the process lets others of the machine go first.
    """
    import uvloop

    check_platform()
    configure_logging(process_name)
    if gives_way:
        give_way(_NICENESS)
        give_way_as_session(_NICENESS)
    main = load()

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(130)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await main(stop)

    uvloop.run(body())


def configure_logging(process_name: str) -> None:
    """One line per record on stderr; the level comes from LORIKEET_LOG_LEVEL (default INFO)."""
    logging.basicConfig(
        level=os.environ.get("LORIKEET_LOG_LEVEL", "INFO").upper(),
        format=f"%(asctime)s %(levelname)s {process_name} %(name)s: %(message)s",
        stream=sys.stderr,
    )
