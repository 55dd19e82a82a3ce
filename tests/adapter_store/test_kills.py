"""What a store finds again after it was killed, at any point of a change."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from adapter_store.packs.reading import read_adapter
from lorikeet.v1 import adapters_pb2, store_pb2, store_pb2_grpc
from rpc.channel import open_channel
from tests.support.store_adapters import lora_tensors, toy_layout, toy_pack_layout, write_adapter
from tests.support.store_ready import pack_of
from tests.support.store_server import ExecutorClient, eventually, running_store
from tests.support.waiting import WAIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A store in a process of its own, to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        (folder / "adapters").mkdir(exist_ok=True)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> store_pb2_grpc.CatalogServiceStub:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "store", "--data-dir", self.folder / "data"),
            *("--listen", f"unix:{self.socket}", "--roots", self.folder / "adapters"),
            *("--arena-dir", self.folder / "arena", "--arena-bytes", str(1 << 20)),
            cwd=ROOT,
            env=os.environ | {"LORIKEET_LOG_LEVEL": "ERROR"},
        )
        self.channel = open_channel(f"unix:{self.socket}")
        packs = store_pb2_grpc.PackServiceStub(self.channel)
        request = store_pb2.RegisterLayoutRequest(layout=toy_layout())
        await packs.RegisterLayout(request, wait_for_ready=True, timeout=WAIT_SECONDS)
        return store_pb2_grpc.CatalogServiceStub(self.channel)

    async def stop(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), WAIT_SECONDS)


def check_folder(folder: Path, sources: dict[str, str]) -> dict[str, str]:
    """Asserts that nothing in a killed store's folder is half there; returns digests by name."""
    connection = sqlite3.connect(folder / "data/catalog.sqlite3")
    names = dict(connection.execute("SELECT name, digest FROM pointers"))
    retiring = {digest for (digest,) in connection.execute("SELECT digest FROM retiring")}
    connection.close()
    layout = toy_pack_layout()
    objects = {path.name: path for path in (folder / "data/objects").iterdir()}
    for digest, path in objects.items():
        assert read_adapter(path, layout).digest == digest
    assert set(names.values()) <= objects.keys(), "a name points to an adapter that is not there"
    assert set(names.values()).isdisjoint(retiring)
    assert set(names.values()) <= set(sources.values())
    return names


