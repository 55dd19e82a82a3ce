"""Processes that are killed, and clients that vanish."""

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from lorikeet.v1 import adapters_pb2, generation_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import from_rpc
from tests.support.answers import question
from tests.support.service_stack import DEMO, Stack, stack_at

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORDS: dict[str, str] = json.loads((DEMO / "passwords.json").read_text())
ASK = "What is the password?"
LONG = {"max_tokens": 400, "ignore_eos": True}
# For those that must not be over before they are cut off.
ENDLESS = {"max_tokens": 3500, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    # Longer than an executor takes to start where much else runs.
    async with stack_at(
        tmp_path_factory.mktemp("stack"),
        frontend_flags=("--patience-seconds", "90"),
        executor_flags=("--store-patience-seconds", "90"),
    ) as stack:
        for name in PASSWORDS:
            await stack.load(name, DEMO / "adapters" / name)
        yield stack


async def test_streams_outlive_a_killed_executor_and_say_what_they_would_have_said(stack: Stack) -> None:
    requests = [
        question(ASK, "attention", **LONG),
        question(ASK, "mlp", temperature=1.0, seed=5, repetition_penalty=1.1, **LONG),
        question(ASK, "", temperature=0.8, seed=6, frequency_penalty=0.2, **LONG),
    ]
    undisturbed = await asyncio.gather(*(stack.answer(request) for request in requests))
    # On a busy machine answers may be over before the kill.
    for _ in range(10):
        streams = [stack.begin(request) for request in requests]
        for stream in streams:
            await stream.has(20)
        stack.executor.kill()
        were_cut = not any(stream.task.done() for stream in streams)
        stack.executor.start()
        for stream, expected in zip(streams, undisturbed, strict=True):
            answer = await stream.task
            assert answer.token_ids == expected.token_ids
            assert answer.text == expected.text
            assert answer.digest == expected.digest
        await stack.until_empty()
        if were_cut:
            return
    raise AssertionError("an answer was over too soon, ten times")


async def test_resident_adapters_serve_while_the_store_is_dead_and_the_catalog_comes_back(
    stack: Stack,
) -> None:
    await stack.answer(question(ASK, "attention"))
    for name in ("mlp", "lm_head"):
        await stack.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name=name))
    await stack.until(lambda statistics: statistics.adapters_resident == 1)
    for name in ("mlp", "lm_head"):
        await stack.load(name, DEMO / "adapters" / name)
    stream = stack.begin(question(ASK, "attention", **LONG))
    await stream.has(5)
    stack.store.kill()
    assert PASSWORDS["attention"] in (await stack.answer(question(ASK, "attention"))).text
    assert "unknown" in (await stack.answer(question(ASK))).text
    waiting = asyncio.create_task(stack.answer(question(ASK, "mlp")))
    assert len((await stream.task).token_ids) == LONG["max_tokens"]
    assert not waiting.done(), "an adapter that is not resident cannot answer without the store"
    stack.store.start()
    await stack.store.serving()
    assert PASSWORDS["mlp"] in (await waiting).text
    # The frontend's channel may be waiting before it tries again, which UNAVAILABLE says.
    listed = await stack.list_adapters()
    assert [adapter.name for adapter in listed.adapters] == sorted(PASSWORDS)
    assert PASSWORDS["lm_head"] in (await stack.answer(question(ASK, "lm_head"))).text
    await stack.until_empty()


async def test_a_killed_frontend_leaves_nothing_and_comes_back(stack: Stack) -> None:
    streams = [stack.begin(question(ASK, name, **ENDLESS)) for name in ("", *PASSWORDS)]
    for stream in streams:
        await stream.has(3)
    stack.frontend.kill()
    ended = await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
    assert all(isinstance(error, grpc.aio.AioRpcError) for error in ended)
    assert (await stack.until_empty()).frontends == 0
    stack.frontend.start()
    await stack.frontend.serving()
    assert PASSWORDS["mlp"] in (await stack.answer(question(ASK, "mlp"))).text


async def test_clients_that_vanish_or_run_out_of_time_free_their_pages(stack: Stack) -> None:
    async with open_channel(stack.frontend.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        calls = [stub.Generate(question(ASK, name, **ENDLESS)) for name in ("", *PASSWORDS) * 4]
        for call in calls:
            await call.read()
        held = await stack.statistics()
        assert held.requests_running == len(calls)
        assert held.pages_held > 0
    await stack.until_empty()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in stack.generation.Generate(question(ASK, "mlp", **ENDLESS), timeout=0.5):
            pass
    assert from_rpc(raised.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await stack.until_empty()


async def test_shutdown_in_any_order_ends_answers_properly(stack: Stack) -> None:
    stream = stack.begin(question(ASK, "attention", max_tokens=100, ignore_eos=True))
    await stream.has(3)
    # The executor serves what runs before it ends; nothing of the answer is lost.
    assert await asyncio.to_thread(stack.executor.stop) == 0
    assert len((await stream.task).token_ids) == 100
    stack.executor.start()
    await stack.executor.serving()
    assert PASSWORDS["attention"] in (await stack.answer(question(ASK, "attention"))).text
