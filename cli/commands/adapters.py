"""`lorikeet adapters`: which adapters a server serves under which names."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import top
from cli.commands.options import AsJson, ConfigFile, Expect, Pin, Target, Tenant, Timeout, connection
from cli.output import (
    human_bytes,
    print_fields,
    print_json,
    print_line,
    print_table,
    progress,
    reporting,
    to_json,
)

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from cli.client import Client
    from lorikeet.v1 import adapters_pb2 as pb

app = typer.Typer(
    help="Load, unload, list and watch adapters.", no_args_is_help=True, rich_markup_mode="rich"
)

Name = Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)]


@app.callback()
def adapters() -> None:
    """Load, unload, list and watch the LoRA adapters of a running server.

    A name points to one version of an adapter; loading other content under it moves it in one step.
    """


@app.command()
def load(
    name: Name,
    source: Annotated[
        str, typer.Argument(help="A PEFT folder, under one of the store's roots.", show_default=False)
    ],
    expect: Expect = "",
    pin: Pin = None,
    tenant: Tenant = "",
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Load an adapter and point a name at it.

    Returns once it is stored durably and every frontend serves it.
    Loading the same content again changes nothing.

    [bold]Example[/bold]

        lorikeet adapters load alice ./adapters/alice
    """
    with reporting(as_json=as_json):
        from cli import client
        from cli.loading import load_adapter, local_source, print_load
        from lorikeet.v1 import adapters_pb2 as pb

        async def call(opened: "Client") -> "pb.LoadAdapterResponse":
            with progress() as display:
                request = pb.LoadAdapterRequest(
                    name=name,
                    source=local_source(source),
                    expected_digest=expect,
                    pinned=pin,
                    tenant=tenant,
                )
                return await load_adapter(opened, request, display)

        print_load(client.run(connection(target, timeout, config), call), as_json=as_json)


