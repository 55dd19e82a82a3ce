"""Packs over gRPC that are made anew, repaired, or sent in chunks, against a real store."""

import errno

import blake3
import pytest

from adapter_store.peers.pack_chunks import PackChunks
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import layout_pb2, store_pb2
from rpc.errors import LorikeetError
from tests.support.store_adapters import toy_layout, write_adapter
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
    assert len(executor.copy(grant)) == len(ready.pack_of(digest)) / 2
    await ready.running.unload("a")
    await executor.retired((await executor.next()).digest)
    await executor.release(1)
    await eventually(lambda: ready.store.statistics().disk.objects == 0)
    await eventually(lambda: ready.store.statistics().arena.packs == 0)


async def test_an_adapter_that_does_not_fit_another_layout_is_refused(ready):
    digest = await ready.load("a")
    other = (await ready.running.register(toy_layout(max_rank=2))).layout_digest
    refusal = await (await ready.executor(layout=other)).acquire(1, digest)
    assert (refusal.code, refusal.reason) == (9, "ADAPTER_DOES_NOT_FIT_BASE")
    assert "rank 4 is above the executor's maximum of 2" in refusal.message
    # The other executor goes on.
    assert (await (await ready.executor()).acquire(1, digest)).lease == 1


async def test_an_adapter_that_is_lost_is_said_and_repaired_by_loading_it(ready):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)
    weights = ready.running.config.data_dir / "objects" / digest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x00")
    executor = await ready.executor()
    refusal = await executor.acquire(1, digest)
    assert (refusal.code, refusal.reason) == (15, "ADAPTER_LOST")
    assert await ready.load("a") == digest
    assert (await executor.acquire(1, digest)).manifest.digest == digest
    assert executor.copy(await executor.acquire(2, digest)) == ready.pack_of(digest)


async def test_an_adapter_that_cannot_be_read_now_is_not_lost(ready, monkeypatch):
    digest = await ready.load("a")
    await ready.running.settled()
    ready.store.warm.drop(digest)

    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    executor = await ready.executor()
    with monkeypatch.context() as patched:
        patched.setattr("adapter_store.packs.recipe.Recipe.fill", fail)
        patched.setattr("adapter_store.tiers.objects.open_adapter", fail)
        refusal = await executor.acquire(1, digest)
    assert (refusal.code, refusal.reason) == (14, "FILES_FAILED")
    assert executor.copy(await executor.acquire(2, digest)) == ready.pack_of(digest)


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
async def test_what_comes_back_by_a_recipe_is_what_it_was_or_lost(ready, damage):
    digest = await ready.load("a")
    pack = ready.pack_of(digest)
    await ready.running.settled()
    executor, key = await ready.executor(), PackKey(layout=ready.layout, digest=digest)
    ready.store.arena.drop(key)
    assert executor.copy(await executor.acquire(1, digest)) == pack
    await executor.release(1)
    await ready.arena_leases(0)
    ready.store.arena.drop(key)
    weights = ready.running.config.data_dir / "objects" / digest / "adapter_model.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-4] + (bytes(4) if damage == "changed" else b""))
    refusal = await executor.acquire(2, digest)
    assert (refusal.code, refusal.reason) == (15, "ADAPTER_LOST")
    assert ready.store.statistics().arena.packs == 0
    assert await ready.load("a") == digest
    assert executor.copy(await executor.acquire(3, digest)) == pack


@pytest.mark.parametrize("shards", [0, 2])
async def test_a_recipe_that_is_out_of_date_costs_no_object(ready, shards):
    """The same content in other files, as when it was lost and loaded from another folder."""
    digest = await ready.load("a")
    pack = ready.pack_of(digest)
    await ready.running.settled()
    ready.store.arena.drop(PackKey(layout=ready.layout, digest=digest))
    folder = ready.running.config.data_dir / "objects" / digest
    (folder / "adapter_model.safetensors").unlink()
    write_adapter(folder, shards=shards, metadata={})
    executor = await ready.executor()
    assert executor.copy(await executor.acquire(1, digest)) == pack
    assert ready.store.statistics().disk.objects == 1


async def test_packs_come_in_chunks_where_the_arena_is_out_of_reach(ready):
    digest = await ready.load("a", rank=64)
    request = store_pb2.FetchPackRequest(digest=digest, layout_digest=ready.layout)
    chunks = [chunk async for chunk in ready.running.packs.FetchPack(request)]
    assert chunks[0].manifest.digest == digest
    data = b"".join(chunk.data for chunk in chunks)
    assert blake3.blake3(data).digest() == blake3.blake3(ready.pack_of(digest)).digest()
    for bad, code in (
        (store_pb2.FetchPackRequest(digest="0" * 64, layout_digest=ready.layout), "NOT_FOUND"),
        (store_pb2.FetchPackRequest(digest=digest, layout_digest="0" * 64), "FAILED_PRECONDITION"),
    ):
        assert (await error_of(ready.running.packs.FetchPack(bad))).code.name == code


async def test_a_slow_reader_keeps_nothing_in_the_arena(ready):
    digest = await ready.load("a", rank=64)
    layout = ready.store.layouts.current
    chunks = PackChunks(catalog=ready.store.catalog, warm=ready.store.warm, arena=ready.store.arena)
    data = b""
    async with chunks.open(digest, layout) as (_, pieces):
        async for piece in pieces:
            data += piece
            # Evicted between two chunks: the next one comes from the pack made anew.
            await ready.running.settled()
            ready.store.warm.drop(digest)
    assert data == ready.pack_of(digest)
    assert ready.store.executors.leases == 0


async def test_an_adapter_that_goes_while_it_is_sent_is_not_found(ready):
    digest = await ready.load("a", rank=64)
    chunks = PackChunks(catalog=ready.store.catalog, warm=ready.store.warm, arena=ready.store.arena)
    async with chunks.open(digest, ready.store.layouts.current) as (_, pieces):
        await ready.running.unload("a")
        await eventually(lambda: not ready.store.catalog.knows(digest))
        with pytest.raises(LorikeetError) as caught:
            await anext(pieces)
    assert caught.value.reason == "UNKNOWN_DIGEST"
