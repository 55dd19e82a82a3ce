"""`lorikeet auth`: tokens for a frontend's auth_file."""

from typing import Annotated

import typer

from cli.commands.options import AsJson
from cli.output import print_json, print_line, reporting

app = typer.Typer(help="Make tokens for a server's auth_file.", no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def auth() -> None:
    """Make tokens for a server's auth_file."""


@app.command()
def token(
    name: Annotated[str, typer.Option(metavar="NAME", help="Who will use it.")] = "someone",
    role: Annotated[str, typer.Option(metavar="generate|admin", help="What it may do.")] = "generate",
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="Bind it to this tenant.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print a new random token, and the entry for auth_file, which holds its hash only.

    [bold]Example[/bold]

        lorikeet auth token --name ci --role admin
    """
    with reporting(as_json=as_json):
        import json

        from cli.errors import usage_error
        from rpc.tokens import new_token, parse_tokens

        secret, digest = new_token()
        entry = {"name": name, "role": role, "token_sha256": digest}
        if tenant:
            entry["tenant"] = tenant
        try:
            parse_tokens(json.dumps([entry]))
        except ValueError as error:
            raise usage_error(str(error)) from error
        if as_json:
            print_json({"token": secret, "entry": entry})
            return
        print_line(f"token: {secret}")
        print_line(f"- {json.dumps(entry)}")
