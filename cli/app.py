"""The `lorikeet` command and what it is made of. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands import adapters, auth, bench, models
from cli.commands.adapter_upload import upload
from cli.commands.chat import chat
from cli.commands.generate import generate
from cli.commands.options import remember
from cli.commands.serve import serve

SERVING = "Serve"
USING = "Use a server"

app = typer.Typer(
    name="lorikeet",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("lorikeet"))
        raise typer.Exit


_CALLS = "Calling a server that asks for more"


@app.callback()
def lorikeet(
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", help="Shown with each call; better in LORIKEET_TOKEN.", rich_help_panel=_CALLS
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Speak TLS; trust these authorities.", rich_help_panel=_CALLS),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This client's certificate.", rich_help_panel=_CALLS)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its private key.", rich_help_panel=_CALLS)
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve one base model with many LoRA adapters over gRPC, and talk to such a server.

    [bold]Start[/bold]

        lorikeet serve --model ./checkpoint --adapter alice=./adapters/alice

        lorikeet generate "Hello" --adapter alice

    Settings come from flags, then LORIKEET_... variables, then a YAML file (--config), then defaults.

    Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted.
    """
    remember(token=token, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)


app.command(rich_help_panel=SERVING)(serve)

# A service's flags are read off its config class, whose import takes time: only the command itself does that.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("frontend", rich_help_panel=SERVING, context_settings=_PASS_ON)
def frontend(context: typer.Context) -> None:
    """Run a frontend alone: text in, text out, for clients."""
    _service("frontend", context.args)


@app.command("executor", rich_help_panel=SERVING, context_settings=_PASS_ON)
def executor(context: typer.Context) -> None:
    """Run an executor alone: the model, its KV cache and its scheduler."""
    _service("executor", context.args)


@app.command("store", rich_help_panel=SERVING, context_settings=_PASS_ON)
def store(context: typer.Context) -> None:
    """Run an adapter store alone: the catalog and its adapters' weights."""
    _service("store", context.args)


def _service(name: str, arguments: list[str]) -> None:
    from cli.commands.services import service_app

    service_app(name)(args=arguments, prog_name=f"lorikeet {name}")


app.command(rich_help_panel=USING)(generate)
app.command(rich_help_panel=USING)(chat)
adapters.app.command("upload")(upload)
app.add_typer(adapters.app, name="adapters", rich_help_panel=USING)
app.add_typer(models.app, name="models", rich_help_panel=USING)
app.add_typer(bench.app, name="bench", rich_help_panel=USING)
app.add_typer(auth.app, name="auth", rich_help_panel=SERVING)
