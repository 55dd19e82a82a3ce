"""What the executor is told of adapters before their requests come."""

import asyncio
from pathlib import Path

import grpc
import pytest

from frontend.engine.hints import Hints
from lorikeet.v1 import adapters_pb2, generation_pb2
from tests.support.frontend_harness import running_rig
from tests.support.waiting import WAIT_SECONDS

A, B = "ab" * 32, "cd" * 32


def test_each_digest_is_told_once_a_second():
    hints = Hints()
    assert hints.add(A, 10.0)
    assert not hints.add(A, 10.9)
    assert hints.add(B, 10.9)
    assert hints.take() == [A, B]
    assert hints.take() == []
    assert hints.add(A, 11.0)


def test_the_base_model_needs_no_hint():
    assert not Hints().add("", 1.0)


def test_hints_are_few_and_forgotten_with_the_connection():
    hints = Hints()
    assert sum(hints.add(str(number), 1.0) for number in range(100)) == 64
    for number in range(5000):
        hints.take()
        hints.add(f"more-{number}", 2.0)
    assert len(hints._told) == 1024
    hints.connection_lost()
    assert hints.take() == []
    assert hints.add("more-4999", 2.0), "the next executor has not heard of it"


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a test does takes place within the second in which a digest is told once."""
    monkeypatch.setattr("frontend.engine.hints._FRESH_SECONDS", 3600.0)


@pytest.mark.usefixtures("one_second")
async def test_a_request_names_its_adapter_before_it_is_tokenised(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": A, "poet": B}) as rig:
        for _ in range(3):
            await rig.generate(text="x", adapter="sql", sampling={"max_tokens": 1})
        await rig.generate(text="x", sampling={"max_tokens": 1})
        assert rig.executor.prefetches == [A]


async def test_one_that_is_tokens_already_is_its_own_hint(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": A}) as rig:
        await rig.generate(
            tokens=generation_pb2.TokenIds(ids=[1, 2, 3]), adapter="sql", sampling={"max_tokens": 1}
        )
        assert rig.executor.prefetches == []


async def test_even_one_that_is_refused_later(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": A}) as rig:
        with pytest.raises(grpc.aio.AioRpcError):
            await rig.generate(text="x" * 5000, adapter="sql", sampling={"max_tokens": 1})
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.executor.until(lambda: rig.executor.prefetches == [A])
        assert not rig.executor.submits


@pytest.mark.usefixtures("one_second")
async def test_a_prefetch_goes_to_the_executor_or_where_it_cannot_to_the_store(model_folder: Path):
    async with running_rig(model_folder, adapters={"sql": A}) as rig:
        # One that this frontend has not heard of; and one that the executor was told of a moment ago.
        rig.store.digests["unheard"] = B
        for adapter in ("sql", "unheard", "sql"):
            await rig.adapters.PrefetchAdapter(adapters_pb2.PrefetchAdapterRequest(adapter=adapter))
        assert rig.store.prefetches == ["unheard", "sql"]
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.executor.until(lambda: rig.executor.prefetches == [A])
