"""Rollbacks, conditions and pins through the store's own API."""

import asyncio

import pytest

from lorikeet.v1 import adapters_pb2, store_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.store_adapters import lora_tensors, write_adapter
from tests.support.store_server import RunningStore, eventually, running_store
from tests.support.waiting import WAIT_SECONDS


async def load(running: RunningStore, name: str, seed: int, **terms) -> adapters_pb2.Adapter:
    folder = write_adapter(running.config.roots[0] / f"seed{seed}", lora_tensors(seed=seed))
    request = adapters_pb2.LoadAdapterRequest(name=name, source=str(folder), **terms)
    return (await running.catalog.Load(request, timeout=WAIT_SECONDS)).adapter


async def refusal(call) -> LorikeetError:
    with pytest.raises(Exception) as caught:
        await call
    return from_rpc(caught.value)  # pyright: ignore[reportArgumentType]


async def test_a_rollback_is_told_to_all_and_survives_a_restart(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        old, new = [await load(running, "a", seed, pinned=True, tenant="t") for seed in (0, 1)]
        await eventually(lambda: not running.store.catalog.retiring)
        watch = running.catalog.Watch(adapters_pb2.WatchAdaptersRequest())
        assert (await watch.read()).adapter.digest == new.digest
        request = adapters_pb2.RollbackAdapterRequest(name="a")
        back = (await running.catalog.Rollback(request, timeout=WAIT_SECONDS)).adapter
        assert (back.digest, back.revision, back.source) == (old.digest, 3, old.source)
        assert (back.pinned, back.tenant, back.load_time) == (True, "t", old.load_time)
        told = (await watch.read()).adapter
        assert (told.digest, told.revision, told.state) == (old.digest, 3, adapters_pb2.ADAPTER_STATE_ACTIVE)
        await eventually(lambda: not running.store.catalog.retiring)
        await running.settled()
        assert running.store.statistics().disk.objects == 2
    async with running_store(tmp_path) as running:
        adapter = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
        assert (adapter.digest, adapter.pinned, adapter.tenant) == (old.digest, True, "t")
        assert [version.digest for version in adapter.previous] == [new.digest]
        request = adapters_pb2.RollbackAdapterRequest(name="a", digest=new.digest)
        assert (await running.catalog.Rollback(request, timeout=WAIT_SECONDS)).adapter.digest == new.digest
        await running.unload("a")
        await eventually(lambda: not running.store.catalog.retiring)
        await eventually(lambda: running.store.statistics().disk.objects == 0)


async def test_a_rollback_needs_no_layout(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        old, _ = [await load(running, "a", seed) for seed in (0, 1)]
        # As after an update whose release does not understand the layouts of an earlier run.
        running.store.layouts._known.clear()
        request = adapters_pb2.RollbackAdapterRequest(name="a")
        assert (await running.catalog.Rollback(request, timeout=WAIT_SECONDS)).adapter.digest == old.digest


async def test_of_two_tenants_that_load_a_new_name_at_once_one_gets_it(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        calls = [load(running, "a", seed, tenant=tenant) for seed, tenant in ((0, "t"), (1, "u"))]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        (lost,) = [from_rpc(each) for each in ended if isinstance(each, Exception)]  # pyright: ignore[reportArgumentType]
        (won,) = [each for each in ended if isinstance(each, adapters_pb2.Adapter)]
        assert (lost.code.name, lost.reason) == ("PERMISSION_DENIED", "NAME_TAKEN")
        adapter = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
        assert (adapter.digest, adapter.tenant) == (won.digest, won.tenant)
        assert won.tenant in ("t", "u")


async def test_a_tenant_changes_nothing_of_others_whatever_its_frontend_knows(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        for name, tenant in (("theirs", "u"), ("shared", "")):
            for seed in (0, 1):
                await load(running, name, seed, tenant=tenant)
        revision = running.store.catalog.revision
        for name, reason in (("theirs", "ADAPTER_NOT_FOUND"), ("shared", "SHARED_ADAPTER")):
            unload = adapters_pb2.UnloadAdapterRequest(name=name, tenant="t", expected_digest="0" * 64)
            rollback = adapters_pb2.RollbackAdapterRequest(name=name, tenant="t", expected_digest="0" * 64)
            assert (await refusal(running.catalog.Unload(unload))).reason == reason
            assert (await refusal(running.catalog.Rollback(rollback))).reason == reason
        assert running.store.catalog.revision == revision
        await running.catalog.Rollback(adapters_pb2.RollbackAdapterRequest(name="theirs", tenant="u"))
        await running.catalog.Unload(adapters_pb2.UnloadAdapterRequest(name="theirs", tenant="u"))
        await running.catalog.Unload(adapters_pb2.UnloadAdapterRequest(name="shared"))


async def test_of_two_admins_with_the_same_condition_one_wins(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        first = await load(running, "a", 0, expected_digest="none")
        calls = [load(running, "a", seed, expected_digest=first.digest) for seed in (1, 2)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        (lost,) = [from_rpc(each) for each in ended if isinstance(each, Exception)]  # pyright: ignore[reportArgumentType]
        (won,) = [each for each in ended if isinstance(each, adapters_pb2.Adapter)]
        assert (lost.code.name, lost.reason) == ("ABORTED", "DIGEST_CHANGED")
        assert won.digest in lost.message
        assert first.digest in lost.message
        unload = adapters_pb2.UnloadAdapterRequest(name="a", expected_digest=first.digest)
        assert (await refusal(running.catalog.Unload(unload))).reason == "DIGEST_CHANGED"
        await running.settled()
        assert running.store.statistics().disk.objects == 2


async def test_only_a_share_of_the_memory_can_be_pinned(tmp_path):
    async with running_store(tmp_path, pinned_bytes=1) as running:
        await running.register()
        error = await refusal(load(running, "a", 0, pinned=True))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "PINNED_FULL")
        await load(running, "a", 0)
        await running.settled()
        statistics = await running.packs.GetStatistics(store_pb2.GetPackStatisticsRequest())
        assert all(tier.pinned_bytes == 0 for tier in statistics.tiers)


async def test_a_forced_unload_tells_followers_to_abort(tmp_path):
    async with running_store(tmp_path) as running:
        await running.register()
        await load(running, "a", 0)
        follow = running.catalog.Follow()
        await follow.write(store_pb2.FollowRequest())
        assert (await follow.read()).snapshot
        request = adapters_pb2.UnloadAdapterRequest(name="a", force=True)
        unload = asyncio.ensure_future(running.catalog.Unload(request))
        update = await follow.read()
        (pointer,) = update.pointers
        assert (pointer.name, pointer.digest, pointer.abort_running) == ("a", "", True)
        await follow.write(store_pb2.FollowRequest(acknowledged_revision=update.revision))
        await unload
