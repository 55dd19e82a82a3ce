"""Names that move, go back and go away under running requests, over three real processes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bench import version_swap
from lorikeet.v1 import adapters_pb2
from rpc.errors import from_rpc
from tests.support.answers import Begun, question
from tests.support.service_stack import DEMO, Stack, stack_at
from tests.support.waiting import WAIT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = "What is the password?"
LONG = {"max_tokens": 400, "ignore_eos": True}
ADAPTERS = DEMO / "adapters"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(folder: Path) -> AsyncIterator[Stack]:
    async with stack_at(folder) as stack:
        yield stack


class Counters:
    """What adapters hold, in all three tiers."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._data = folder / "data"

    async def read(self) -> dict[str, object]:
        executor = await self._stack.statistics()
        packs = await self._stack.pack_statistics()
        return {
            "pool": executor.adapter_pool_bytes_free,
            "resident": executor.adapters_resident,
            "pages": (executor.pages_held, executor.pages_cached),
            "leases": (executor.leases, packs.leases),
            "memory": (packs.packs_warm, packs.arena_bytes_used),
            "disk": sorted(
                str(path.relative_to(self._data))
                for part in ("objects", "packs", "incoming")
                for path in (self._data / part).rglob("*")
                if path.is_file()
            ),
        }

    async def until(self, expected: dict[str, object]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while (now := await self.read()) != expected:  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.02)
        assert now == expected


def started(stack: Stack, adapter: str, **sampling: Any) -> Begun:
    return stack.begin(question(ASK, adapter, **(LONG | sampling)))


@pytest.mark.parametrize("force", [False, True])
async def test_an_unload_gives_everything_back(stack: Stack, folder: Path, force: bool) -> None:
    counters = Counters(stack, folder)
    await stack.until_unleased()
    before = await counters.read()
    old = await stack.load("guest", ADAPTERS / "mlp")
    # Those that are aborted must not have ended before.
    length = {"max_tokens": 3000} if force else {}
    first = started(stack, "guest", **length)
    await first.has(1)
    loaded = await stack.load("guest", ADAPTERS / "attention")
    assert [version.digest for version in loaded.previous] == [old.digest]
    requests = [started(stack, name, **length) for name in ("guest", f"b3:{loaded.digest}")]
    await asyncio.gather(*(request.has(1) for request in requests))
    during = await counters.read()
    assert during["pool"] != before["pool"]
    assert len(during["disk"]) > len(before["disk"])  # pyright: ignore[reportArgumentType]

    unload = adapters_pb2.UnloadAdapterRequest(name="guest", force=force)
    await stack.adapters.UnloadAdapter(unload, timeout=WAIT_SECONDS)
    for gone in ("guest", f"b3:{loaded.digest}"):
        assert (await started(stack, gone).error()).code is grpc.StatusCode.NOT_FOUND
    for request, digest in zip([first, *requests], [old.digest, loaded.digest, loaded.digest], strict=True):
        if force:
            error = await request.error()
            assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ADAPTER_UNLOADED")
            assert '"guest" was unloaded by force' in error.message
        else:
            answer = await request.task
            assert (len(answer.token_ids), answer.digest) == (400, digest)
    await counters.until(before)


async def test_another_name_keeps_a_digest_through_a_forced_unload(stack: Stack) -> None:
    loaded = await stack.load("guest", ADAPTERS / "attention")
    await stack.load("other", ADAPTERS / "attention")
    requests = [started(stack, adapter) for adapter in ("other", f"b3:{loaded.digest}")]
    ended = started(stack, "guest", max_tokens=3000)
    await asyncio.gather(*(request.has(1) for request in [*requests, ended]))
    unload = adapters_pb2.UnloadAdapterRequest(name="guest", force=True)
    await stack.adapters.UnloadAdapter(unload, timeout=WAIT_SECONDS)
    assert (await ended.error()).reason == "ADAPTER_UNLOADED"
    for request in requests:
        assert len((await request.task).token_ids) == 400
    await stack.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name="other"), timeout=WAIT_SECONDS)


async def test_an_earlier_version_outlives_a_killed_store_and_answers_after_a_rollback(stack: Stack) -> None:
    old = await stack.load("guest", ADAPTERS / "attention")
    said = await stack.answer(question(ASK, "guest"))
    new = await stack.load("guest", ADAPTERS / "mlp")
    assert (await stack.answer(question(ASK, "guest"))).digest == new.digest
    stack.store.kill()
    stack.store.start()
    await stack.store.serving()
    back = await stack.roll_back("guest", expected_digest=new.digest)
    assert (back.digest, [version.digest for version in back.previous]) == (old.digest, [new.digest])
    again = await stack.answer(question(ASK, "guest"))
    assert (again.digest, again.token_ids) == (old.digest, said.token_ids)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stack.roll_back("guest", expected_digest=new.digest)
    error = from_rpc(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "DIGEST_CHANGED")
    assert old.digest in error.message
    assert new.digest in error.message
    await stack.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name="guest"), timeout=WAIT_SECONDS)


async def test_no_answer_mixes_versions_while_the_name_moves(tmp_path: Path) -> None:
    outcome = await version_swap.measure(
        tmp_path, seconds=0.0, least_swaps=12, streams=12, interval=0.2, versions=3, tokens=24, warm_up=0.0
    )
    assert (outcome.wrong, outcome.failed) == ([], [])
    assert outcome.swaps >= 12
    assert len(outcome.versions) == 3