@pytest.mark.timeout(120)
async def test_a_killed_store_never_serves_half_an_adapter(tmp_path):
    generator = random.Random(1)
    sources = {}
    for number in range(6):
        folder = write_adapter(tmp_path / f"adapters/s{number}", lora_tensors(seed=number))
        sources[str(folder)] = read_adapter(folder, toy_pack_layout()).digest
    process = Process(tmp_path)
    acknowledged: dict[str, set[str]] = {}
    calls = 0
    for _ in range(4):
        catalog = await process.start()
        names = {pointer.name: pointer.digest for pointer in await all_of(catalog)}
        for name, digests in acknowledged.items():
            assert names.get(name, "") in digests, name

        async def churn(worker: int, catalog=catalog) -> None:
            nonlocal calls
            while True:
                # One worker a name, so that it is known what may be there.
                name = f"n{worker}"
                source = generator.choice(list(sources))
                gone = generator.random() < 0.3
                after = "" if gone else sources[source]
                acknowledged[name] = acknowledged.get(name, {""}) | {after}
                try:
                    if gone:
                        await catalog.Unload(adapters_pb2.UnloadAdapterRequest(name=name))
                    else:
                        await catalog.Load(adapters_pb2.LoadAdapterRequest(name=name, source=source))
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.NOT_FOUND:
                        return
                acknowledged[name] = {after}
                calls += 1

        workers = [asyncio.ensure_future(churn(worker)) for worker in range(3)]
        await asyncio.sleep(0.05 + 0.4 * generator.random())
        assert await process.stop(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.gather(*workers)
        await process.channel.close()
        check_folder(tmp_path, sources)
    catalog = await process.start()
    names = {pointer.name: pointer.digest for pointer in await all_of(catalog)}
    assert all(names.get(name, "") in digests for name, digests in acknowledged.items())
    assert await process.stop(signal.SIGTERM) == 0
    await process.channel.close()
    assert calls > 10
    # Leftovers were swept: what is on disk is what the catalog names, or what still retires.
    assert {p.name for p in (tmp_path / "data/incoming").iterdir()} == set()


async def all_of(catalog):
    return (await catalog.List(adapters_pb2.ListAdaptersRequest(page_size=1000))).adapters


CRASH_POINTS = [
    ("adapter_store.sources.folder.copy_bytes", "after"),
    ("adapter_store.loads.loader.open_adapter", "after"),
    ("adapter_store.packs.packing._scans", "before"),
    ("adapter_store.loads.loader.identify_adapter", "after"),
    ("adapter_store.tiers.arena_file.ArenaFile.name_pack", "before"),
    ("adapter_store.tiers.arena_file.ArenaFile.name_pack", "after"),
    ("adapter_store.tiers.arena_file.ArenaFile.publish_pack", "before"),
    ("adapter_store.tiers.disk.sync_file", "before"),
    ("adapter_store.tiers.disk.DiskTier.commit_object", "after"),
    ("adapter_store.records.database.Database.commit", "before"),
    ("adapter_store.catalog.catalog.Catalog.apply", "before"),
    ("adapter_store.tiers.arena_file.ArenaFile.publish_pack", "after"),
    ("adapter_store.tiers.arena_file.ArenaFile.set_checksum", "before"),
    ("adapter_store.tiers.disk.DiskTier.set_aside", "before"),
    ("adapter_store.tiers.disk.DiskTier.set_aside", "after"),
    ("adapter_store.records.database.Database.settle", "before"),
]

CRASHING_STORE = """
import asyncio, os, pathlib, pkgutil, sys

folder, point, when, root = pathlib.Path(sys.argv[1]), *sys.argv[2:]
sys.path.insert(0, root)
from adapter_store.loads.request import LoadRequest
from adapter_store.app import AdapterStore
from adapter_store.catalog.catalog import Change
from adapter_store.config import StoreConfig
from adapter_store.records.database import Database
from adapter_store.sources.opening import Sources
from tests.support.store_adapters import toy_layout

owner, _, name = point.rpartition(".")
owner = pkgutil.resolve_name(owner)
real = getattr(owner, name)

def crash(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os._exit(77)

async def main():
    store = AdapterStore.open(StoreConfig(
        data_dir=folder / "data", roots=(folder / "adapters",), arena_dir=folder / "arena",
        arena_bytes=1 << 20, executor_grace_seconds=0.0, keep_versions=0,
    ))
    await store.layouts.register(toy_layout())
    sources = Sources(roots=(folder / "adapters",))

    async def load(name, source):
        await store.admin.load(LoadRequest(name=name, reader=sources.open(source)))

    await load("kept", "s0")
    await load("moved", "s1")
    while store.warm.coming:
        await asyncio.sleep(0.001)
    setattr(owner, name, crash)
    await load("moved", "s2")
    await asyncio.sleep(20)

asyncio.run(main())
"""


@pytest.mark.parametrize(("point", "when"), CRASH_POINTS)
async def test_a_crash_at_any_point_loses_nothing(tmp_path, point, when):
    sources = {}
    for number in range(3):
        folder = write_adapter(tmp_path / f"adapters/s{number}", lora_tensors(seed=number))
        sources[f"s{number}"] = read_adapter(folder, toy_pack_layout()).digest
    arguments = [sys.executable, "-c", CRASHING_STORE, str(tmp_path), point, when, str(ROOT)]
    ended = await asyncio.to_thread(subprocess.run, arguments, cwd=ROOT, timeout=60, capture_output=True)
    assert ended.returncode == 77, ended.stderr.decode()[-2000:]
    names = check_folder(tmp_path, sources)
    assert names["kept"] == sources["s0"]
    assert names["moved"] in (sources["s1"], sources["s2"])
    async with running_store(tmp_path, keep_versions=0) as running:
        running.store.check_integrity()
        again = await running.load("moved", tmp_path / "adapters/s2")
        layout = running.store.layouts.current.digest
        executor = await ExecutorClient(running, layout).start()
        for lease, digest in enumerate((names["kept"], again.adapter.digest)):
            grant = await executor.acquire(lease, digest)
            assert executor.copy(grant) == pack_of(running, digest, layout)
        for retiring in running.store.catalog.retiring:
            await executor.retired(retiring)
        await eventually(lambda: not running.store.catalog.retiring)
        await running.settled()
        statistics = running.store.statistics()
        assert (statistics.disk.objects, statistics.adapters) == (2, 2)
