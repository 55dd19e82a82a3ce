"""`lorikeet serve`: store, executor and frontend as three processes, kept running and stopped together."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.options import AsJson, ConfigFile
from cli.errors import usage_error
from cli.output import counted, print_json, print_line, reporting
from cli.serving.places import DEFAULT_TARGET
from cli.standard_streams import Unfailing

if TYPE_CHECKING:
    from cli.serving.settings import Settings
    from cli.serving.stack import Running

SETTINGS = "More settings"

# As many adapters are named at the start; `lorikeet adapters list` has them all.
_NAMES = 8


def serve(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="DIR", help="Folder of the base model.", show_default=False),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            metavar="NAME=SOURCE",
            help="Load this PEFT folder, or URL (s3://, gs://, az://, https://, hf://), under this name; "
            "repeatable.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where clients connect; port 0 picks a free one. [dim]\\[default: 127.0.0.1:50051][/dim]",
            show_default=False,
        ),
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Let clients load adapters from under this folder; repeatable."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where adapters are kept between runs. [dim]\\[default: a folder of yours per model][/dim]",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.FIELD=VALUE",
            help="Any setting of a service, such as executor.max_running=128; repeatable. "
            "`lorikeet executor --help` and the like list them.",
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="Of the services: DEBUG, INFO, WARNING or ERROR. [dim]\\[default: WARNING][/dim]",
            rich_help_panel=SETTINGS,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Serve a model and its adapters: starts store, executor and frontend, and stops them on Ctrl-C.

    A service that dies is started again. The exit code is 0 after a clean stop.

    [bold]Examples[/bold]

        lorikeet serve --model ./checkpoint --adapter alice=./adapters/alice

        lorikeet serve --config lorikeet.yaml --set executor.max_running=128
    """
    with reporting(as_json=as_json):
        from cli.serving.settings import Settings

        flags: dict[str, Any] = {
            "model": model,
            "adapters": _pairs("--adapter", adapter, "NAME=SOURCE") or None,
            "listen": listen,
            "adapter_roots": adapter_root or None,
            "data_dir": data_dir,
            "log_level": log_level.upper() if log_level else None,
        }
        for name, value in _pairs("--set", set_, "SECTION.FIELD=VALUE").items():
            section, _, field = name.partition(".")
            if section not in ("frontend", "executor", "store") or not field:
                raise usage_error(
                    f"--set {name}=...: write SECTION.FIELD=VALUE, as in executor.max_running=128"
                )
            flags.setdefault(section, {})[field] = value
        asyncio.run(_serve(Settings.load(flags, config), as_json=as_json))


def _pairs(flag: str, texts: list[str] | None, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise usage_error(f"{flag} {text}: write {form}")
        if name in pairs:
            raise usage_error(f"{flag} {text}: {name} was given before")
        pairs[name] = value
    return pairs


async def _serve(settings: "Settings", *, as_json: bool) -> None:
    """Until SIGINT, SIGTERM or SIGHUP, which drain; a second one does not wait. Raises CliError."""
    from rich.console import Console

    from cli.serving.stack import Services

    # Should it fail, nobody would read on what services write, and they would stand still.
    stderr: Any = Unfailing(sys.stderr)
    console = Console(file=stderr)
    services = Services(settings, console)
    task = asyncio.current_task()
    assert task is not None
    stopping = False

    def on_signal() -> None:
        nonlocal stopping
        if stopping:
            services.kill()
        else:
            stopping = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A shell's nohup has it go on when the terminal is closed.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal)
    try:
        _announce(await services.start(), as_json=as_json)
        await services.failed()
    except asyncio.CancelledError:
        if not stopping:
            raise
        task.uncancel()
        console.print("stopping; once more does not wait for running requests", highlight=False)
    finally:
        stopping = True
        await services.stop()


def _announce(running: "Running", *, as_json: bool) -> None:
    if as_json:
        names = list(running.adapters)
        targets = {"target": running.target, "admin_target": running.admin_target}
        print_json({"model": running.model, **targets, "adapters": names})
        return
    names = ", ".join(running.adapters[:_NAMES]) + (", ..." if len(running.adapters) > _NAMES else "")
    adapters = f"{counted(len(running.adapters), 'adapter')} ({names})" if names else "no adapters yet"
    print_line(f"serving {running.model} with {adapters} on {running.target}")
    if running.admin_target != running.target:
        print_line(f"adapters are loaded and listed on {running.admin_target}")
    access = " --tls-ca FILE" * running.has_tls + " --token TOKEN" * running.has_tokens
    target = "" if running.target == DEFAULT_TARGET else f" --target {running.target}"
    adapter = f" --adapter {running.adapters[0]}" if running.adapters else ""
    print_line(f'try: lorikeet{access} generate "Hello" --max-tokens 32{adapter}{target}')
