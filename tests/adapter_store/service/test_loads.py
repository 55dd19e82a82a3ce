"""Loads over gRPC, against a real store: what is refused, what runs at once, what fails half-way."""

import asyncio
import errno
import gc
import os
import shutil
import threading

import grpc
import pytest

from adapter_store.sources.folder import copy_source
from lorikeet.v1 import adapters_pb2
from tests.support.store_adapters import lora_config, lora_tensors, toy_layout, write_adapter
from tests.support.store_ready import refusal, toy_adapter
from tests.support.store_server import eventually, running_store
from tests.support.waiting import WAIT_SECONDS

ACTIVE = adapters_pb2.ADAPTER_STATE_ACTIVE


async def test_a_load_before_any_layout_says_to_wait(tmp_path):
    async with running_store(tmp_path) as running:
        error = await refusal(running.load("a", toy_adapter(running)))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "NO_LAYOUT")
        assert error.retry_after == 1.0
        assert "start one" in error.message


@pytest.mark.parametrize(
    ("name", "source", "code", "reason"),
    [
        ("", "a", "INVALID_ARGUMENT", "BAD_NAME"),
        ("a b", "a", "INVALID_ARGUMENT", "BAD_NAME"),
        ("a", "", "INVALID_ARGUMENT", "BAD_SOURCE"),
        ("a", "nowhere", "NOT_FOUND", "NO_SOURCE"),
        ("a", "/etc", "PERMISSION_DENIED", "OUTSIDE_ROOTS"),
        ("a", "../data", "PERMISSION_DENIED", "OUTSIDE_ROOTS"),
        ("a", "s3://b/a", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
    ],
)
async def test_malformed_requests_are_refused(running, name, source, code, reason):
    error = await refusal(running.load(name, source))
    assert (error.code.name, error.reason) == (code, reason)


def spoil(folder, how):
    weights = folder / "adapter_model.safetensors"
    match how:
        case "truncated":
            os.truncate(weights, weights.stat().st_size - 1)
        case "lying":
            data = bytearray(weights.read_bytes())
            data[:8] = (1 << 40).to_bytes(8, "little")
            weights.write_bytes(data)
        case "nan":
            tensors = lora_tensors()
            next(iter(tensors.values()))[0, 0] = float("nan")
            write_adapter(folder, tensors)
        case "shape":
            tensors = lora_tensors()
            name = next(iter(tensors))
            tensors[name] = tensors[name][:, :-1].copy()
            write_adapter(folder, tensors)
        case "pickle":
            weights.rename(folder / "adapter_model.bin")
        case "dora":
            write_adapter(folder, config=lora_config(use_dora=True))
        case "json":
            (folder / "adapter_config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "code", "reason", "words"),
    [
        ("truncated", "INVALID_ARGUMENT", "BAD_FILE", "truncated"),
        ("lying", "INVALID_ARGUMENT", "BAD_FILE", "its header claims"),
        ("nan", "INVALID_ARGUMENT", "NOT_FINITE", "NaN or infinity"),
        ("shape", "INVALID_ARGUMENT", "WRONG_SHAPE", "this base needs [rank, 16]"),
        ("pickle", "INVALID_ARGUMENT", "PICKLE", "save_pretrained"),
        ("dora", "INVALID_ARGUMENT", "MISSING_PARTNER", "magnitude"),
        ("json", "INVALID_ARGUMENT", "BAD_CONFIG", "not valid JSON"),
    ],
)
async def test_bad_adapters_are_refused_and_leave_nothing(running, how, code, reason, words):
    good = await running.load("a", toy_adapter(running, "good"))
    await running.settled()
    before = running.store.statistics()
    folder = toy_adapter(running, "bad", seed=1)
    spoil(folder, how)
    error = await refusal(running.load("a", folder))
    assert (error.code.name, error.reason) == (code, reason)
    assert words in error.message
    assert running.store.statistics() == before
    # What was served under the name still is.
    got = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
    assert (got.digest, got.state) == (good.adapter.digest, ACTIVE)


async def test_a_pack_that_no_arena_can_hold_is_refused(running):
    targets = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "up_proj")
    async with running_store(running.config.data_dir.parent / "other", arena_bytes=1 << 20) as other:
        await other.register(toy_layout(layers=40, max_rank=512))
        folder = write_adapter(
            other.config.roots[0] / "big",
            lora_tensors(targets, rank=256, layers=tuple(range(40))),
            lora_config(targets, r=256),
        )
        error = await refusal(other.load("a", folder))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ARENA_TOO_SMALL")
        assert other.store.statistics().disk.objects == 0


