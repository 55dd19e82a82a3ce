"""Requests and the adapters they wait for."""

from __future__ import annotations

import numpy as np
import pytest

from executor.control.loader import LoadFailed
from executor.control.mailbox import Abort, Hint
from executor.control.request import Code, Request
from tests.support.control_world import World, expected, ids, make_request, story

PROMPT = np.arange(10, 40)
both_depths = pytest.mark.parametrize("overlap", [False, True])


def check_answers(world: World, *requests: Request) -> None:
    for request in requests:
        assert (world.of(request).token_ids, world.of(request).finish) == expected(request, world.config)


def slots(world: World) -> list[str]:
    return [row.digest if row else "" for row in world.loader.slot_rows]


def test_a_request_waits_for_its_adapter_without_pages_while_others_run():
    world = World(packs={"a": 10}, delay=lambda: 3)
    base, adapted = make_request(1, max_tokens=20), make_request(2, digest="a", max_tokens=3)
    world.submit(adapted, base)
    world.step(4)
    assert world.scheduler.statistics().running == 1
    assert world.scheduler.statistics().pages_held == 2
    assert world.story.splitlines()[-1] == "3: 1@7+1*"
    world.settle()
    check_answers(world, base, adapted)
    assert world.of(base).token_ids[:3] != world.of(adapted).token_ids, "the adapter changes the answer"


def test_one_prompt_through_two_adapters_and_the_base_shares_nothing():
    world = World(packs={"a": 10, "b": 10})
    requests = [
        make_request(number, PROMPT[:13], digest=digest) for number, digest in enumerate(["a", "b", "", "a"])
    ]
    for request in requests:
        world.submit(request)
        world.settle()
    assert [world.of(request).admitted[0].cached_tokens for request in requests] == [0, 0, 0, 12]
    check_answers(world, *requests)


@both_depths
def test_adapters_mix_in_one_batch(overlap: bool):
    world = World(packs={"a": 10, "b": 10}, overlap=overlap)
    requests = [
        make_request(number, digest=digest, max_tokens=9) for number, digest in enumerate(["a", "b", "", "b"])
    ]
    world.submit(*requests)
    world.settle()
    check_answers(world, *requests)
    assert any(line.count("@") == 4 for line in world.story.splitlines())


@both_depths
def test_more_adapters_than_slots(overlap: bool):
    names = [f"adapter-{number}" for number in range(9)]
    world = World(packs=dict.fromkeys(names, 20), overlap=overlap, delay=lambda: 1)
    requests = [make_request(number, digest=names[number % 9], max_tokens=5) for number in range(36)]
    world.submit(*requests)
    world.settle()
    check_answers(world, *requests)
    world.assert_empty()


@both_depths
@pytest.mark.parametrize("policy", ["fair", "pack"])
def test_busy_adapters_must_make_room_for_one_that_waits(overlap: bool, policy: str):
    """Two adapters keep both slots busy without a break; a third still gets its turn, and in bounded time."""
    world = World(
        packs={"a": 10, "b": 10, "late": 10},
        overlap=overlap,
        max_waiting=500,
        max_running=8,
        pages=64,
        slot_quantum=20,
        queue_policy=policy,
    )
    late = make_request(0, digest="late", max_tokens=2)
    requests: list[Request] = []

    def keep_busy() -> None:
        for digest in ("a", "b"):
            length = 5 + len(requests) % 11
            requests.append(make_request(len(requests) + 1, digest=digest, max_tokens=length))
            world.submit(requests[-1])

    for _ in range(10):
        keep_busy()
        world.step()
    world.submit(late)
    waited = 0
    while not world.of(late).admitted:
        keep_busy()
        world.step()
        waited += 1
        assert waited < 250, "the third adapter starves"
    world.settle()
    check_answers(world, late, *requests)


def test_a_large_adapter_drains_several_small_ones():
    world = World(
        packs={"a": 20, "b": 20, "c": 20, "large": 60}, adapter_slots=4, pool_units=64, slot_quantum=0
    )
    small = [
        make_request(number, digest=digest, max_tokens=12) for number, digest in enumerate(["a", "b", "c"])
    ]
    large = make_request(9, digest="large")
    world.submit(*small)
    world.step(3)
    world.submit(large)
    more = [make_request(10 + number, digest=digest) for number, digest in enumerate(["a", "b", "c"])]
    world.submit(*more)
    world.settle()
    order = [index for line in world.story.splitlines() for index in (9, 10, 11, 12) if f"{index}@0" in line]
    assert order[0] == 9, "those it waits for take nobody new meanwhile"
    check_answers(world, large, *small, *more)


