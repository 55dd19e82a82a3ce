"""Followers and watchers of the catalog over gRPC, against a real store."""

import asyncio

import grpc

from adapter_store.peers.followers import Target, Update
from adapter_store.service.encoding import follow_message
from lorikeet.v1 import adapters_pb2, store_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.store_ready import refusal, toy_adapter
from tests.support.store_server import ExecutorClient, FollowerClient, error_of, eventually, running_store
from tests.support.waiting import WAIT_SECONDS

ACTIVE = adapters_pb2.ADAPTER_STATE_ACTIVE
FAILED = adapters_pb2.ADAPTER_STATE_FAILED
LOADING = adapters_pb2.ADAPTER_STATE_LOADING
UNLOADING = adapters_pb2.ADAPTER_STATE_UNLOADING
UNLOADED = adapters_pb2.ADAPTER_STATE_UNLOADED


async def test_a_load_answers_once_every_follower_acts_by_it(running):
    first, second = [await FollowerClient(running).start() for _ in range(2)]
    assert first.pointers == {}
    load = asyncio.ensure_future(running.load("a", toy_adapter(running)))
    await asyncio.gather(first.next(), second.next())
    digest = first.pointers["a"]
    await first.acknowledge()
    assert not load.done()
    await second.acknowledge()
    assert (await load).adapter.digest == digest
    # A follower that goes is not waited for.
    unload = asyncio.ensure_future(running.unload("a"))
    await asyncio.gather(first.next(), second.next())
    assert first.pointers == second.pointers == {}
    await first.acknowledge()
    second.call.cancel()
    await unload
    await eventually(lambda: running.store.statistics().followers == 1)


async def test_a_follower_that_joins_late_gets_everything_at_once(running):
    await running.load("a", toy_adapter(running))
    await running.load("b", toy_adapter(running, "b", seed=1))
    follower = FollowerClient(running)
    await follower.call.write(store_pb2.FollowRequest())
    response = await follower.next()
    assert (response.snapshot, response.revision, sorted(follower.pointers)) == (True, 2, ["a", "b"])


async def test_a_large_catalog_is_made_into_a_message_while_others_go_on():
    targets = [Target(name=f"name-{number}", digest=f"{number}") for number in range(5_000)]
    making = asyncio.ensure_future(follow_message(Update(revision=3, is_snapshot=True, targets=targets)))
    turns = 0
    while not making.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 5
    assert [(each.name, each.digest) for each in making.result().pointers] == [each[:2] for each in targets]


async def test_a_follower_that_comes_back_hears_of_what_was_unloaded_by_force(running):
    for name in "abc":
        await running.load(name, toy_adapter(running, name, seed=ord(name)))
    await running.unload("a", force=True)
    await running.unload("b", force=True)
    await running.unload("c")
    follower = FollowerClient(running)
    await follower.call.write(store_pb2.FollowRequest(acknowledged_revision=4))
    response = await follower.next()
    assert [(pointer.name, pointer.abort_running) for pointer in response.pointers] == [("b", True)]
    assert follower.pointers == {}


async def test_a_stuck_follower_is_cut_off_and_the_load_answers(tmp_path):
    async with running_store(tmp_path, follower_seconds=0.05) as running:
        await running.register()
        follower = await FollowerClient(running).start()
        assert (await running.load("a", toy_adapter(running))).changed
        # The change may have been on its way when it was cut off.
        error = await last_error_of(follower.call)
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "FELL_BEHIND")


async def test_a_stream_that_has_said_nothing_holds_up_no_stop(running):
    calls = [running.catalog.Follow(), running.packs.Lease()]
    await running.packs.GetStatistics(store_pb2.GetPackStatisticsRequest())
    running.store.cut_streams()
    assert [(await error_of(call)).reason for call in calls] == ["SHUTTING_DOWN"] * 2


async def test_a_follower_cannot_acknowledge_the_future(running):
    follower = await FollowerClient(running).start()
    await follower.acknowledge(99)
    error = await error_of(follower.call)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "BAD_ACKNOWLEDGEMENT")
    await eventually(lambda: running.store.statistics().followers == 0)


