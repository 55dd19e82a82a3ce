"""`lorikeet adapters top`: what adapters do now, refreshed in place."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.options import AsJson, ConfigFile, Target, Timeout, connection
from cli.output import counted, human_bytes, print_json, print_line, print_table, reporting, to_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cli.client import Client
    from lorikeet.v1 import adapters_pb2 as pb

_HEADINGS = (
    "ADAPTER",
    "WHERE",
    "RUN",
    "WAIT",
    "REQUESTS",
    "TOK/S",
    "POOL HITS",
    "SLOT s",
    "LOAD s",
    "QUEUE s",
)


def top(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Adapters to show.")] = 20,
    seconds: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between refreshes.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: AsJson = False,
    target: Target = None,
    timeout: Timeout = None,
    config: ConfigFile = None,
) -> None:
    """Show the busiest adapters and what each tier holds, live.

    Refreshes in a terminal until interrupted; elsewhere, or with --once or --json, prints once.
    """
    with reporting(as_json=as_json):
        import sys

        from cli import client

        live = not (once or as_json) and sys.stdout.isatty()

        async def call(opened: "Client") -> None:
            if live:
                await _refresh(opened, limit, seconds)
                return
            response = await _read(opened, limit)
            if as_json:
                print_json(to_json(response))
                return
            print_table(_HEADINGS, rows(response, None, seconds))
            print_line()
            print_line("\n".join(tier_lines(response)))

        client.run(connection(target, timeout, config), call)


async def _read(opened: "Client", limit: int) -> "pb.GetAdapterStatisticsResponse":
    from lorikeet.v1 import adapters_pb2 as pb

    request = pb.GetAdapterStatisticsRequest(limit=limit)
    return await opened.adapters.GetAdapterStatistics(request, timeout=opened.connection.deadline)


async def _refresh(opened: "Client", limit: int, seconds: float) -> None:
    from rich.live import Live

    before, last = None, time.monotonic()
    with Live(screen=False, auto_refresh=False) as display:
        while True:
            response = await _read(opened, limit)
            now = time.monotonic()
            display.update(_picture(response, before, now - last), refresh=True)
            before, last = response, now
            await asyncio.sleep(seconds)


def _picture(
    response: "pb.GetAdapterStatisticsResponse",
    before: "pb.GetAdapterStatisticsResponse | None",
    seconds: float,
) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=number < 2)
    for row in rows(response, before, seconds):
        table.add_row(*(Text(cell) for cell in row))
    return Group(table, Text(), *(Text(line) for line in tier_lines(response)))


def rows(
    response: "pb.GetAdapterStatisticsResponse",
    before: "pb.GetAdapterStatisticsResponse | None",
    seconds: float,
) -> list[Sequence[str]]:
    """One row an adapter; tokens a second come from the difference to the response `seconds` earlier."""
    earlier = {usage.digest: usage.generated_tokens for usage in before.adapters} if before else {}
    return [
        (
            _label(usage),
            _where(usage),
            str(usage.running),
            str(usage.waiting),
            str(usage.requests),
            _rate(usage.generated_tokens - earlier.get(usage.digest, 0), seconds) if before else "",
            _share(usage.pool_hits, usage.requests) if usage.digest else "-",
            f"{usage.slot_wait_seconds:.2f}",
            f"{usage.load_wait_seconds:.2f}",
            f"{usage.queue_wait_seconds:.2f}",
        )
        for usage in response.adapters
    ]


def tier_lines(response: "pb.GetAdapterStatisticsResponse") -> list[str]:
    """One line a tier."""
    lines: list[str] = []
    for tier in response.tiers:
        room = f" of {human_bytes(tier.capacity_bytes)}" if tier.capacity_bytes else ""
        pinned = f", {human_bytes(tier.pinned_bytes)} pinned" if tier.pinned_bytes else ""
        held = f"{counted(tier.entries, 'adapter')}, {human_bytes(tier.bytes)}{room}{pinned}"
        lines.append(
            f"{tier.tier + ':':<8} {held}; "
            f"hits {_share(tier.hits, tier.hits + tier.misses)}, {counted(tier.loads, 'load')}, "
            f"{counted(tier.evictions, 'eviction')}"
        )
    return lines


def _label(usage: "pb.AdapterUsage") -> str:
    if not usage.digest:
        return "(base)"
    first = usage.names[0] if usage.names else f"b3:{usage.digest[:12]}"
    return f"{first} +{len(usage.names) - 1}" if len(usage.names) > 1 else first


def _where(usage: "pb.AdapterUsage") -> str:
    if not usage.digest:
        return ""
    return "pool" if usage.is_resident else "memory" if usage.is_warm else "disk"


def _rate(tokens: int, seconds: float) -> str:
    return f"{max(tokens, 0) / seconds:.0f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