@pytest.mark.parametrize("eviction", ["gdsf", "lru"])
def test_a_large_adapter_is_not_starved_by_a_stream_of_small_ones(eviction: str):
    """It takes the whole pool, and ever new small adapters would fit into any hole."""
    small = [f"small-{number}" for number in range(40)]
    world = World(
        packs={"large": 64} | dict.fromkeys(small, 12),
        adapter_slots=4,
        pool_units=64,
        pool_eviction=eviction,
        max_waiting=500,
        slot_quantum=20,
        delay=lambda: 1,
    )
    large = make_request(0, digest="large", max_tokens=2)
    sent = 0
    while not world.of(large).over:
        for _ in range(2 if sent < 400 else 0):
            sent += 1
            world.submit(make_request(sent, digest=small[sent % 40], max_tokens=5))
        if sent == 20:
            world.submit(large)
        world.step()
        assert sent < 400, "the large adapter starves"
    check_answers(world, large)


def test_an_adapter_stays_while_it_is_wanted_again():
    world = World(packs={"a": 10})
    for number in range(3):
        world.submit(make_request(number, digest="a"))
        world.settle()
    assert world.loader.asked == ["a"]
    assert slots(world) == ["a", ""]


def test_an_unknown_adapter_fails_its_requests_only():
    world = World(packs={"a": 10})
    lost = [make_request(number, digest="unknown") for number in range(3)]
    kept = make_request(5, digest="a")
    world.submit(*lost, kept)
    world.settle()
    for request in lost:
        failed = world.of(request).failed
        assert failed is not None
        assert (failed.code, failed.reason) == (Code.NOT_FOUND, "ADAPTER_NOT_FOUND")
    check_answers(world, kept)
    assert world.loader.held == 1


def test_an_adapter_larger_than_the_pool_is_refused_with_both_sizes():
    world = World(packs={"a": 65})
    request = make_request(1, digest="a")
    world.submit(request)
    world.settle()
    failed = world.of(request).failed
    assert failed is not None
    assert failed.reason == "ADAPTER_TOO_LARGE"
    assert "8320 bytes" in failed.message
    assert "8192" in failed.message
    assert world.loader.held == 0


def test_a_copy_that_fails_gives_everything_back():
    world = World(packs={"a": 30, "b": 64}, delay=lambda: 1)
    request = make_request(1, digest="a")
    world.submit(request)
    world.step(3)
    assert world.scheduler.statistics().adapter_units_free == 34
    # Instead of the copy's end, which is to come.
    failure = LoadFailed(digest="a", code=Code.UNAVAILABLE, reason="STORE_GONE", message="try again")
    world.loader._events = [(0, failure)]
    world.step()
    failed = world.of(request).failed
    assert failed is not None
    assert failed.code == Code.UNAVAILABLE
    whole = make_request(2, digest="b")
    world.submit(whole)
    world.settle()
    check_answers(world, whole)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_whoever_waits_for_an_adapter_can_leave(steps: int):
    """At any point of the adapter's way in: nothing is left but, perhaps, an idle resident adapter."""
    world = World(packs={"a": 10}, delay=lambda: 1)
    request = make_request(1, digest="a", max_tokens=30)
    world.submit(request)
    world.step(steps)
    world.post(Abort(request.key))
    world.step(6)
    world.assert_empty()
    assert world.scheduler.statistics().adapters_arriving == 0
    assert world.loader.held == world.scheduler.statistics().adapters_resident


def test_retiring_an_idle_adapter_frees_slot_and_prefixes_at_once():
    world = World(packs={"a": 10})
    world.submit(make_request(1, PROMPT[:12], digest="a"), make_request(2, PROMPT[:12], digest="a", salt="s"))
    world.settle()
    assert world.scheduler.statistics().pages_cached > 0
    world.loader.retire("a")
    world.step(2)
    world.assert_empty(cached=False)
    assert slots(world) == ["", ""]
    assert world.loader.retired_digests == ["a"]
    assert world.loader.held == 0


