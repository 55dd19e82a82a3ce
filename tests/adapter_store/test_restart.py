"""What a store finds again after it was stopped."""

import asyncio
import json
import shutil
import threading

import grpc
import pytest

from adapter_store.app import AdapterStore
from adapter_store.catalog.catalog import Change
from adapter_store.config import StoreConfig
from adapter_store.packs.reading import read_adapter
from adapter_store.records.database import KEPT_LAYOUTS, Database, Settled
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import adapters_pb2, store_pb2
from tests.support.store_adapters import lora_tensors, toy_layout, toy_pack_layout, write_adapter
from tests.support.store_ready import pack_of
from tests.support.store_server import ExecutorClient, FollowerClient, eventually, running_store
from tests.support.waiting import WAIT_SECONDS


async def test_names_packs_and_layouts_come_back(tmp_path, caplog):
    async with running_store(tmp_path) as running:
        layout = (await running.register()).layout_digest
        digest = (await running.load("a", write_adapter(tmp_path / "adapters/a"))).adapter.digest
        await running.settled()
        got = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
        arena = running.arena
    shutil.rmtree(tmp_path / "adapters/a")
    async with running_store(tmp_path) as running:
        again = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
        assert again == got
        follower = await FollowerClient(running).start()
        assert (follower.pointers, follower.revision) == ({"a": digest}, 1)
        executor = await ExecutorClient(running, layout).start()
        grant = await executor.acquire(1, digest)
        assert executor.copy(grant) == pack_of(running, digest, layout)
        # It never moved: the same arena, the same place.
        assert (
            running.arena[grant.pack_offset :][: grant.manifest.total_bytes]
            == (arena[grant.pack_offset :][: grant.manifest.total_bytes])
        )
        assert "made anew" not in caplog.text
        assert running.store.statistics().revision == 1


async def test_bytes_that_changed_in_the_arena_meanwhile_are_read_anew(tmp_path):
    async with running_store(tmp_path) as running:
        layout = (await running.register()).layout_digest
        digest = (await running.load("a", write_adapter(tmp_path / "adapters/a"))).adapter.digest
        await running.settled()
        (pack,) = running.store.arena.packs
        (arena_file,) = (tmp_path / "arena").glob("arena-*")
    with arena_file.open("r+b") as file:
        file.seek(pack.pack_offset + 5)
        file.write(b"\xff\xff")
    async with running_store(tmp_path) as running:
        executor = await ExecutorClient(running, layout).start()
        assert executor.copy(await executor.acquire(1, digest)) == pack_of(running, digest, layout)


async def test_a_scaling_that_changed_on_the_disk_meanwhile_is_not_served(tmp_path):
    async with running_store(tmp_path) as running:
        layout = (await running.register()).layout_digest
        digest = (await running.load("a", write_adapter(tmp_path / "adapters/a"))).adapter.digest
        await running.settled()
    path = tmp_path / "data/objects" / digest / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    async with running_store(tmp_path) as running:
        executor = await ExecutorClient(running, layout).start()
        # The pack is what it was, but not what belongs to it.
        refusal = await executor.acquire(1, digest)
        assert (refusal.DESCRIPTOR.name, refusal.reason) == ("LeaseRefusal", "ADAPTER_LOST")


async def test_leases_that_were_held_stay_in_place_until_claimed_or_the_grace_ends(tmp_path):
    async with running_store(tmp_path) as running:
        layout = (await running.register()).layout_digest
        digest = (await running.load("a", write_adapter(tmp_path / "adapters/a"))).adapter.digest
        await running.settled()
        (pack,) = running.store.arena.packs
        # Killed while leased: nobody releases it.
        running.store.arena.lease(pack)
        held = store_pb2.HeldLease(
            digest=digest, header_offset=pack.header_offset, generation=pack.generation
        )
    async with running_store(tmp_path, executor_grace_seconds=WAIT_SECONDS) as running:
        assert running.store.statistics().arena.unclaimed == 1
        executor = await ExecutorClient(running, layout, [held]).start()
        await eventually(lambda: running.store.executors.leases == 1)
        statistics = running.store.statistics().arena
        assert (statistics.leases, statistics.unclaimed) == (1, 0)
        again = await executor.acquire(1, digest)
        assert (again.header_offset, again.generation) == (pack.header_offset, pack.generation)
        await executor.release(1)
        await eventually(lambda: running.store.statistics().arena.leases == 1)
        # The grace lasts; a stream's end ends its claims, too.
        executor.call.cancel()
        await eventually(lambda: running.store.statistics().arena.leases == 0)
        running.store.arena.lease(*running.store.arena.packs)
    async with running_store(tmp_path) as running:
        await eventually(lambda: running.store.statistics().arena.unclaimed == 0)


