"""Options that several commands share, and what they resolve to."""

from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cli.client import Connection

PANEL = "Connection and output"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="LORIKEET_CONFIG",
        metavar="FILE",
        help="Settings from a YAML file; flags and LORIKEET_... variables go before it.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="The server to call: host:port or unix:/path. [dim]\\[default: 127.0.0.1:50051][/dim]",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Give a call up after so long; 0 waits for ever. [dim]\\[default: 600][/dim]",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, one object a line, errors too.", rich_help_panel=PANEL),
]

# Of what moves a name.
Expect = Annotated[
    str,
    typer.Option(
        "--expect", metavar="DIGEST", help="Only if the name points to this digest; none: to nothing."
    ),
]
Pin = Annotated[
    bool | None,
    typer.Option("--pin/--no-pin", help="Keep it in the store's memory.", show_default=False),
]
Tenant = Annotated[
    str, typer.Option(metavar="TENANT", help="Whose it is, and whose quota it counts against.")
]


# What gRPC can call besides host:port and unix:/path.
_OTHER_TARGETS = ("dns:", "ipv4:", "ipv6:", "unix-abstract:", "vsock:", "xds:")

# Flags that stand before the command's name: what is shown to the server, and whom to trust.
_before_command: ContextVar[dict[str, Any]] = ContextVar("before_command", default={})  # noqa: B039 - not changed


def remember(**flags: Any) -> None:
    """Keeps the flags that stand before the command's name for `connection`; None for one not given."""
    _before_command.set(flags)


def connection(target: str | None, timeout: float | None, config: Path | None) -> "Connection":
    """Where to call, from flags, environment and file. Raises CliError."""
    from cli.client import Connection
    from cli.errors import usage_error
    from cli.serving.settings import Settings
    from rpc.addresses import check_address

    settings = Settings.load({"target": target, "timeout": timeout, **_before_command.get()}, config)
    if not settings.target.startswith(_OTHER_TARGETS):
        try:
            check_address("target", settings.target)
        except ValueError as error:
            raise usage_error(str(error)) from error
    if not (settings.token.isascii() and settings.token.isprintable()):
        raise usage_error("token holds more than printable ASCII, which no token of a server does")
    return Connection(
        target=settings.target,
        timeout=settings.timeout,
        token=settings.token,
        tls_ca=settings.tls_ca,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
    )
