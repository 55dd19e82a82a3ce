"""`lorikeet adapters upload`: an adapter from this machine's disk to a server that cannot read it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.options import AsJson, ConfigFile, Expect, Pin, Target, Tenant, Timeout, connection
from cli.output import reporting

if TYPE_CHECKING:
    from cli.client import Client
    from lorikeet.v1 import adapters_pb2 as pb


def upload(
    name: Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="A PEFT folder on this machine.", show_default=False)],
    digest: Annotated[
        str, typer.Option(metavar="DIGEST", help="Refuse what arrives unless its content has this digest.")
    ] = "",
    expect: Expect = "",
    pin: Pin = None,
    tenant: Tenant = "",
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Send an adapter's tensors to the server and point a name at them.

    Like `load`, for weights that the server's store cannot read. The same content again changes nothing.

    [bold]Example[/bold]

        lorikeet adapters upload alice ./adapters/alice
    """
    with reporting(as_json=as_json):
        from cli import client, uploading
        from cli.loading import print_load

        requests = uploading.messages(
            name,
            uploading.folder_config(folder),
            uploading.folder_tensors(folder),
            digest=digest,
            expected_digest=expect,
            pinned=pin,
            tenant=tenant,
        )

        async def call(opened: "Client") -> "pb.LoadAdapterResponse":
            return await uploading.upload(opened.adapters, requests, deadline=opened.connection.deadline)

        print_load(client.run(connection(target, timeout, config), call), as_json=as_json)
