import asyncio
import threading

import grpc
import pytest

from adapter_store.loads.admin import Admin
from adapter_store.sources.folder import copy_source
from lorikeet.v1 import adapters_pb2, store_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.source_servers import WebServer, put_folder, reach_s3, s3_bucket, serving
from tests.support.store_adapters import lora_tensors, write_adapter
from tests.support.store_server import eventually, running_store
from tests.support.waiting import WAIT_SECONDS


async def resolve(running, name: str):
    return await running.catalog.Resolve(store_pb2.ResolveAdapterRequest(name=name), timeout=WAIT_SECONDS)


async def refusal(running, name: str) -> LorikeetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resolve(running, name)
    return from_rpc(caught.value)


async def test_unknown_names_are_loaded_once_from_the_place_for_them(tmp_path, monkeypatch):
    write_adapter(tmp_path / "adapters" / "team" / "a")
    loads = []
    load = Admin._load
    monkeypatch.setattr(Admin, "_load", lambda self, request: (loads.append(request), load(self, request))[1])
    async with running_store(tmp_path, resolve_from=str(tmp_path / "adapters")) as running:
        await running.register()
        found = await asyncio.gather(*(resolve(running, "team/a") for _ in range(8)))
        assert {pointer.digest for pointer in found} == {running.store.admin.get("team/a").digest}
        assert await resolve(running, "team/a") == found[0]
    assert len(loads) == 1


async def test_nothing_is_resolved_by_default(tmp_path):
    write_adapter(tmp_path / "adapters" / "a")
    async with running_store(tmp_path) as running:
        await running.register()
        error = await refusal(running, "a")
    assert (error.code.name, error.reason) == ("NOT_FOUND", "RESOLVING_OFF")


@pytest.mark.parametrize("name", ["a/../../outside", "a/./b", "a//b", "../outside", "", "a/.."])
async def test_names_do_not_lead_out_of_the_place(tmp_path, name):
    write_adapter(tmp_path / "adapters" / "place" / "a")
    write_adapter(tmp_path / "adapters" / "outside")
    async with running_store(tmp_path, resolve_from=str(tmp_path / "adapters" / "place")) as running:
        await running.register()
        error = await refusal(running, name)
    assert error.code.name in ("NOT_FOUND", "INVALID_ARGUMENT")


async def test_a_refusal_is_remembered_for_a_while(tmp_path):
    with serving(WebServer()) as web:
        async with running_store(tmp_path, sources=(web.url,), resolve_from=f"{web.url}/all") as running:
            await running.register()
            now = [100.0]
            running.store._resolver._clock = lambda: now[0]
            error = await refusal(running, "a")
            assert (error.code.name, error.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
            assert web.url not in error.message
            asked = len(web.requests)
            assert (await refusal(running, "a")).reason == "ADAPTER_NOT_FOUND"
            assert len(web.requests) == asked
            now[0] += 60
            assert (await refusal(running, "a")).reason == "ADAPTER_NOT_FOUND"
            assert len(web.requests) == 2 * asked


async def test_callers_who_leave_make_no_room_for_more_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.loads.resolving._MAX_PENDING", 2)
    release = threading.Event()
    monkeypatch.setattr(
        "adapter_store.sources.folder.copy_source",
        lambda *args: (release.wait(WAIT_SECONDS), copy_source(*args)),
    )
    for name in "abc":
        write_adapter(tmp_path / "adapters" / name)
    async with running_store(tmp_path, resolve_from=str(tmp_path / "adapters")) as running:
        await running.register()
        callers = [asyncio.ensure_future(resolve(running, name)) for name in "ab"]
        await eventually(lambda: running.store.admin.pending == 2)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert (await refusal(running, "c")).reason == "TOO_MANY_LOADS"
        release.set()
        await eventually(lambda: running.store.admin.pending == 0)
        await resolve(running, "c")
        assert [pointer.name for pointer in running.store.catalog.pointers()] == ["a", "b", "c"]


async def test_an_adapter_from_a_bucket_has_the_digest_of_its_folder(tmp_path, monkeypatch):
    folder = write_adapter(tmp_path / "adapters" / "a")
    with s3_bucket("adapters") as (endpoint, bucket):
        put_folder(bucket, "team/b", folder)
        reach_s3(monkeypatch, endpoint)
        async with running_store(
            tmp_path, sources=("s3://adapters/team/",), resolve_from="s3://adapters/team"
        ) as running:
            await running.register()
            loaded = await running.load("a", folder)
            from_bucket = await running.load("bucket", "s3://adapters/team/b")
            assert from_bucket.adapter.digest == loaded.adapter.digest
            assert from_bucket.adapter.source == "s3://adapters/team/b"
            assert (await resolve(running, "b")).digest == loaded.adapter.digest


@pytest.mark.parametrize(
    "settings",
    [
        {"resolve_from": "s3://adapters"},
        {"resolve_from": "/"},
        {"sources": ("s3://a/../b",)},
        {"sources": ("http://example.com/",)},
        {"sources": ("adapters",)},
    ],
)
async def test_settings_that_cannot_work_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"resolve_from|sources"):
        async with running_store(tmp_path, **settings):
            pass