async def test_concurrent_loads_of_one_source_share_one_that_waits(running, monkeypatch):
    copies, asked, release = [], [], threading.Event()
    load = running.store.admin.load

    def copy(*args):
        copies.append(1)
        release.wait(WAIT_SECONDS)
        copy_source(*args)

    def ask(request):
        asked.append(1)
        return load(request)

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", copy)
    monkeypatch.setattr(running.store.admin, "load", ask)
    folder = toy_adapter(running)
    loads = [asyncio.ensure_future(running.load("a", folder))]
    await eventually(lambda: copies)
    loads += [asyncio.ensure_future(running.load("a", folder)) for _ in range(7)]
    await eventually(lambda: len(asked) == 8)
    release.set()
    results = await asyncio.gather(*loads)
    assert {result.adapter.digest for result in results} == {results[0].adapter.digest}
    # The first reads already when the others come; those share the next.
    assert len(copies) == 2
    assert running.store.catalog.revision == 1


async def test_a_load_never_answers_with_what_was_there_before_it_was_asked_for(running, monkeypatch):
    copied, release = threading.Event(), threading.Event()

    def slow(*args):
        copy_source(*args)
        copied.set()
        release.wait(WAIT_SECONDS)

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", slow)
    folder = toy_adapter(running)
    first = asyncio.ensure_future(running.load("a", folder))
    await asyncio.to_thread(copied.wait, 20)
    write_adapter(folder, lora_tensors(seed=1))
    second = asyncio.ensure_future(running.load("a", folder))
    await eventually(lambda: running.store.statistics().pending_loads == 2)
    release.set()
    old, new = await asyncio.gather(first, second)
    assert new.changed
    assert new.adapter.digest != old.adapter.digest
    assert running.store.catalog.get("a").digest == new.adapter.digest


async def test_many_concurrent_loads_and_unloads_keep_the_books(running):
    folders = [toy_adapter(running, f"s{seed}", seed=seed) for seed in range(4)]

    outcomes = set()

    async def churn(worker: int) -> None:
        for step in range(6):
            name = f"n{(worker + step) % 5}"
            await running.load(name, folders[(worker * 7 + step) % 4])
            if step % 2:
                outcomes.add(await unload_if_there(running, name))

    await asyncio.gather(*(churn(worker) for worker in range(6)))
    assert outcomes <= {None, grpc.StatusCode.NOT_FOUND}
    store = running.store
    await eventually(lambda: not store.catalog.retiring)
    await running.settled()
    store.check_integrity()
    statistics = store.statistics()
    assert statistics.disk.objects == len(store.catalog.digests)
    for pointer in store.catalog.pointers():
        await running.unload(pointer.name)
    await eventually(lambda: store.statistics().disk.objects == store.statistics().arena.packs == 0)


async def unload_if_there(running, name):
    try:
        await running.unload(name)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


async def test_too_many_loads_are_refused(tmp_path, monkeypatch):
    release = threading.Event()

    def slow(*args):
        release.wait(WAIT_SECONDS)
        return copy_source(*args)

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", slow)
    async with running_store(tmp_path, max_pending_loads=2) as running:
        await running.register()
        folder = toy_adapter(running)
        loads = [asyncio.ensure_future(running.load(name, folder)) for name in ("a", "b")]
        await eventually(lambda: running.store.statistics().pending_loads == 2)
        error = await refusal(running.load("c", folder))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_LOADS")
        assert error.retry_after == 1.0
        release.set()
        assert [result.changed for result in await asyncio.gather(*loads)] == [True, True]


async def test_a_load_goes_on_when_its_caller_goes(running, monkeypatch):
    begun, release = threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        release.wait(WAIT_SECONDS)
        return copy_source(*args)

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", slow)
    load = asyncio.ensure_future(running.load("a", toy_adapter(running)))
    await asyncio.to_thread(begun.wait, 20)
    load.cancel()
    release.set()
    await eventually(lambda: len(running.store.catalog.pointers()) == 1)
    await eventually(lambda: running.store.statistics().pending_loads == 0)


