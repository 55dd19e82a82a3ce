"""Prefixes that leave the cache for host memory, and come back."""

from __future__ import annotations

import numpy as np
import pytest

from executor.control.host_tier import HostTier
from executor.control.plan import PageCopies
from executor.control.prefix_tree import NO_PAGE
from executor.control.request import Namespace
from tests.support.control_world import World, expected, ids, make_request

BASE = Namespace("", "")
SIZE = 2


def tier(pages: int) -> HostTier:
    return HostTier(pages, cache_pages=16, page_size=SIZE)


def pairs(copies: PageCopies) -> list[tuple[int, int]]:
    return list(zip(copies.sources.tolist(), copies.targets.tolist(), strict=True))


def test_a_path_is_followed_from_the_cache_into_the_host() -> None:
    host = tier(4)
    tokens = ids(1, 2, 3, 4, 5, 6)
    host.entered(BASE, NO_PAGE, tokens, [7, 8, 9])
    host.save(ids(9, 8))
    saves, restores = host.take_copies()
    assert pairs(saves) == [(9, 0), (8, 1)]
    assert not len(restores)
    assert host.match(BASE, 7, tokens[2:], 2) == [1, 0]
    assert host.match(BASE, 7, tokens[2:], 1) == [1]
    assert host.match(BASE, NO_PAGE, tokens, 3) == [], "its first page is in the cache alone"
    host.restore([1, 0], ids(3, 4))
    assert pairs(host.take_copies()[1]) == [(1, 3), (0, 4)]
    host.check_integrity()


def test_a_page_is_saved_once() -> None:
    host = tier(4)
    for page in (7, 5):
        host.entered(BASE, NO_PAGE, ids(1, 2), [page])
        host.save(ids(page))
    assert pairs(host.take_copies()[0]) == [(7, 0)]


@pytest.mark.parametrize("other", [Namespace("", "salt"), Namespace("d", ""), Namespace("dsalt", "")])
def test_namespaces_share_nothing(other: Namespace) -> None:
    host = tier(4)
    host.entered(Namespace("d", "salt"), NO_PAGE, ids(1, 2), [7])
    host.save(ids(7))
    assert host.match(other, NO_PAGE, ids(1, 2), 1) == []
    assert host.match(Namespace("d", "salt"), NO_PAGE, ids(1, 2), 1) == [0]


def test_the_least_recently_used_page_goes_and_a_parent_after_its_child() -> None:
    host = tier(3)
    host.entered(BASE, NO_PAGE, ids(1, 2, 3, 4), [0, 1])
    host.entered(BASE, NO_PAGE, ids(5, 6), [2])
    host.save(ids(1, 0, 2))
    host.take_copies()
    assert host.match(BASE, NO_PAGE, ids(1, 2, 3, 4), 2) == [1, 0]
    host.take_copies()
    for page, tokens in ((3, ids(7, 8)), (4, ids(9, 9))):
        host.entered(BASE, NO_PAGE, tokens, [page])
        host.save(ids(page))
        host.take_copies()
    assert host.match(BASE, NO_PAGE, ids(5, 6), 1) == []
    assert host.match(BASE, NO_PAGE, ids(1, 2, 3, 4), 2) == [1]
    host.check_integrity()


def test_what_the_plan_needs_is_not_overwritten_by_it() -> None:
    host = tier(1)
    host.entered(BASE, NO_PAGE, ids(1, 2), [0])
    host.save(ids(0))
    host.entered(BASE, NO_PAGE, ids(3, 4), [1])
    host.save(ids(1))
    assert pairs(host.take_copies()[0]) == [(0, 0)], "there was no page left for the second"
    assert host.match(BASE, NO_PAGE, ids(1, 2), 1) == [0]
    host.save(ids(1))
    saves, _ = host.take_copies()
    assert not len(saves), "the first is being restored"
    host.save(ids(1))
    assert pairs(host.take_copies()[0]) == [(1, 0)]
    host.check_integrity()


def test_a_dropped_digest_gives_its_pages_back() -> None:
    host = tier(2)
    for page, salt in enumerate(("", "x")):
        host.entered(Namespace("d", salt), NO_PAGE, ids(1, 2), [page])
    host.save(ids(0, 1))
    host.take_copies()
    host.drop("d")
    assert host.statistics().used == 0
    assert host.match(Namespace("d", ""), NO_PAGE, ids(1, 2), 1) == []
    host.check_integrity()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_conversation_goes_on_after_others_took_its_pages(overlap: bool) -> None:
    world = World(pages=10, host_pages=20, overlap=overlap)
    prompts = [np.arange(start, start + 16) for start in (0, 20, 40)]
    for turn in range(2):
        for number, prompt in enumerate(prompts):
            request = make_request(10 * turn + number, prompt, max_tokens=6)
            world.submit(request)
            world.settle()
            heard = world.of(request)
            assert heard.token_ids == expected(request, world.config)[0]
            assert heard.admitted[0].cached_tokens == (12, 20)[turn] * turn, (
                "all full pages but the last token"
            )
            prompts[number] = np.array([*prompt, *heard.token_ids, 1])
    assert world.scheduler.statistics().host.restored >= 10
    world.assert_empty()


def test_a_retired_adapter_leaves_nothing_in_host_memory() -> None:
    world = World(packs={"a": 8, "b": 8}, pages=8, host_pages=20)
    for number, digest in enumerate("aabb"):
        world.submit(
            make_request(number, np.arange(20 * (number % 2), 20 * (number % 2) + 20), digest=digest)
        )
        world.settle()
    assert world.scheduler.statistics().host.used > 0
    for digest in "ab":
        world.loader.retire(digest)
    world.step(3)
    assert world.scheduler.statistics().host.used == 0
