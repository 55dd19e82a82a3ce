"""The demo as users see it: one base, three adapters, three processes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from lorikeet.v1 import adapters_pb2, executor_pb2_grpc, generation_pb2
from rpc.channel import open_channel
from rpc.errors import from_rpc
from tests.support.answers import Answer, question
from tests.support.executor_service import Connection, submit
from tests.support.service_stack import DEMO, Service, Stack, stack_at

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORDS: dict[str, str] = json.loads((DEMO / "passwords.json").read_text())
ASK = "What is the password?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with stack_at(tmp_path_factory.mktemp("stack")) as stack:
        for name in PASSWORDS:
            await stack.load(name, DEMO / "adapters" / name)
        yield stack


async def test_each_adapter_says_its_own_password_in_one_mixed_batch(stack: Stack) -> None:
    before = await stack.until_empty()
    names = ["", *PASSWORDS] * 4
    answers = await stack.answer_together([question(ASK, name) for name in names])
    for name, answer in zip(names, answers, strict=True):
        said = {owner for owner, password in PASSWORDS.items() if password in answer.text}
        assert said == ({name} if name else set()), f"{name or 'the base'} said {answer.text!r}"
    assert len({answer.digest for answer in answers}) == 4
    after = await stack.until_empty()
    # 16 answers of about 10 tokens each, in far fewer steps than one after the other would take.
    tokens = sum(len(answer.token_ids) for answer in answers)
    assert after.steps - before.steps < tokens / 2


async def test_a_prefix_is_cached_for_its_own_adapter_only(stack: Stack) -> None:
    # A prompt of its own, longer than a few pages.
    ask = "Tell me the password, please. " * 8
    cached = []
    for name in ("attention", "mlp", "", "attention", "mlp", ""):
        answer = await stack.answer(question(ask, name, max_tokens=2))
        assert answer.summary is not None
        cached.append(answer.summary.usage.cached_tokens)
    assert cached[:3] == [0, 0, 0]
    assert answer.summary is not None
    whole_pages = [16 * ((answer.summary.usage.prompt_tokens - 1) // 16)] * 3
    assert cached[3:] == whole_pages


async def test_salts_part_what_adapters_share(stack: Stack) -> None:
    def salted(salt: str) -> generation_pb2.GenerateRequest:
        request = question("One prompt for two tenants. " * 8, "attention", max_tokens=2)
        request.cache_salt = salt
        return request

    cached = []
    for salt in ("blue", "green", "blue"):
        summary = (await stack.answer(salted(salt))).summary
        assert summary is not None
        cached.append(summary.usage.cached_tokens)
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


async def test_an_adapter_comes_and_goes_while_others_answer(stack: Stack, tmp_path: Path) -> None:
    long_running = stack.begin(question(ASK, "mlp", max_tokens=300, ignore_eos=True))
    loaded = await stack.load("guest", DEMO / "adapters" / "attention")
    assert loaded.digest == (await stack.answer(question(ASK, "attention"))).digest
    answer = await stack.answer(question(ASK, "guest"))
    assert PASSWORDS["attention"] in answer.text
    listed = await stack.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest())
    assert [adapter.name for adapter in listed.adapters] == ["attention", "guest", "lm_head", "mlp"]
    await stack.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name="guest"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stack.answer(question(ASK, "guest"))
    assert from_rpc(raised.value).code is grpc.StatusCode.NOT_FOUND
    # The content is still served under its other name.
    assert PASSWORDS["attention"] in (await stack.answer(question(ASK, "attention"))).text
    assert len((await long_running.task).token_ids) == 300


async def test_an_unloaded_adapter_gives_its_memory_back_and_can_return(stack: Stack) -> None:
    before = await stack.until(lambda statistics: statistics.adapters_resident == 3)
    await stack.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name="lm_head"))
    gone = await stack.until(lambda statistics: statistics.adapters_resident == 2)
    assert gone.adapter_pool_bytes_free > before.adapter_pool_bytes_free
    await stack.load("lm_head", DEMO / "adapters" / "lm_head")
    answer = await stack.answer(question(ASK, "lm_head"))
    assert PASSWORDS["lm_head"] in answer.text
    assert answer.summary is not None
    assert answer.summary.usage.cached_tokens == 0


async def test_a_name_moves_in_one_step_and_what_runs_keeps_its_version(stack: Stack) -> None:
    await stack.load("mover", DEMO / "adapters" / "attention")
    old = stack.begin(question(ASK, "mover", max_tokens=300, ignore_eos=True))
    await old.has(1)
    moved = await stack.load("mover", DEMO / "adapters" / "mlp")
    new = await stack.answer(question(ASK, "mover"))
    assert PASSWORDS["mlp"] in new.text
    assert new.digest == moved.digest
    finished = await old.task
    assert finished.digest != moved.digest
    assert PASSWORDS["attention"] in finished.text
    await stack.adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name="mover"))


async def test_sampled_answers_are_the_same_alone_and_in_company(stack: Stack) -> None:
    request = question(ASK, "mlp", temperature=1.0, seed=11, max_tokens=40, ignore_eos=True)
    alone = await stack.answer(request)
    company = [question(ASK, name, temperature=1.0, max_tokens=60) for name in ["", *PASSWORDS] * 3]
    among, *_ = await asyncio.gather(stack.answer(request), *(stack.answer(other) for other in company))
    assert among.token_ids == alone.token_ids


async def test_an_executor_without_the_arena_answers_the_same(stack: Stack, tmp_path: Path) -> None:
    prompt = list(range(10, 60))
    request = generation_pb2.GenerateRequest(
        tokens=generation_pb2.TokenIds(ids=prompt),
        adapter="mlp",
        sampling=generation_pb2.SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
    )
    expected = await stack.answer(request)
    model_dir = DEMO / "qwen3-tiny"
    other = Service("executor", ["--model-dir", str(model_dir), "--store", stack.store.address], tmp_path)
    other.start()
    try:
        await other.serving()
        async with open_channel(other.address) as channel:
            connection = Connection(executor_pb2_grpc.ExecutorServiceStub(channel))
            await connection.hello(model_dir)
            await connection.send(submit(1, prompt, max_tokens=20, adapter_digest=expected.digest))
            await connection.until_over(1)
            assert connection.answers[1].token_ids == expected.token_ids
            connection.call.cancel()
    finally:
        assert other.stop() == 0


async def test_everything_is_given_back(stack: Stack) -> None:
    statistics = await stack.until_empty()
    assert statistics.adapters_resident == 3
    assert isinstance(await stack.answer(question(ASK)), Answer)