@app.command()
def unload(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Abort requests in flight.")] = False,
    expect: Expect = "",
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Remove a name and its earlier versions. Requests in flight finish; new ones are refused."""
    with reporting(as_json=as_json):
        from cli import client
        from lorikeet.v1 import adapters_pb2 as pb

        async def call(opened: "Client") -> "pb.UnloadAdapterResponse":
            request = pb.UnloadAdapterRequest(name=name, force=force, expected_digest=expect)
            return await opened.adapters.UnloadAdapter(request, timeout=opened.connection.deadline)

        response = client.run(connection(target, timeout, config), call)
        if as_json:
            print_json(to_json(response))
        else:
            print_line(f"{name}: unloaded")


app.command()(top.top)


@app.command()
def rollback(
    name: Name,
    to: Annotated[
        str, typer.Option("--to", metavar="DIGEST", help="One of the earlier versions; else the latest.")
    ] = "",
    expect: Expect = "",
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Point a name back at a version that it pointed to before; `show` lists them.

    The version left is kept in turn: rolling back again returns to it.
    """
    with reporting(as_json=as_json):
        from cli import client
        from lorikeet.v1 import adapters_pb2 as pb

        async def call(opened: "Client") -> "pb.RollbackAdapterResponse":
            request = pb.RollbackAdapterRequest(name=name, digest=to, expected_digest=expect)
            return await opened.adapters.RollbackAdapter(request, timeout=opened.connection.deadline)

        response = client.run(connection(target, timeout, config), call)
        if as_json:
            print_json(to_json(response))
        else:
            print_line(f"{name}: digest {response.adapter.digest[:12]}")


@app.command("list")
def list_adapters(
    as_json: AsJson = False, target: Target = None, timeout: Timeout = None, config: ConfigFile = None
) -> None:
    """List all adapters by name: tab-separated, or aligned in a terminal."""
    with reporting(as_json=as_json):
        from cli import client

        async def call(opened: "Client") -> "list[pb.Adapter]":
            return [adapter async for adapter in client.all_adapters(opened)]

        listed = client.run(connection(target, timeout, config), call)
        if as_json:
            for adapter in listed:
                print_json(to_json(adapter))
            return
        headings = ("NAME", "STATE", "TIER", "RANK", "SIZE", "DIGEST")
        print_table(headings, [_row(adapter) for adapter in listed], is_list=True)


@app.command()
def show(
    name: Name,
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Show one adapter, with what its load found: each module, its rank and its scaling."""
    with reporting(as_json=as_json):
        from cli import client
        from lorikeet.v1 import adapters_pb2 as pb

        async def call(opened: "Client") -> "pb.Adapter":
            request = pb.GetAdapterRequest(name=name)
            return await opened.adapters.GetAdapter(request, timeout=opened.connection.deadline)

        adapter = client.run(connection(target, timeout, config), call)
        if as_json:
            print_json(to_json(adapter))
            return
        print_fields(
            {
                "name": adapter.name,
                "digest": adapter.digest,
                "state": state_name(adapter),
                "tier": tier_name(adapter),
                "source": adapter.source,
                "size": human_bytes(adapter.pack_bytes),
                "rank": str(adapter.max_rank),
                "loaded": _time(adapter.load_time) if adapter.HasField("load_time") else "",
                "revision": str(adapter.revision),
                "pinned": "yes" if adapter.pinned else "no",
                "tenant": adapter.tenant or "none",
                "template": "its own" if adapter.has_chat_template else "the base's",
            }
        )
        if adapter.previous:
            print_line()
            rows = [(v.digest, _time(v.load_time), v.source) for v in adapter.previous]
            print_table(("EARLIER VERSION", "LOADED", "SOURCE"), rows)
        print_line()
        modules = [_module_row(module) for module in adapter.report.modules]
        print_table(("MODULE", "RANK", "SCALING", "DELTA NORM", "PARTS"), modules)
        for note in adapter.report.notes:
            print_line(f"note: {note}")


@app.command()
def watch(
    name: Annotated[str, typer.Argument(help="Only this name; none for all.", show_default=False)] = "",
    as_json: AsJson = False,
    target: Target = None,
    config: ConfigFile = None,
) -> None:
    """Print every state there is, then each change as it happens, until interrupted."""
    with reporting(as_json=as_json):
        from cli import client
        from lorikeet.v1 import adapters_pb2 as pb

        async def call(opened: "Client") -> None:
            async for event in opened.adapters.WatchAdapters(pb.WatchAdaptersRequest(name=name)):
                if as_json:
                    print_json(to_json(event))
                else:
                    print_line(_event_line(event))

        client.run(connection(target, 0, config), call, is_for_reader=True)


@app.command()
def prefetch(
    name: Annotated[str, typer.Argument(help="A name, or b3:DIGEST.", show_default=False)],
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Bring an adapter's weights into memory ahead of use; a hint, returns at once."""
    with reporting(as_json=as_json):
        from cli import client
        from lorikeet.v1 import adapters_pb2 as pb

        async def call(opened: "Client") -> "pb.PrefetchAdapterResponse":
            request = pb.PrefetchAdapterRequest(adapter=name)
            return await opened.adapters.PrefetchAdapter(request, timeout=opened.connection.deadline)

        response = client.run(connection(target, timeout, config), call)
        if as_json:
            print_json(to_json(response))


def state_name(adapter: "pb.Adapter") -> str:
    from lorikeet.v1 import adapters_pb2 as pb

    return pb.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_").lower()


def tier_name(adapter: "pb.Adapter") -> str:
    from lorikeet.v1 import adapters_pb2 as pb

    return pb.AdapterTier.Name(adapter.tier).removeprefix("ADAPTER_TIER_").lower()


def _time(stamp: "Timestamp") -> str:
    return stamp.ToDatetime().isoformat(timespec="seconds") + "Z"


def _module_row(module: "pb.ModuleReport") -> tuple[str, ...]:
    from lorikeet.v1 import adapters_pb2 as pb

    norm = "" if math.isnan(module.delta_norm) else f"{module.delta_norm:.4g}"
    if module.experts:
        norm = f"{module.least_delta_norm:.4g} to {norm}"
    parts = ",".join(pb.AdaptedPart.Name(part).removeprefix("ADAPTED_PART_").lower() for part in module.parts)
    whose = f" of {module.experts} experts" if module.experts else ""
    return module.module, str(module.rank), f"{module.scaling:g}", norm, parts + whose


def _row(adapter: "pb.Adapter") -> tuple[str, ...]:
    size = human_bytes(adapter.pack_bytes)
    return (
        adapter.name,
        state_name(adapter),
        tier_name(adapter),
        str(adapter.max_rank),
        size,
        adapter.digest[:12],
    )


def _event_line(event: "pb.AdapterEvent") -> str:
    from lorikeet.v1 import adapters_pb2 as pb

    adapter = event.adapter
    parts = [adapter.name, state_name(adapter)]
    if event.HasField("progress"):
        stage = pb.LoadStage.Name(event.progress.stage).removeprefix("LOAD_STAGE_").lower()
        parts.append(f"{stage} {event.progress.bytes_done}/{event.progress.bytes_total}")
    if adapter.digest:
        parts.append(adapter.digest[:12])
    if event.error:
        parts.append(event.error)
    return "\t".join(parts)
