"""A real store process, killed again and again under loads, swaps, rollbacks and unloads."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from adapter_store.app import AdapterStore
from adapter_store.config import StoreConfig
from adapter_store.packs.reading import read_adapter
from lorikeet.v1 import adapters_pb2, store_pb2, store_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import LorikeetError
from tests.support.store_adapters import (
    lora_config,
    lora_tensors,
    packed,
    toy_layout,
    toy_pack_layout,
    write_adapter,
)
from tests.support.store_server import ExecutorClient
from tests.support.waiting import WAIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = 8
NAMES = 4
# An unload of a name that is not there, a rollback of one that has no earlier version.
_REFUSED = {("unload", ""), ("rollback", "")}
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


class World:
    """One data folder, the store's lives over it, and what its clients were promised.

    Each name has one client that changes it, so that it is known what the name may point to: the outcome of
    the last change that was acknowledged, or of the one that a kill left open.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.generator = random.Random(seed)
        self.changes = 0
        # Name to the digests that it may point to; "" is nothing.
        self.allowed: dict[str, set[str]] = {f"n{number}": {""} for number in range(NAMES)}
        self.current: dict[str, str] = dict.fromkeys(self.allowed, "")
        self.digests: dict[str, str] = {}
        self.expected: dict[str, bytes] = {}
        layout = toy_pack_layout()
        for number in range(SOURCES):
            rank = self.generator.choice([4, 16, 64])
            tensors = lora_tensors(seed=number, rank=rank)
            source = write_adapter(folder / f"adapters/s{number}", tensors, lora_config(r=rank))
            digest = read_adapter(source, layout).digest
            self.digests[str(source)] = digest
            self.expected[digest] = packed(source, layout)[1]

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "store", "--data-dir", self.folder / "data"),
            *("--listen", f"unix:{self.folder / 'socket'}", "--roots", self.folder / "adapters"),
            *("--arena-dir", self.folder / "arena", "--arena-bytes", str(1 << 20)),
            cwd=ROOT,
            env=os.environ | {"LORIKEET_LOG_LEVEL": "ERROR"},
        )
        self.channel = open_channel(f"unix:{self.folder / 'socket'}")
        self.catalog: Any = store_pb2_grpc.CatalogServiceStub(self.channel)
        self.packs: Any = store_pb2_grpc.PackServiceStub(self.channel)
        request = store_pb2.RegisterLayoutRequest(layout=toy_layout())
        answer = await self.packs.RegisterLayout(request, wait_for_ready=True, timeout=WAIT_SECONDS)
        self.layout, self.arena_path = answer.layout_digest, self.folder / "arena" / answer.arena_file

    @property
    def arena(self) -> bytes:
        return self.arena_path.read_bytes()

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert await asyncio.wait_for(self.process.wait(), WAIT_SECONDS) == -signal.SIGKILL

    async def executor(self) -> ExecutorClient:
        return await ExecutorClient(self, self.layout).start()

    async def change(self, name: str) -> None:
        """One random change of a name, and what may be afterwards."""
        now = self.current[name]
        before = await self.previous(name)
        action = self.generator.choice(["load", "load", "load", "unload", "rollback"])
        source = self.generator.choice(list(self.digests))
        outcome = {"load": self.digests[source], "unload": "", "rollback": before or now}[action]
        self.allowed[name] = {now, outcome}
        try:
            if action == "load":
                await self.catalog.Load(adapters_pb2.LoadAdapterRequest(name=name, source=source))
            elif action == "unload":
                await self.catalog.Unload(adapters_pb2.UnloadAdapterRequest(name=name))
            else:
                await self.catalog.Rollback(adapters_pb2.RollbackAdapterRequest(name=name))
        except grpc.aio.AioRpcError as error:
            is_refused = error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
            # Of these only what has nothing to do is refused.
            if not is_refused or (action, now if action == "unload" else before) not in _REFUSED:
                raise
            outcome = now
        self.allowed[name], self.current[name] = {outcome}, outcome
        self.changes += 1

    async def previous(self, name: str) -> str:
        """The digest that a rollback leads to."""
        try:
            answer = await self.catalog.Get(adapters_pb2.GetAdapterRequest(name=name))
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return ""
            raise
        return next((earlier.digest for earlier in answer.previous), "")

    async def churn(self, name: str) -> None:
        """Changes a name until the store dies."""
        try:
            while True:
                await self.change(name)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _GONE:
                raise

    async def use(self) -> None:
        """An executor that leases and copies whatever it can, until the store dies."""
        executor = await self.executor()
        try:
            for lease in range(1 << 30):
                await self.lease(executor, lease, self.generator.choice(list(self.expected)))
                while executor.told:
                    await executor.retired(executor.told.pop())
        except LorikeetError as error:
            if error.code not in _GONE:
                raise
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # written to after the end

    async def lease(self, executor: ExecutorClient, lease: int, digest: str) -> bool:
        """Leases a pack and compares every byte; False when it is refused."""
        answer = await executor.acquire(lease, digest)
        if isinstance(answer, store_pb2.LeaseRefusal):
            assert answer.reason == "UNKNOWN_DIGEST", answer
            return False
        assert executor.copy(answer) == self.expected[digest], "a pack is not what its digest says"
        await executor.release(lease)
        return True

    async def life(self) -> None:
        """Starts, looks at everything, changes things, and is killed at some point of that."""
        await self.start()
        await self.look()
        work = [asyncio.ensure_future(self.churn(name)) for name in self.allowed]
        work.append(asyncio.ensure_future(self.use()))
        await asyncio.sleep(0.02 + 0.6 * self.generator.random())
        await self.kill()
        await asyncio.wait_for(asyncio.gather(*work), WAIT_SECONDS)
        await self.channel.close()
        self.look_at_files()

    async def look(self) -> None:
        """Everything that was promised is there, and every pack that can be leased is whole."""
        assert not list((self.folder / "data/incoming").iterdir()), "a kill's leftovers were not swept"
        listed = (await self.catalog.List(adapters_pb2.ListAdaptersRequest(page_size=1000))).adapters
        names = {adapter.name: adapter.digest for adapter in listed}
        for name, digests in self.allowed.items():
            assert names.get(name, "") in digests, f"{name} points to {names.get(name)}, not to {digests}"
            self.current[name] = names.get(name, "")
            self.allowed[name] = {self.current[name]}
        executor = await self.executor()
        leased = {digest for n, digest in enumerate(self.expected) if await self.lease(executor, n, digest)}
        assert set(names.values()) <= leased, "a name points to what cannot be leased"
        executor.call.cancel()

    def look_at_files(self) -> None:
        """A killed store's folder holds no half object, and all that its catalog refers to."""
        connection = sqlite3.connect(self.folder / "data/catalog.sqlite3")
        rows = connection.execute("SELECT digest, previous FROM pointers").fetchall()
        connection.close()
        wanted = {digest for digest, _ in rows}
        wanted |= {earlier["digest"] for _, previous in rows for earlier in json.loads(previous)}
        layout = toy_pack_layout()
        objects = {path.name: path for path in (self.folder / "data/objects").iterdir()}
        assert wanted <= objects.keys(), "a name refers to an adapter that is not there"
        for digest, path in objects.items():
            assert read_adapter(path, layout).digest == digest

    async def recover_here(self) -> None:
        """A store in this process finds the folder and the arena consistent, by its own checks."""
        config = StoreConfig(
            data_dir=self.folder / "data",
            roots=(self.folder / "adapters",),
            arena_dir=self.folder / "arena",
            arena_bytes=1 << 20,
        )
        store = AdapterStore.open(config)
        try:
            store.check_integrity()
            assert not store.statistics().disk.incoming
        finally:
            await store.close()

    async def end(self) -> None:
        """After the last kill: all names go, and nothing is left of them."""
        await self.start()
        await self.look()
        executor = await self.executor()
        for name, digest in self.current.items():
            if digest:
                await self.catalog.Unload(adapters_pb2.UnloadAdapterRequest(name=name))

        async def retire() -> None:
            while True:
                await executor.retired((await executor.next()).digest)

        answering = asyncio.ensure_future(retire())
        async with asyncio.timeout(60):
            # Packs may stay in memory: what an executor leased of the killed store is its own for a while.
            while (await self.packs.GetStatistics(store_pb2.GetPackStatisticsRequest())).packs_cold:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        answering.cancel()
        executor.call.cancel()
        self.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(self.process.wait(), WAIT_SECONDS) == 0
        await self.channel.close()
        for folder in ("incoming", "objects"):
            assert not list((self.folder / "data" / folder).iterdir())


async def soak(folder: Path, *, seed: int, kills: int, changes: int) -> World:
    world = World(folder, seed)
    lives = 0
    try:
        while lives < kills or world.changes < changes:
            await world.life()
            lives += 1
            if world.generator.random() < 0.5:
                await world.recover_here()
        await world.end()
    finally:
        # After a failure.
        if world.process.returncode is None:
            world.process.kill()
            await world.process.wait()
    return world


@pytest.mark.timeout(120)
async def test_every_promise_survives_a_few_kills(tmp_path):
    world = await soak(tmp_path, seed=1, kills=6, changes=20)
    assert world.changes >= 20


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [2, 3])
async def test_every_promise_survives_many_kills(tmp_path, seed):
    world = await soak(tmp_path, seed=seed, kills=40, changes=200)
    print(f"{world.changes} changes")
