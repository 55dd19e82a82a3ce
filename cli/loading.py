"""Loading an adapter while showing how far the store is."""

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from cli.client import Client
from cli.output import counted, human_bytes, print_error, print_json, print_line, to_json
from lorikeet.v1 import adapters_pb2 as pb

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_STAGES = {
    pb.LOAD_STAGE_COPY: "copying",
    pb.LOAD_STAGE_VALIDATE: "checking",
    pb.LOAD_STAGE_PACK: "packing",
    pb.LOAD_STAGE_PUBLISH: "publishing",
}


async def load_adapter(
    client: Client, request: pb.LoadAdapterRequest, progress: "Progress"
) -> pb.LoadAdapterResponse:
    """One LoadAdapter call, with a line in `progress` that follows its events. Raises grpc.RpcError."""
    name = request.name
    task = progress.add_task(f"{name}: waiting", total=None)
    watcher = None if progress.disable else asyncio.create_task(_follow(client, name, progress, task))
    try:
        response = await client.adapters.LoadAdapter(request, timeout=client.connection.deadline)
        progress.update(task, description=f"{name}: loaded", total=1, completed=1)
        return response
    finally:
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


async def _follow(client: Client, name: str, progress: "Progress", task: "TaskID") -> None:
    call = client.adapters.WatchAdapters(pb.WatchAdaptersRequest(name=name))
    try:
        # Only a display: that it cannot be had is no reason to fail the load.
        with contextlib.suppress(grpc.RpcError):
            async for event in call:
                if event.adapter.state == pb.ADAPTER_STATE_LOADING and event.HasField("progress"):
                    show_progress(event, progress, task)
    finally:
        call.cancel()


def show_progress(event: pb.AdapterEvent, progress: "Progress", task: "TaskID") -> None:
    """Moves one line of the display to what an event says."""
    stage = _STAGES.get(event.progress.stage, "loading")
    total = event.progress.bytes_total or None
    description = f"{event.adapter.name}: {stage}"
    progress.update(task, description=description, total=total, completed=event.progress.bytes_done)


def print_load(response: pb.LoadAdapterResponse, *, as_json: bool) -> None:
    """What was loaded: on one line for people, with notes beside it, or all of it."""
    if as_json:
        print_json(to_json(response))
        return
    adapter = response.adapter
    unchanged = "" if response.changed else " (unchanged)"
    modules = sum(max(1, module.experts) for module in adapter.report.modules)
    size = f"{human_bytes(adapter.pack_bytes)}, rank {adapter.max_rank}, {counted(modules, 'module')}"
    print_line(f"{adapter.name}: {size}, digest {adapter.digest[:12]}{unchanged}")
    for note in adapter.report.notes:
        print_error(f"note: {note}")


def local_source(source: str) -> str:
    """A folder that exists here becomes an absolute path, since the store runs elsewhere; others stay."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.is_dir() else source