def load_for(running, tenant: str, name: str, source):
    request = adapters_pb2.LoadAdapterRequest(name=name, source=str(source), tenant=tenant)
    return running.catalog.Load(request, timeout=WAIT_SECONDS)


@pytest.mark.parametrize("is_asked_for_first", [False, True])
async def test_names_of_the_place_are_everyones_whoever_comes_first(tmp_path, is_asked_for_first):
    shared = write_adapter(tmp_path / "adapters" / "place" / "a")
    private = write_adapter(tmp_path / "adapters" / "private", lora_tensors(seed=1))
    async with running_store(tmp_path, resolve_from=str(tmp_path / "adapters" / "place")) as running:
        await running.register()
        if is_asked_for_first:
            await resolve(running, "a")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load_for(running, "t", "a", private)
        assert (from_rpc(caught.value).code.name, from_rpc(caught.value).reason) == (
            "PERMISSION_DENIED",
            "NAME_TAKEN",
        )
        found = await resolve(running, "a")
        assert running.store.catalog.get("a").tenant == ""
        # Other names are there for tenants, and whoever may do everything may change these.
        await load_for(running, "t", "b", private)
        await load_for(running, "", "a", private)
        await load_for(running, "", "a", shared)
        assert (await resolve(running, "a")).digest == found.digest


async def test_names_of_a_bucket_are_everyones_too(tmp_path):
    private = write_adapter(tmp_path / "adapters" / "private")
    with serving(WebServer()) as web:
        for path in write_adapter(tmp_path / "web", lora_tensors(seed=1)).iterdir():
            web.files[f"/all/a/{path.name}"] = path.read_bytes()
        async with running_store(tmp_path, sources=(web.url,), resolve_from=f"{web.url}/all") as running:
            await running.register()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await load_for(running, "t", "a", private)
            assert from_rpc(caught.value).reason == "NAME_TAKEN"
            await load_for(running, "t", "b", private)


async def test_a_tenants_name_is_not_moved_when_the_place_gets_it_later(tmp_path, monkeypatch):
    """Somebody asks for a name while its tenant loads it."""
    private = write_adapter(tmp_path / "adapters" / "private", lora_tensors(seed=1))
    started, release = threading.Event(), threading.Event()

    def copy(*args):
        started.set()
        release.wait(WAIT_SECONDS)
        copy_source(*args)

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", copy)
    async with running_store(tmp_path, resolve_from=str(tmp_path / "adapters" / "place")) as running:
        await running.register()
        loading = asyncio.ensure_future(load_for(running, "t", "a", private))
        await eventually(started.is_set)
        write_adapter(tmp_path / "adapters" / "place" / "a")
        asked = asyncio.ensure_future(resolve(running, "a"))
        await eventually(lambda: running.store.admin.pending == 2)
        release.set()
        mine = (await loading).adapter.digest
        assert (await asked).digest == mine == running.store.catalog.get("a").digest
        assert running.store.catalog.get("a").tenant == "t"