@both_depths
def test_running_requests_end_on_a_retired_adapter(overlap: bool):
    world = World(packs={"a": 10}, overlap=overlap)
    running, queued = make_request(1, digest="a", max_tokens=12), make_request(2, digest="a", max_tokens=3)
    world.submit(make_request(0, PROMPT[:20], digest="a"))
    world.settle()
    world.submit(running, queued)
    world.step(4)
    assert world.scheduler.statistics().pages_cached > 4
    world.loader.retire("a")
    world.step(2)
    assert world.scheduler.statistics().pages_cached <= 2, "only what the two requests hold"
    assert world.loader.retired_digests == []
    world.settle()
    world.step(2)
    check_answers(world, running, queued)
    assert world.loader.retired_digests == ["a"]
    world.assert_empty(cached=False)


def test_a_hint_brings_an_adapter_where_there_is_room():
    world = World(packs={"a": 10}, delay=lambda: 1)
    world.post(Hint("a"), Hint(""), Hint("a"), Hint("unknown"))
    world.step(9)
    assert world.loader.asked == ["a", "unknown"]
    assert slots(world) == ["a", ""]
    request = make_request(1, digest="a")
    world.submit(request)
    world.settle()
    assert world.of(request).admitted[0].was_resident
    check_answers(world, request)


def test_a_hint_evicts_nothing_that_is_worth_more():
    world = World(packs={"a": 10, "b": 10, "c": 10})
    for number, digest in enumerate(("a", "b")):
        world.submit(make_request(number, digest=digest))
        world.settle()
    world.post(Hint("c"))
    world.step(5)
    assert slots(world) == ["a", "b"]
    assert world.loader.asked[-1] == "c"
    assert world.loader.held == 2, "the lease is given back"


def test_requests_come_before_hints():
    """Hints hold no lease and no room that a request needs."""
    world = World(packs={"a": 10, "b": 60, "c": 10}, max_leases=1, delay=lambda: 3)
    world.post(Hint("a"), Hint("b"))
    world.step(2)
    assert world.scheduler.statistics().adapters_arriving == 1
    request = make_request(1, digest="c", max_tokens=2)
    world.submit(request)
    world.step()
    assert [adapter.digest for adapter in world.scheduler._slots.arriving] in ([], ["c"])
    world.settle()
    check_answers(world, request)
    world.step(30)
    assert world.scheduler.statistics().adapters_arriving == 0


def test_a_hinted_adapter_that_is_asked_for_comes_on():
    world = World(packs={"a": 10}, delay=lambda: 3)
    world.post(Hint("a"))
    world.step(2)
    request = make_request(1, digest="a", max_tokens=2)
    world.submit(request)
    assert world.settle() < 12
    check_answers(world, request)
    assert world.scheduler.statistics().pool_loads == 1, "single flight"


def test_a_thousand_hints_are_bounded():
    names = [f"adapter-{number}" for number in range(1000)]
    world = World(packs=dict.fromkeys(names, 10), delay=lambda: 2)
    world.post(*(Hint(name) for name in names))
    for _ in range(200):
        world.step()
        assert world.scheduler.statistics().adapters_arriving <= 4 + 2, "leased, and being copied"
    assert world.scheduler.statistics().adapters_resident == 2


def test_leases_are_few_and_go_in_order():
    names = [f"adapter-{number}" for number in range(8)]
    world = World(packs=dict.fromkeys(names, 10), max_leases=2, delay=lambda: 2)
    requests = [make_request(number, digest=names[number], max_tokens=1) for number in range(8)]
    world.submit(*requests)
    for _ in range(200):
        world.step()
        assert world.scheduler.statistics().adapters_arriving <= 2
    check_answers(world, *requests)
    firsts = [int(line.split()[1].split("@")[0]) for line in world.story.splitlines()]
    assert firsts == sorted(firsts)


def test_fair_among_adapters_as_a_story():
    """Six requests of one adapter come before two of another, and each is served in turn."""
    world = World(packs={"a": 10, "b": 10}, max_running=1)
    requests = [make_request(number, ids(number, 1, 2), digest="a", max_tokens=1) for number in range(1, 5)]
    requests += [make_request(number, ids(number, 1, 2), digest="b", max_tokens=1) for number in (11, 12)]
    world.submit(*requests)
    world.settle()
    assert world.story == story("""
        0: 1@0+3*
        1: 11@0+3*
        2: 2@0+3*
        3: 12@0+3*
        4: 3@0+3*
        5: 4@0+3*
    """)
