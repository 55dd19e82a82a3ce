"""The catalog's calls over gRPC, against a real store."""

import asyncio
import threading

from adapter_store.sources.folder import copy_source
from lorikeet.v1 import adapters_pb2, store_pb2
from rpc.errors import not_found
from tests.support.store_ready import refusal, toy_adapter
from tests.support.store_server import eventually, running_store
from tests.support.waiting import WAIT_SECONDS

ACTIVE = adapters_pb2.ADAPTER_STATE_ACTIVE
UNLOADED = adapters_pb2.ADAPTER_STATE_UNLOADED


async def test_a_load_is_reported(running):
    response = await running.load("team/a", toy_adapter(running))
    assert response.changed
    loaded = response.adapter
    assert (loaded.name, loaded.state, loaded.revision, loaded.max_rank) == ("team/a", ACTIVE, 1, 4)
    assert loaded.pack_bytes == 4608
    assert loaded.source == str(running.config.roots[0] / "a")
    assert [(m.module, m.rank, m.scaling) for m in loaded.report.modules][:2] == [
        ("model.layers.0.self_attn.q_proj", 4, 2.0),
        ("model.layers.0.self_attn.v_proj", 4, 2.0),
    ]
    got = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="team/a"))
    assert (got.digest, got.report, got.load_time) == (loaded.digest, loaded.report, loaded.load_time)
    listed = await running.catalog.List(adapters_pb2.ListAdaptersRequest())
    assert [a.name for a in listed.adapters] == ["team/a"]
    assert not listed.adapters[0].report.modules
    assert (listed.next_page_token, listed.adapters[0].digest) == ("", loaded.digest)


async def test_loading_the_same_content_again_changes_nothing(running):
    first = await running.load("a", toy_adapter(running))
    again = await running.load("a", toy_adapter(running, "copy"))
    assert not again.changed
    assert again.adapter.digest == first.adapter.digest
    assert again.adapter.revision == first.adapter.revision == 1
    assert again.adapter.source == first.adapter.source
    statistics = running.store.statistics()
    assert (statistics.disk.objects, statistics.disk.incoming) == (1, 0)


async def test_new_content_moves_the_name_and_the_old_version_goes(running):
    old = await running.load("a", toy_adapter(running))
    new = await running.load("a", toy_adapter(running, seed=1))
    assert new.changed
    assert new.adapter.digest != old.adapter.digest
    assert new.adapter.revision == 2
    await eventually(lambda: not running.store.catalog.retiring)
    await eventually(lambda: running.store.statistics().disk.incoming == 0)
    # The old one can be rolled back to; the one before it goes.
    third = await running.load("a", toy_adapter(running, seed=2))
    assert third.adapter.previous[0].digest == new.adapter.digest
    await eventually(lambda: not running.store.catalog.retiring)
    await eventually(lambda: running.store.statistics().disk.objects == 2)
    # Back to what it was: a version that was removed is simply loaded again.
    back = await running.load("a", toy_adapter(running))
    assert (back.adapter.digest, back.adapter.revision) == (old.adapter.digest, 4)


async def test_two_names_share_one_object(running):
    first = await running.load("a", toy_adapter(running))
    second = await running.load("b", toy_adapter(running))
    assert first.adapter.digest == second.adapter.digest
    gone = await running.unload("a")
    assert gone.adapter.state == UNLOADED
    assert running.store.statistics().disk.objects == 1
    await running.unload("b")
    await eventually(lambda: running.store.statistics().disk.objects == 0)


