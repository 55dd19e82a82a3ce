"""`lorikeet frontend|executor|store`: one service in this process."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cli.commands.options import ConfigFile
from cli.errors import CliError, usage_error
from cli.flags import with_flags
from cli.output import reporting
from cli.serving.child_progress import print_progress

log = logging.getLogger(__name__)

# What `lorikeet serve` gives its children.
_Supervised = Annotated[
    bool, typer.Option("--supervised", hidden=True, help="Stop when stdin ends; tell progress on stdout.")
]


@dataclass(frozen=True, kw_only=True)
class _Service:
    """How one service is configured and run.

    Args:
        config_class: its settings.
        build: the settings from all sources.
        load: imports the service and returns its main function, which takes the settings, the event that
            asks for the end, and whether progress is to be told.
        help: for `--help`.
        gives_way: it lets the other processes of the machine go first.
    """

    config_class: type[Any]
    build: Callable[[Any], Any]
    load: Callable[[], Callable[[Any, asyncio.Event, bool], Coroutine[Any, Any, None]]]
    help: str
    gives_way: bool = False


def service_app(name: str) -> typer.Typer:
    """The command of one service, with a flag for each of its settings."""
    service = {"frontend": _frontend, "executor": _executor, "store": _store}[name]()

    def command(config: ConfigFile = None, supervised: _Supervised = False, **flags: Any) -> None:
        with reporting():
            from cli.serving.settings import Settings

            settings = service.build(Settings.load({name: flags}, config))
            _run(name, service, settings, supervised=supervised)

    command.__doc__ = service.help
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
    app.command(name)(with_flags(service.config_class, command))
    return app


def _frontend() -> _Service:
    from frontend.config import FrontendConfig

    def load() -> Any:
        from frontend.app import run

        return lambda config, stop, _: run(config, stop=stop)

    return _Service(
        config_class=FrontendConfig,
        build=lambda settings: settings.frontend_config(),
        load=load,
        help="""Run a frontend: text in, text out, for clients. Reads tokenizer and chat template, no weights.

        Any number of frontends may share one executor and one store.

        [bold]Example[/bold]

            lorikeet frontend --model-dir ./checkpoint --executor gpu1:50052
        """,
    )


def _executor() -> _Service:
    from executor.config import ExecutorConfig

    def load() -> Any:
        from executor.app import run

        return lambda config, stop, supervised: run(
            config, stop=stop, progress=print_progress() if supervised else None
        )

    return _Service(
        config_class=ExecutorConfig,
        build=lambda settings: settings.executor_config(),
        load=load,
        help="""Run an executor: the model, its KV cache, its scheduler and the resident adapters.

        Frontends wait for one that is away, and hand it their unfinished requests again.

        [bold]Example[/bold]

            lorikeet executor --model-dir ./checkpoint --store unix:/run/store
        """,
    )


def _store() -> _Service:
    from adapter_store.config import StoreConfig

    def load() -> Any:
        from rpc.tuning import share_no_products

        share_no_products()
        from adapter_store.app import run

        return lambda config, stop, _: run(config, stop=stop)

    return _Service(
        config_class=StoreConfig,
        build=lambda settings: settings.store_config(),
        load=load,
        help="""Run an adapter store: the catalog, and the adapters' weights on disk and in shared memory.

        One store serves all executors of a host, over the folder that both see as --arena-dir.

        [bold]Example[/bold]

            lorikeet store --data-dir ./data --roots ./adapters
        """,
        # Streams must not feel what loads cost.
        gives_way=True,
    )


def _run(name: str, service: _Service, config: Any, *, supervised: bool) -> None:
    from rpc.server import run_service

    if supervised:
        threading.Thread(target=_stop_at_end_of_stdin, daemon=True).start()

    def load() -> Callable[[asyncio.Event], Coroutine[Any, Any, None]]:
        main = service.load()
        return lambda stop: main(config, stop, supervised)

    try:
        run_service(load, process_name=name, gives_way=service.gives_way)
    except ModuleNotFoundError as error:
        raise CliError(
            f"`lorikeet {name}` needs the package {error.name}: install Lorikeet with its extra, as in "
            f"pip install '.[{name}]'",
            reason="NOT_INSTALLED",
        ) from error
    except ValueError as error:
        # Files or settings that cannot work: a supervisor need not try again.
        log.debug("the error in full", exc_info=True)
        raise usage_error(f"{name}: {error}") from error
    except (OSError, RuntimeError) as error:
        log.debug("the error in full", exc_info=True)
        raise CliError(f"{name}: {error}", reason="SERVICE_FAILED") from error


def _stop_at_end_of_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