async def test_a_retirement_goes_on_after_a_restart(tmp_path):
    # Nor is it over at the stop, for an executor that has gone.
    async with running_store(tmp_path, keep_versions=0, executor_grace_seconds=WAIT_SECONDS) as running:
        layout = (await running.register()).layout_digest
        executor = await ExecutorClient(running, layout).start()
        await running.load("a", write_adapter(tmp_path / "adapters/a"))
        await running.load("a", write_adapter(tmp_path / "adapters/a", lora_tensors(seed=1)))
        (digest,) = running.store.catalog.retiring
        assert (await executor.next()).digest == digest
    async with running_store(tmp_path, executor_grace_seconds=WAIT_SECONDS) as running:
        assert running.store.catalog.retiring == {digest}
        executor = await ExecutorClient(running, layout).start()
        assert (await executor.next()).digest == digest
        assert running.store.statistics().disk.objects == 2
        await executor.retired(digest)
        # Others may come back as long as the grace lasts.
        assert running.store.catalog.retiring == {digest}
    async with running_store(tmp_path, keep_versions=0) as running:
        await eventually(lambda: not running.store.catalog.retiring)
        await eventually(lambda: running.store.statistics().disk.objects == 1)


async def test_an_object_that_is_gone_is_said(tmp_path, caplog):
    async with running_store(tmp_path) as running:
        await running.register()
        digest = (await running.load("a", write_adapter(tmp_path / "adapters/a"))).adapter.digest
    shutil.rmtree(tmp_path / "data/objects" / digest)
    async with running_store(tmp_path) as running:
        assert f"the files of adapter {digest} are gone" in caplog.text
        assert (await running.load("a", tmp_path / "adapters/a")).adapter.digest == digest
        assert running.store.statistics().disk.objects == 1


async def test_a_store_that_is_stopped_while_it_writes_a_change_down_keeps_its_files(tmp_path, monkeypatch):
    old = write_adapter(tmp_path / "adapters/old", lora_tensors(seed=1))
    new = write_adapter(tmp_path / "adapters/new", lora_tensors(seed=2))
    writing, go_on = threading.Event(), threading.Event()

    def commit_when_told(
        database: Database, change: Change, settled: Settled, commit=Database.commit
    ) -> None:
        writing.set()
        assert go_on.wait(WAIT_SECONDS)
        commit(database, change, settled)

    async with running_store(tmp_path) as running:
        await running.register()
        await running.load("a", old)
        monkeypatch.setattr(Database, "commit", commit_when_told)
        load = asyncio.ensure_future(running.load("a", new))
        assert await asyncio.to_thread(writing.wait, 20)
        closing = asyncio.ensure_future(running.store.admin.close())
        for _ in range(100):
            await asyncio.sleep(0)  # whoever gives up when told to stop has done so by now
        go_on.set()
        await closing
    await asyncio.gather(load, return_exceptions=True)
    async with running_store(tmp_path) as running:
        (pointer,) = running.store.catalog.pointers()
        assert pointer.digest == read_adapter(new, toy_pack_layout()).digest
        assert (running.config.data_dir / "objects" / pointer.digest).is_dir()


async def test_pinned_packs_come_in_for_a_new_layout_and_few_layouts_are_known(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        source = write_adapter(tmp_path / "adapters/a", lora_tensors())
        request = adapters_pb2.LoadAdapterRequest(name="a", source=str(source), pinned=True)
        digest = (await running.catalog.Load(request, timeout=WAIT_SECONDS)).adapter.digest
        other = toy_layout()
        registered = []
        for max_rank in range(65, 75):
            other.max_rank = max_rank
            registered.append((await running.register(other)).layout_digest)
        key = PackKey(layout=registered[-1], digest=digest)
        await eventually(lambda: running.store.warm.is_warm(key))
        assert running.store.layouts.digests == set(registered[-KEPT_LAYOUTS:])
        with pytest.raises(grpc.aio.AioRpcError, match="RegisterLayout"):
            await (await ExecutorClient(running, registered[0]).start()).call.read()


async def test_two_stores_never_share_a_folder(tmp_path):
    async with running_store(tmp_path) as running:
        with pytest.raises(ValueError, match=r"another store uses .*choose another --data-dir"):
            AdapterStore.open(running.config)
        other = StoreConfig(data_dir=tmp_path / "other", arena_dir=tmp_path / "arena", arena_bytes=1 << 20)
        with pytest.raises(ValueError, match="another store uses the arena"):
            AdapterStore.open(other)
    # Neither attempt kept a lock.
    async with running_store(tmp_path):
        pass
    AdapterStore.open(other)._disk.close()


def test_the_catalog_keeps_no_layout_that_is_not_understood(tmp_path):
    (tmp_path / "data").mkdir()
    database = Database(tmp_path / "data")
    layout = toy_layout()
    layout.pack_format_version = 99
    database.save_layout("9" * 64, layout.SerializeToString())
    database.close()

    async def look() -> None:
        async with running_store(tmp_path) as running:
            assert running.store.layouts.digests == frozenset()

    asyncio.run(look())
