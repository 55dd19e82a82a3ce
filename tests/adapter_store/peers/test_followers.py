import asyncio

import pytest

from adapter_store.peers.followers import Followers, Target
from rpc.errors import LorikeetError


def target(name: str, digest: str) -> Target:
    return Target(name=name, digest=digest)


async def test_a_follower_hears_of_each_name_once():
    followers, names = Followers(1.0), [target("a", "1"), target("b", "2")]
    follower = followers.join(5, lambda: names)
    followers.publish(6, target("a", ""))
    followers.publish(7, target("c", "3"))
    names = [target("b", "2"), target("c", "3")]
    update = await follower.next()
    assert update is not None
    assert (update.revision, update.is_snapshot) == (7, True)
    assert update.targets == [target("b", "2"), target("c", "3")]
    followers.publish(8, target("b", ""))
    followers.publish(9, target("c", "4"))
    followers.publish(10, target("c", "5"))
    update = await follower.next()
    assert update is not None
    assert (update.revision, update.is_snapshot) == (10, False)
    assert update.targets == [target("b", ""), target("c", "5")]


async def test_a_forced_removal_is_told_even_when_the_name_is_there_again():
    followers = Followers(1.0)
    follower = followers.join(5, lambda: [target("a", "1")])
    await follower.next()
    gone = Target(name="a", abort_running=True)
    followers.publish(6, gone)
    followers.publish(7, target("a", "2"))
    followers.publish(8, target("a", "3"))
    update = await follower.next()
    assert update is not None
    assert update.targets == [gone, target("a", "3")]
    followers.publish(9, gone)
    followers.publish(10, target("a", "4"))
    followers.publish(11, target("a", ""))
    update = await follower.next()
    assert update is not None
    assert update.targets == [gone]


async def test_a_follower_that_was_away_is_told_of_forced_removals_meanwhile():
    followers = Followers(1.0)
    gone = Target(name="a", abort_running=True)
    followers.publish(6, gone)
    followers.publish(7, Target(name="b", abort_running=True))
    followers.publish(8, target("b", "2"))
    followers.publish(9, target("c", ""))
    names = [target("b", "2"), target("d", "4")]
    for acts_by, missed in ((5, ["a", "b"]), (6, ["b"]), (7, []), (0, [])):
        follower = followers.join(9, lambda: names, acts_by=acts_by)
        update = await follower.next()
        assert update is not None
        assert update.is_snapshot
        assert sorted(each.name for each in update.targets if each.abort_running) == missed
        assert [each for each in update.targets if not each.abort_running] == names
    # One that comes while a snapshot waits to be sent is no different.
    follower = followers.join(9, lambda: names[:1], acts_by=9)
    followers.publish(10, Target(name="d", abort_running=True))
    update = await follower.next()
    assert update is not None
    assert update.targets == [Target(name="d", abort_running=True), target("b", "2")]


async def test_waiting_for_followers_ends_when_all_have_acknowledged_or_left():
    followers = Followers(60.0)
    await followers.caught_up(3)
    first, second = followers.join(3, list), followers.join(3, list)
    waiting = asyncio.ensure_future(followers.caught_up(3))
    await first.next()
    followers.acknowledge(first, 3)
    await asyncio.sleep(0)
    assert not waiting.done()
    followers.leave(second)
    await waiting


async def test_a_follower_that_does_not_acknowledge_is_cut():
    followers = Followers(0.01)
    follower = followers.join(3, list)
    await followers.caught_up(3)
    assert len(followers) == 0
    with pytest.raises(LorikeetError, match="FELL_BEHIND"):
        await follower.next()


async def test_acknowledging_what_was_not_sent_is_refused():
    followers = Followers(1.0)
    follower = followers.join(3, list)
    with pytest.raises(LorikeetError, match="BAD_ACKNOWLEDGEMENT"):
        followers.acknowledge(follower, 3)
    await follower.next()
    followers.acknowledge(follower, 3)
    followers.acknowledge(follower, 1)
    assert follower.acknowledged == 3