async def test_a_version_stays_until_no_frontend_asks_for_it_any_more(running):
    layout = (await running.register()).layout_digest
    follower, executor = await FollowerClient(running).start(), await ExecutorClient(running, layout).start()
    load = asyncio.ensure_future(running.load("a", toy_adapter(running)))
    await follower.next()
    await follower.acknowledge()
    old = (await load).adapter.digest
    load = asyncio.ensure_future(running.load("a", toy_adapter(running, seed=1)))
    assert (await executor.next()).digest == old
    await executor.retired(old)
    for _ in range(10):
        await running.packs.GetStatistics(store_pb2.GetPackStatisticsRequest())
    # A request of a frontend that does not know better yet: served, and the executor must let go once more.
    assert (await executor.acquire(1, old)).manifest.digest == old
    await executor.release(1)
    assert (await executor.next()).digest == old
    await follower.next()
    await follower.acknowledge()
    assert (await load).changed
    for _ in range(10):
        await running.packs.GetStatistics(store_pb2.GetPackStatisticsRequest())
    assert running.store.catalog.retiring == {old}
    await executor.retired(old)
    await eventually(lambda: not running.store.catalog.retiring)


async def last_error_of(call) -> LorikeetError:
    try:
        while await asyncio.wait_for(call.read(), WAIT_SECONDS) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc(error)
    raise AssertionError("the stream ended well")


async def events_until(watch, last_state):
    events = []
    while not events or events[-1].adapter.state != last_state:
        events.append(await asyncio.wait_for(watch.read(), WAIT_SECONDS))
        assert events[-1] is not grpc.aio.EOF
    return events


async def test_watchers_see_what_there_is_and_what_happens(running):
    await running.load("a", toy_adapter(running))
    watch = running.catalog.Watch(adapters_pb2.WatchAdaptersRequest())
    (there,) = await events_until(watch, ACTIVE)
    assert (there.adapter.name, there.adapter.revision) == ("a", 1)
    assert not there.HasField("progress")

    await running.load("b", toy_adapter(running, "b", seed=1))
    events = await events_until(watch, ACTIVE)
    stages = [event.progress.stage for event in events[:-1]]
    assert {event.adapter.state for event in events[:-1]} == {LOADING}
    assert stages == sorted(stages)
    assert {adapters_pb2.LoadStage.Name(stage) for stage in stages} == {
        "LOAD_STAGE_COPY",
        "LOAD_STAGE_VALIDATE",
        "LOAD_STAGE_PACK",
        "LOAD_STAGE_PUBLISH",
    }
    assert all(e.progress.bytes_done <= e.progress.bytes_total for e in events[:-1])
    assert events[-1].adapter.digest

    await refusal(running.load("b", "nowhere"))
    failed = (await events_until(watch, FAILED))[-1]
    assert (failed.adapter.name, failed.adapter.digest) == ("b", "")
    assert "NO_SOURCE" in failed.error

    await running.unload("a")
    states = [event.adapter.state for event in await events_until(watch, UNLOADED)]
    assert states == [UNLOADING, UNLOADED]
    watch.cancel()
    await eventually(lambda: running.store.statistics().watchers == 0)


async def test_what_becomes_of_a_load_is_for_the_tenant_that_asked(running):
    """Whoever has the name need not know who else tried what."""
    watch = running.catalog.Watch(adapters_pb2.WatchAdaptersRequest())
    for tenant, state in (("t", ACTIVE), ("u", FAILED)):
        request = adapters_pb2.LoadAdapterRequest(name="a", source=str(toy_adapter(running)), tenant=tenant)
        if state == FAILED:
            assert (await refusal(running.catalog.Load(request))).reason == "NAME_TAKEN"
        else:
            await running.catalog.Load(request)
        seen = await events_until(watch, state)
        assert {event.adapter.tenant for event in seen} == {tenant}
    watch.cancel()


async def test_a_watcher_of_one_name_hears_of_no_other(running):
    watch = running.catalog.Watch(adapters_pb2.WatchAdaptersRequest(name="b"))
    await eventually(lambda: running.store.statistics().watchers == 1)
    await running.load("a", toy_adapter(running))
    await running.load("b", toy_adapter(running))
    events = await events_until(watch, ACTIVE)
    assert {event.adapter.name for event in events} == {"b"}
