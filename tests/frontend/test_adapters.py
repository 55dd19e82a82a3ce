"""The admin API, and names that follow the store."""

import asyncio
from pathlib import Path

import grpc
import pytest

from frontend.adapters.admin import AdapterAdmin
from frontend.adapters.catalog import Catalog
from lorikeet.v1 import adapters_pb2, store_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import LorikeetError, from_rpc
from tests.support.frontend_fake_store import FakeStore, digest_of
from tests.support.frontend_harness import Rig, running_rig, serve_store
from tests.support.waiting import WAIT_SECONDS

SAMPLING = {"max_tokens": 2}


async def load(rig: Rig, name: str, source: str) -> adapters_pb2.Adapter:
    request = adapters_pb2.LoadAdapterRequest(name=name, source=source)
    return (await rig.adapters.LoadAdapter(request, timeout=WAIT_SECONDS)).adapter


async def digest_that_answers(rig: Rig, name: str) -> str:
    return (await rig.generate(text="x", adapter=name, sampling=SAMPLING))[0].adapter_digest


async def generate_error(rig: Rig, name: str) -> LorikeetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(text="x", adapter=name, sampling=SAMPLING)
    return from_rpc(caught.value)


async def test_a_loaded_adapter_answers_as_soon_as_the_load_returns(model_folder: Path):
    async with running_rig(model_folder) as rig:
        for source in ("/a", "/b"):
            adapter = await load(rig, "sql", source)
            assert adapter.digest == digest_of(source)
            assert await digest_that_answers(rig, "sql") == digest_of(source)
        await rig.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name="sql"))
        assert (await generate_error(rig, "sql")).reason == "ADAPTER_NOT_FOUND"


async def test_a_request_in_flight_ends_on_the_version_it_began_with(model_folder: Path):
    async with running_rig(model_folder, free_running=False, adapters={"sql": "ab" * 32}) as rig:
        old = asyncio.create_task(rig.generate(text="x", adapter="sql", sampling=SAMPLING))
        await rig.executor.until(lambda: rig.executor.running == 1)
        await rig.store.point("sql", "cd" * 32)
        new = asyncio.create_task(rig.generate(text="x", adapter="sql", sampling=SAMPLING))
        await rig.executor.until(lambda: rig.executor.running == 2)
        rig.executor.step(2)
        assert (await old)[-1].summary.adapter_digest == "ab" * 32
        assert (await new)[-1].summary.adapter_digest == "cd" * 32


async def test_the_stores_statuses_arrive_as_they_are(model_folder: Path):
    async with running_rig(model_folder) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(rig, "sql", "missing/x")
        error = from_rpc(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SOURCE_NOT_FOUND")
        assert error.metadata == {"source": "missing/x"}
        assert error.message == "missing/x does not exist"


async def test_reading_calls_pass_through(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": "ab" * 32}) as rig:
        listed = await rig.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest())
        assert [adapter.name for adapter in listed.adapters] == ["sql"]
        adapter = await rig.adapters.GetAdapter(adapters_pb2.GetAdapterRequest(name="sql"))
        assert adapter.digest == "ab" * 32
        await rig.adapters.PrefetchAdapter(adapters_pb2.PrefetchAdapterRequest(adapter="sql"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.adapters.PrefetchAdapter(adapters_pb2.PrefetchAdapterRequest(adapter="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_shutdown_does_not_wait_for_watchers(model_folder: Path):
    async with running_rig(model_folder, drain_seconds=3600.0, adapters={"sql": "ab" * 32}) as rig:
        call = rig.adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest())
        await call.read()
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.frontend.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            await rig.store.until(lambda: rig.store.watchers == 0)
        assert from_rpc(caught.value).reason == "SHUTTING_DOWN"


async def test_a_watcher_whose_call_begins_after_the_shutdown_did_is_not_waited_for():
    async with open_channel("127.0.0.1:1") as channel:
        admin = AdapterAdmin(stub=store_pb2_grpc.CatalogServiceStub(channel), catalog=Catalog(has_store=True))
        admin.end_watches()
        with pytest.raises(LorikeetError, match="SHUTTING_DOWN"):
            await anext(admin.watch(adapters_pb2.WatchAdaptersRequest()))


async def test_a_watcher_that_leaves_is_gone_from_the_store(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": "ab" * 32}) as rig:
        call = rig.adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest())
        assert (await call.read()).adapter.name == "sql"
        assert rig.store.watchers == 1
        call.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.store.until(lambda: rig.store.watchers == 0)


async def test_known_names_outlive_the_store_and_follow_its_successor(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": "ab" * 32}) as rig:
        await rig.store_server.drain(0)
        assert await digest_that_answers(rig, "sql") == "ab" * 32
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(rig, "sql", "/a")
        error = from_rpc(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_AWAY")
        assert error.retry_after
        successor = FakeStore()
        successor.revision = 7
        successor.digests = {"other": "cd" * 32}
        server, _ = await serve_store(successor, rig.store_address)
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.frontend.catalog.reach(7)
        assert await digest_that_answers(rig, "other") == "cd" * 32
        assert (await generate_error(rig, "sql")).code is grpc.StatusCode.NOT_FOUND
        await server.drain(0)


async def test_before_the_store_was_met_only_the_base_answers(model_folder: Path):
    async with running_rig(model_folder, store="127.0.0.1:1", wait_ready=False) as rig:
        await rig.until_connected()
        assert await digest_that_answers(rig, "") == ""
        assert (await generate_error(rig, "sql")).reason == "CATALOG_UNKNOWN"


async def test_without_a_store_the_admin_api_says_so(model_folder: Path):
    async with running_rig(model_folder, store="") as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(rig, "sql", "/a")
        assert from_rpc(caught.value).reason == "NO_ADAPTER_STORE"
        assert (await generate_error(rig, "sql")).code is grpc.StatusCode.FAILED_PRECONDITION