async def test_a_full_disk_is_said_and_leaves_nothing(running, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("adapter_store.sources.folder.copy_bytes", full)
    before = running.store.statistics()
    error = await refusal(running.load("a", toy_adapter(running)))
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
    assert running.store.statistics() == before


async def test_files_that_the_machine_fails_are_said_and_leave_nothing(running, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    before = running.store.statistics()
    with monkeypatch.context() as patched:
        patched.setattr("adapter_store.sources.folder.copy_bytes", fail)
        error = await refusal(running.load("a", toy_adapter(running)))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "FILES_FAILED")
    assert "Input/output error" in error.message
    assert error.retry_after
    assert running.store.statistics() == before
    shutil.rmtree(running.config.data_dir / "incoming")
    error = await refusal(running.load("a", toy_adapter(running)))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "FILES_FAILED")
    (running.config.data_dir / "incoming").mkdir()
    assert (await running.load("a", toy_adapter(running))).changed


@pytest.mark.parametrize("how", ["truncated", "shape", "nan", None])
async def test_a_load_that_is_over_keeps_no_file_open(running, how):
    """What is open stays on the disk, deleted or not."""

    async def load() -> None:
        if how is None:
            await running.load("a", folder)
        else:
            await refusal(running.load("a", folder))
        await running.settled()

    folder = toy_adapter(running)
    if how is not None:
        spoil(folder, how)
    await load()
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/dev/fd"))
        for _ in range(5):
            await load()
        await eventually(lambda: len(os.listdir("/dev/fd")) <= before)
    finally:
        gc.enable()


async def test_a_load_that_cannot_clear_up_still_says_what_was_wrong(running, monkeypatch):
    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files", path)

    folder = toy_adapter(running)
    spoil(folder, "truncated")
    with monkeypatch.context() as patched:
        patched.setattr("adapter_store.tiers.disk._delete", fail)
        error = await refusal(running.load("a", folder))
    assert error.reason == "BAD_FILE"
    # It is there until the next start, and says so.
    assert running.store.statistics().disk.incoming == 1


async def test_a_catalog_that_cannot_be_written_changes_nothing(running, monkeypatch):
    import sqlite3

    def fail(change, settled):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(running.store._database, "commit", fail)
    error = await refusal(running.load("a", toy_adapter(running)))
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "CATALOG_NOT_WRITTEN")
    statistics = running.store.statistics()
    assert (statistics.adapters, statistics.revision) == (0, 0)
    await eventually(lambda: running.store.statistics().disk.objects == 0)
    await eventually(lambda: running.store.statistics().disk.objects == 0)


@pytest.mark.parametrize(
    ("how", "reason"),
    [(None, None), ("truncated", "BAD_FILE"), ("nan", "NOT_FINITE"), ("changed", "SOURCE_CHANGED")],
)
async def test_a_large_file_that_is_packed_while_it_is_copied(running, monkeypatch, how, reason):
    expected = await running.load("a", toy_adapter(running))
    monkeypatch.setattr("adapter_store.sources.folder._LARGE_BYTES", 1)
    monkeypatch.setattr("adapter_store.tiers.files._CHUNK_BYTES", 300)
    monkeypatch.setattr("adapter_store.loads.arrival._STEP_BYTES", 1)
    folder = write_adapter(running.config.roots[0] / "large", lora_tensors())
    if how is None:
        adapter = (await running.load("b", folder)).adapter
        assert (adapter.digest, adapter.pack_bytes) == (expected.adapter.digest, expected.adapter.pack_bytes)
    elif how == "changed":
        monkeypatch.setattr("adapter_store.sources.folder._is_unchanged", lambda path, before: False)
        assert (await refusal(running.load("b", folder))).reason == reason
    else:
        spoil(folder, how)
        assert (await refusal(running.load("b", folder))).reason == reason
    await eventually(lambda: running.store.statistics().disk.incoming == 0)
    await eventually(lambda: running.store.statistics().arena.packs == 1)
