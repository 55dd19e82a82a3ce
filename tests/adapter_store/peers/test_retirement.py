import asyncio

from adapter_store.peers.retirement import Retirement
from adapter_store.tiers.holds import Holds
from tests.support.waiting import WAIT_SECONDS


class Executor:
    def __init__(self) -> None:
        self.told: list[str] = []

    def retire(self, digest: str) -> None:
        self.told.append(digest)


class Rig:
    def __init__(self, grace: float = 0.0) -> None:
        self.holds = Holds()
        self.gone: list[str] = []
        self.went = asyncio.Event()
        self.in_use = False
        self.retirement = Retirement(holds=self.holds, grace_seconds=grace, finish=self._finish)

    async def _finish(self, digest: str) -> bool:
        if self.in_use:
            self.in_use = False
            return False
        self.gone.append(digest)
        self.went.set()
        return True

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_without_executors_a_digest_goes_at_once():
    rig = Rig()
    rig.retirement.begin("d")
    await rig.settle()
    assert rig.gone == ["d"]
    assert len(rig.retirement) == 0


async def test_every_executor_has_to_answer():
    rig = Rig()
    first, second = Executor(), Executor()
    rig.retirement.join(first)
    rig.retirement.join(second)
    rig.retirement.begin("d")
    assert first.told == second.told == ["d"]
    rig.retirement.answered(first, "d")
    rig.retirement.answered(first, "other")
    await rig.settle()
    assert rig.gone == []
    rig.retirement.answered(second, "d")
    await rig.settle()
    assert rig.gone == ["d"]


async def test_an_executor_that_comes_is_told_and_waited_for():
    rig = Rig()
    first, second = Executor(), Executor()
    rig.retirement.join(first)
    rig.retirement.begin("d")
    rig.retirement.join(second)
    rig.retirement.answered(first, "d")
    await rig.settle()
    assert (second.told, rig.gone) == (["d"], [])
    rig.retirement.answered(second, "d")
    await rig.settle()
    assert rig.gone == ["d"]


async def test_an_executor_that_left_may_come_back_for_a_while():
    rig = Rig(grace=60.0)
    executor = Executor()
    rig.retirement.join(executor)
    rig.retirement.begin("d")
    rig.retirement.leave(executor)
    await rig.settle()
    assert rig.gone == []
    again = Executor()
    rig.retirement.join(again)
    # As when the grace period is over.
    rig.retirement._retiring["d"].not_before = 0.0
    rig.retirement.poke("d")
    await rig.settle()
    assert (again.told, rig.gone) == (["d"], [])
    rig.retirement.answered(again, "d")
    await rig.settle()
    assert rig.gone == ["d"]
    await rig.retirement.close()


async def test_an_executor_that_leases_what_it_dropped_has_to_answer_again():
    rig = Rig()
    executor, other = Executor(), Executor()
    rig.retirement.join(executor)
    rig.retirement.join(other)
    rig.retirement.begin("d")
    rig.retirement.answered(executor, "d")
    rig.retirement.lent(executor, "d")
    rig.retirement.lent(other, "d")  # has not answered yet: told once is enough
    rig.retirement.lent(executor, "e")  # does not retire
    assert (executor.told, other.told) == (["d", "d"], ["d"])
    rig.retirement.answered(other, "d")
    await rig.settle()
    assert rig.gone == []
    rig.retirement.answered(executor, "d")
    await rig.settle()
    assert rig.gone == ["d"]


async def test_an_executor_that_stays_away_is_not_waited_for():
    rig = Rig(grace=0.01)
    executor = Executor()
    rig.retirement.join(executor)
    rig.retirement.begin("d")
    rig.retirement.leave(executor)
    await asyncio.wait_for(rig.went.wait(), WAIT_SECONDS)


async def test_files_in_use_are_not_removed():
    rig = Rig()
    with rig.holds.hold("d"), rig.holds.hold("d"):
        rig.retirement.begin("d")
        await rig.settle()
        assert rig.gone == []
    await rig.settle()
    assert rig.gone == ["d"]


async def test_files_that_came_into_use_at_the_last_moment_are_removed_later():
    rig = Rig()
    rig.in_use = True
    rig.retirement.begin("d")
    await asyncio.wait_for(rig.went.wait(), WAIT_SECONDS)
    assert rig.gone == ["d"]


async def test_a_digest_that_is_loaded_again_stays():
    rig = Rig()
    executor = Executor()
    rig.retirement.join(executor)
    rig.retirement.begin("d")
    rig.retirement.revive("d")
    rig.retirement.answered(executor, "d")
    await rig.settle()
    assert rig.gone == []


async def test_a_failure_to_remove_is_left_for_the_next_start():
    holds = Holds()

    async def fail(digest: str) -> bool:
        raise OSError("disk")

    retirement = Retirement(holds=holds, grace_seconds=0.0, finish=fail)
    retirement.begin("d")
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(retirement) == 1
    await retirement.close()


async def test_after_a_restart_executors_get_their_grace():
    waiting, rig = Rig(grace=WAIT_SECONDS), Rig(grace=0.01)
    for each in (waiting, rig):
        each.retirement.resume(["d"])
    await asyncio.wait_for(rig.went.wait(), WAIT_SECONDS)
    assert waiting.gone == []
    await waiting.retirement.close()
