"""Packs over gRPC that are made anew, repaired, or sent in chunks, against a real store."""

import blake3
import grpc
import pytest

from adapter_store.tiers.building import rebuild_pack
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.warm import WarmTier
from lorikeet.v1 import layout_pb2, store_pb2
from rpc.errors import from_rpc
from tests.support.store_adapters import toy_layout
from tests.support.store_ready import running_ready
from tests.support.store_server import error_of, eventually


@pytest.fixture
async def ready(tmp_path):
    async with running_ready(tmp_path) as ready:
        yield ready


async def test_another_layout_is_packed_when_it_is_asked_for(ready):
    digest = await ready.load("a")
    layout = toy_layout(dtype=layout_pb2.TENSOR_TYPE_BFLOAT16)
    other = (await ready.running.register(layout)).layout_digest
    assert other != ready.layout
    executor = await ready.executor(layout=other)
    grant = await executor.acquire(1, digest)
    assert grant.manifest.layout_digest == other
    assert len(executor.copy(grant)) == len(ready.pack_on_disk(digest)) / 2
    assert ready.store.statistics().disk.packs == 2
    await ready.running.unload("a")
    await executor.retired((await executor.next()).digest)
    await executor.release(1)
    await eventually(lambda: ready.store.statistics().disk.packs == 0)
    await eventually(lambda: ready.store.statistics().arena.packs == 0)


async def test_an_adapter_that_does_not_fit_another_layout_is_refused(ready):
    digest = await ready.load("a")
    other = (await ready.running.register(toy_layout(max_rank=2))).layout_digest
    refusal = await (await ready.executor(layout=other)).acquire(1, digest)
    assert (refusal.code, refusal.reason) == (3, "RANK_TOO_LARGE")
    assert "rank 4 is above the executor's maximum of 2" in refusal.message
    # The other executor goes on.
    assert (await (await ready.executor()).acquire(1, digest)).lease == 1


@pytest.mark.parametrize("damage", ["bytes", "manifest", "gone"])
async def test_a_damaged_pack_is_made_anew(ready, damage):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)
    good = ready.pack_on_disk(digest)
    path = ready.running.config.data_dir / "packs" / ready.layout / f"{digest}.pack"
    match damage:
        case "bytes":
            path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        case "manifest":
            path.with_suffix(".manifest").write_bytes(b"x")
        case _:
            path.unlink()
    executor = await ready.executor()
    assert executor.copy(await executor.acquire(1, digest)) == good
    assert ready.pack_on_disk(digest) == good


async def test_an_adapter_that_is_lost_is_said_and_repaired_by_loading_it(ready):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)
    ready.store._disk.forget_pack(PackKey(layout=ready.layout, digest=digest))
    weights = ready.running.config.data_dir / "objects" / digest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x00")
    executor = await ready.executor()
    refusal = await executor.acquire(1, digest)
    assert (refusal.code, refusal.reason) == (15, "ADAPTER_LOST")
    assert await ready.load("a") == digest
    assert (await executor.acquire(1, digest)).manifest.digest == digest
    assert rebuild_pack(ready.store._disk, digest, ready.store.layouts.current).manifest.digest == digest


async def test_packs_come_in_chunks_where_the_arena_is_out_of_reach(ready):
    digest = await ready.load("a", rank=64)
    request = store_pb2.FetchPackRequest(digest=digest, layout_digest=ready.layout)
    chunks = [chunk async for chunk in ready.running.packs.FetchPack(request)]
    assert chunks[0].manifest.digest == digest
    data = b"".join(chunk.data for chunk in chunks)
    assert blake3.blake3(data).digest() == blake3.blake3(ready.pack_on_disk(digest)).digest()
    for bad, code in (
        (store_pb2.FetchPackRequest(digest="0" * 64, layout_digest=ready.layout), "NOT_FOUND"),
        (store_pb2.FetchPackRequest(digest=digest, layout_digest="0" * 64), "FAILED_PRECONDITION"),
    ):
        assert (await error_of(ready.running.packs.FetchPack(bad))).code.name == code


async def test_a_damaged_pack_is_not_passed_off_as_good(ready):
    digest = await ready.load("a")
    await ready.running.settled()
    path = ready.running.config.data_dir / "packs" / ready.layout / f"{digest}.pack"
    good = path.read_bytes()
    path.write_bytes(b"\x01" + good[1:])
    request = store_pb2.FetchPackRequest(digest=digest, layout_digest=ready.layout)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(ready, request)
    assert from_rpc(caught.value).reason == "PACK_DAMAGED"
    assert await fetch(ready, request) == good


async def test_a_pack_that_goes_as_it_is_asked_for_is_not_found(ready, monkeypatch):
    stored = WarmTier.stored

    async def gone(self, digest, layout):
        found = await stored(self, digest, layout)
        found.path.unlink()
        return found

    digest = await ready.load("a")
    monkeypatch.setattr(WarmTier, "stored", gone)
    request = store_pb2.FetchPackRequest(digest=digest, layout_digest=ready.layout)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(ready, request)
    assert from_rpc(caught.value).reason == "UNKNOWN_DIGEST"


async def fetch(ready, request) -> bytes:
    return b"".join([chunk.data async for chunk in ready.running.packs.FetchPack(request)])
