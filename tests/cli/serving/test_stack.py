"""What `lorikeet serve` makes of its settings, before anything starts."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console

import cli.serving.places
from cli.client import Client, Connection
from cli.errors import CliError
from cli.output import progress
from cli.serving.processes import Child, ChildSpec
from cli.serving.settings import Settings
from cli.serving.stack import Plan, Screen, Services, load_until, make_plan
from cli.standard_streams import Unfailing
from tests.support.cli_fake_server import fake_server
from tests.support.cli_serving import MODEL
from tests.support.waiting import WAIT_SECONDS


def plan_of(folder: Path, **flags: object) -> Plan:
    settings = Settings.load({"model": MODEL, "listen": "127.0.0.1:0", **flags})
    with contextlib.ExitStack() as held:
        return make_plan(settings, runtime_dir=folder, arena_dir=folder, held=held)


def test_adapters_may_be_urls_and_nothing_else_is_allowed_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    adapters = {
        "bucket": "s3://adapters/alice/",
        "web": "https://host/bob?key=secret",
        "file": f"file://{folder}",
        "folder": str(folder),
    }
    plan = plan_of(tmp_path, adapters=adapters, store={"sources": "hf://org/"})
    assert plan.store.sources == ("hf://org/", "s3://adapters/alice", "https://host/bob")
    assert plan.store.roots == (folder, folder)
    assert plan.adapters == {**adapters, "file": str(folder)}


def test_adapter_roots_are_added_to_those_of_the_store(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    plan = plan_of(
        tmp_path,
        adapter_roots=[tmp_path / "one"],
        store={"roots": str(tmp_path / "two"), "watch_folder": str(tmp_path / "one")},
    )
    assert set(plan.store.roots) == {tmp_path / "one", tmp_path / "two"}


@pytest.mark.parametrize("source", ["ftp://host/x", "s3://bucket/../x", "https://user:pass@host/x"])
def test_urls_that_cannot_be_are_said(tmp_path: Path, source: str) -> None:
    with pytest.raises(CliError, match="adapter alice: ") as caught:
        plan_of(tmp_path, adapters={"alice": source})
    assert "pass" not in str(caught.value).replace("password", "")


def test_an_admin_address_gets_its_port_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, frontend={"admin_listen": "127.0.0.1:0"})
    # The same as listen, as compose.yaml has it: one address.
    assert plan.frontend.admin_listen == plan.frontend.listen
    apart = plan_of(tmp_path, frontend={"admin_listen": "localhost:0"}).frontend
    assert apart.admin_listen != apart.listen
    assert not apart.admin_listen.endswith(":0")


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="this platform has no /dev/shm")
async def test_an_arena_elsewhere_needs_no_room_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.serving.places, "_SHORT", tmp_path)

    def services(**store: object) -> Services:
        return Services(Settings.load({"store": {"arena_bytes": "16TiB", **store}}), Console())

    elsewhere, refused = services(arena_dir=str(tmp_path / "arena")), services()
    assert elsewhere._make_folders()["arena_dir"] == tmp_path / "arena"
    with pytest.raises(CliError, match=r"store\.arena_dir"):
        refused._make_folders()
    for each in (elsewhere, refused):
        await each.stop()
    assert os.listdir(tmp_path) == []


async def test_what_was_loaded_before_is_served_while_its_source_is_away(capsys) -> None:
    with fake_server() as server:
        client = Client(Connection(target=server.target, timeout=0))
        try:
            with progress() as display:
                await load_until(client, "a", "x", display, deadline=0.0)
                await load_until(client, "a", "s3://away/a", display, deadline=0.0)
                with pytest.raises(grpc.RpcError):
                    await load_until(client, "new", "s3://away/new", display, deadline=0.0)
        finally:
            await client.close()
    assert "a: the version loaded before is served" in capsys.readouterr().err


@pytest.fixture
def full_disk() -> Iterator[Any]:
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip(f"there is no {path}")
    with contextlib.suppress(OSError), path.open("w", buffering=1) as stream:
        yield Unfailing(stream)


async def test_a_service_goes_on_where_its_output_cannot_be_shown(tmp_path: Path, full_disk: Any) -> None:
    """More of it than pipe and reader hold, after which it would wait to be read."""
    written = tmp_path / "written"
    code = f"for i in range(30): print('x' * 99_999)\nopen({str(written)!r}, 'w').close()"
    spec = ChildSpec(
        name="a", command=[sys.executable, "-c", code], environment={}, address="unix:/no", stop_seconds=5
    )
    child = Child(spec, Screen(Console(file=full_disk)))
    child.ready.set()
    await child.start()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await child.exited() == 0
    assert written.exists()