async def test_unloading_gives_everything_back(running):
    before = running.store.statistics()
    await running.load("a", toy_adapter(running))
    await running.settled()
    unloaded = (await running.unload("a")).adapter
    assert (unloaded.name, unloaded.revision) == ("a", 2)
    await eventually(lambda: not running.store.catalog.retiring)
    await eventually(lambda: running.store.statistics().disk == before.disk)
    after = running.store.statistics()
    assert after.arena == before.arena
    assert after.adapters == 0
    error = await refusal(running.unload("a"))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    error = await refusal(running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a")))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


async def test_remote_sources_that_stall_keep_no_folder_waiting(tmp_path, monkeypatch):
    release = threading.Event()

    class Stalling:
        def find(self, names):
            release.wait(WAIT_SECONDS)
            raise not_found("NO_CONFIG", "nothing after all")

    monkeypatch.setattr("adapter_store.sources.object_store.ObjectStore", lambda url: Stalling())
    async with running_store(tmp_path, workers=1, sources=("s3://bucket/",)) as running:
        await running.register()
        stalled = [asyncio.ensure_future(running.load(name, "s3://bucket/x")) for name in ("a", "b")]
        await eventually(lambda: running.store.statistics().running_work == 2)
        assert (await running.load("c", toy_adapter(running))).changed
        assert not any(load.done() for load in stalled)
        release.set()
        assert {(await refusal(load)).reason for load in stalled} == {"NO_CONFIG"}


async def test_lists_come_in_pages(running):
    folder = toy_adapter(running)
    for number in range(5):
        await running.load(f"n{number}", folder)
    request = adapters_pb2.ListAdaptersRequest(page_size=2)
    names = []
    while True:
        page = await running.catalog.List(request)
        names.append([a.name for a in page.adapters])
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert names == [["n0", "n1"], ["n2", "n3"], ["n4"]]
    error = await refusal(running.catalog.List(adapters_pb2.ListAdaptersRequest(page_token="x")))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN")


async def test_prefetching_brings_packs_into_memory(running):
    digest = (await running.load("a", toy_adapter(running))).adapter.digest
    for reference in ("a", f"b3:{digest}"):
        await running.settled()
        assert running.store.statistics().arena.packs == 1
        running.store.warm.drop(digest)
        got = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
        assert got.tier == adapters_pb2.ADAPTER_TIER_COLD
        await running.catalog.Prefetch(adapters_pb2.PrefetchAdapterRequest(adapter=reference))
    await running.settled()
    got = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
    assert got.tier == adapters_pb2.ADAPTER_TIER_WARM
    error = await refusal(running.catalog.Prefetch(adapters_pb2.PrefetchAdapterRequest(adapter="b")))
    assert error.code.name == "NOT_FOUND"


async def test_reports_keep_what_is_worth_knowing(running):
    folder = toy_adapter(running, base_model_name_or_path="org/other")
    (folder / "chat_template.jinja").write_text("x")
    loaded = (await running.load("a", folder)).adapter
    assert len(loaded.report.notes) == 2
    got = await running.catalog.Get(adapters_pb2.GetAdapterRequest(name="a"))
    assert got.report == loaded.report


async def test_a_chat_template_belongs_to_the_version(running):
    folder = toy_adapter(running)
    plain = (await running.load("a", folder)).adapter
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    loaded = await running.load("a", folder)
    assert loaded.changed
    assert loaded.adapter.digest != plain.digest
    assert loaded.adapter.has_chat_template
    found = await running.catalog.GetChatTemplate(
        store_pb2.GetChatTemplateRequest(digest=loaded.adapter.digest)
    )
    assert found.text == "{{ messages }}"
    for digest in (plain.digest, "0" * 64, ""):
        call = running.catalog.GetChatTemplate(store_pb2.GetChatTemplateRequest(digest=digest))
        error = await refusal(call)
        assert (error.code.name, error.reason) == ("NOT_FOUND", "NO_CHAT_TEMPLATE")


async def test_a_chat_template_waits_for_no_load(tmp_path, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    async with running_store(tmp_path, workers=1) as running:
        await running.register()
        folder = toy_adapter(running)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        digest = (await running.load("a", folder)).adapter.digest
        monkeypatch.setattr(
            "adapter_store.sources.folder.copy_source",
            lambda *args: (begun.set(), release.wait(WAIT_SECONDS), copy_source(*args)),
        )
        load = asyncio.ensure_future(running.load("b", folder))
        await asyncio.to_thread(begun.wait, 20)
        request = store_pb2.GetChatTemplateRequest(digest=digest)
        assert (await running.catalog.GetChatTemplate(request, timeout=WAIT_SECONDS)).text == "{{ messages }}"
        release.set()
        await load


async def test_reports_say_what_each_module_brings(running):
    report = (await running.load("a", toy_adapter(running))).adapter.report
    assert {tuple(module.parts) for module in report.modules} == {(adapters_pb2.ADAPTED_PART_LORA,)}
    assert all(module.delta_norm > 1 for module in report.modules)
