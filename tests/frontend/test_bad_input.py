import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorikeet.v1 import generation_pb2, generation_pb2_grpc
from rpc.errors import LorikeetError, from_rpc
from tests.support.frontend_harness import Rig, hello_for, ids_of, running_rig
from tests.support.frontend_model_folder import write_model_folder
from tests.support.waiting import WAIT_SECONDS

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def chat(*messages: tuple[str, str], variables: str = "") -> generation_pb2.ChatPrompt:
    return generation_pb2.ChatPrompt(
        messages=[generation_pb2.ChatMessage(role=role, content=content) for role, content in messages],
        template_variables_json=variables,
    )


async def refusal(rig: Rig, **fields: Any) -> LorikeetError:
    """The error of a request; afterwards nothing is left of it and others are served."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(**fields)
    await rig.assert_idle()
    assert len(ids_of(await rig.generate(text="still there", sampling={"max_tokens": 2}))) == 2
    return from_rpc(caught.value)


@pytest.mark.parametrize(
    ("fields", "code", "reason", "words"),
    [
        ({}, INVALID, "PROMPT_MISSING", "set text, chat or tokens"),
        ({"text": ""}, INVALID, "PROMPT_EMPTY", "no tokens"),
        ({"tokens": {"ids": []}}, INVALID, "PROMPT_EMPTY", "no tokens"),
        ({"tokens": {"ids": [1] * 512}}, INVALID, "PROMPT_TOO_LONG", "at most 511"),
        ({"text": "hello world " * 2000}, INVALID, "PROMPT_TOO_LONG", "at most 511"),
        ({"text": "x" * 20_000}, INVALID, "PROMPT_TOO_LARGE", "10000 bytes"),
        ({"tokens": {"ids": [1, 4_000_000_000]}}, INVALID, "VALUE_OUT_OF_RANGE", "4000000000"),
        ({"text": "x", "adapter": "nobody"}, grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND", "nobody"),
        ({"text": "x", "adapter": "b3:xyz"}, INVALID, "ADAPTER_DIGEST_MALFORMED", "64"),
        ({"text": "x", "sampling": {"temperature": float("nan")}}, INVALID, "VALUE_OUT_OF_RANGE", "nan"),
        ({"text": "x", "sampling": {"top_p": -1.0}}, INVALID, "VALUE_OUT_OF_RANGE", "sampling.top_p"),
        ({"text": "x", "n": 4_000_000_000}, INVALID, "VALUE_OUT_OF_RANGE", "n is 4000000000"),
        (
            {"text": "x", "session_id": "s"},
            grpc.StatusCode.UNIMPLEMENTED,
            "FIELD_NOT_SUPPORTED",
            "session_id",
        ),
        ({"text": "x", "tenant": "t" * 129}, grpc.StatusCode.INVALID_ARGUMENT, "BAD_TENANT", "tenant"),
        ({"chat": chat()}, INVALID, "CHAT_EMPTY", "at least one message"),
        ({"chat": chat(("", "x"))}, INVALID, "CHAT_ROLE_MISSING", "chat.messages[0]"),
        ({"chat": chat(("tool", "x"))}, INVALID, "CHAT_TEMPLATE_REFUSED", "unknown role tool"),
        ({"chat": chat(("user", "x"), variables="{")}, INVALID, "CHAT_VARIABLES_MALFORMED", "JSON"),
        ({"chat": chat(*[("user", "")] * 4097)}, INVALID, "VALUE_OUT_OF_RANGE", "chat.messages is 4097 long"),
        (
            {"chat": chat(("user", "x"), variables='{"eos_token": "\\ud800"}')},
            INVALID,
            "PROMPT_NOT_UNICODE",
            "surrogate",
        ),
        ({"chat": chat(("user", "x" * 20_000))}, INVALID, "PROMPT_TOO_LARGE", "10000 bytes"),
    ],
)
async def test_a_bad_request_is_refused_and_leaves_nothing(
    model_folder: Path, fields: dict[str, Any], code: grpc.StatusCode, reason: str, words: str
):
    limit = 100_000 if reason == "PROMPT_TOO_LONG" else 10_000
    async with running_rig(model_folder, max_prompt_bytes=limit) as rig:
        error = await refusal(rig, **fields)
        assert (error.code, error.reason) == (code, reason)
        assert words in error.message


async def test_a_model_without_a_template_takes_no_chat(tmp_path: Path):
    async with running_rig(write_model_folder(tmp_path, chat_template=None)) as rig:
        error = await refusal(rig, chat=chat(("user", "x")))
        assert (error.code, error.reason) == (INVALID, "NO_CHAT_TEMPLATE")


async def test_a_huge_message_is_refused_before_it_is_read(model_folder: Path):
    async with running_rig(model_folder) as rig:
        error = await refusal(rig, text="x" * 100_000_000)
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_message_are_refused(model_folder: Path):
    async with running_rig(model_folder) as rig:
        call = rig.channel.unary_stream("/lorikeet.v1.GenerationService/Generate")
        for garbage in (b"\xff" * 50, b"\x0a\x02\xff\xfe"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(garbage).read()
            assert from_rpc(caught.value).reason == "MALFORMED_MESSAGE"
        await rig.assert_idle()


async def test_more_requests_than_places_are_refused_with_a_delay(model_folder: Path):
    async with running_rig(model_folder, free_running=False, max_requests=3) as rig:
        held = rig.generation.Generate(generation_pb2.GenerateRequest(text="x", n=2))
        await rig.executor.until(lambda: rig.executor.running == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(text="x", n=2)
        error = from_rpc(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "FRONTEND_FULL")
        assert error.retry_after
        held.cancel()
        await rig.executor.until(lambda: rig.executor.running == 0)
        rig.executor.step(2)
        assert len(ids_of(await rig.generate(text="x", n=2, sampling={"max_tokens": 1}))) == 1


@pytest.mark.parametrize("ids", [[4_000_000_000], [380], [1] * 1_100_000])
async def test_token_ids_out_of_the_vocabulary_have_no_text(model_folder: Path, ids: list[int]):
    async with running_rig(model_folder) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generation.Detokenize(generation_pb2.DetokenizeRequest(token_ids=ids))
        assert caught.value.code() is INVALID


@pytest.mark.parametrize("differs", ["tokenizer", "model type", "vocabulary size"])
async def test_an_executor_of_another_model_is_not_used(model_folder: Path, differs: str):
    async with running_rig(model_folder, wait_ready=False) as rig:
        await rig.kill_executor()
        hello = hello_for(model_folder)
        if differs == "tokenizer":
            hello.tokenizer_digest = "f" * 64
        elif differs == "model type":
            hello.model_type = "llama"
        else:
            hello.limits.vocab_size += 64
        rig.executor.hello = hello
        await rig.restart_executor(rig.executor)
        health = health_pb2_grpc.HealthStub(rig.channel)
        statuses = health.Watch(  # pyright: ignore[reportAttributeAccessIssue]
            health_pb2.HealthCheckRequest()
        )
        status = await statuses.read()
        while status.status != health_pb2.HealthCheckResponse.NOT_SERVING:
            status = await statuses.read()
        error = await _until_reason(rig.generation, "EXECUTOR_MISMATCH")
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert f"the executor's {differs} is" in error.message


async def _until_reason(generation: generation_pb2_grpc.GenerationServiceStub, reason: str) -> LorikeetError:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                await generation.GetModel(generation_pb2.GetModelRequest())
            except grpc.aio.AioRpcError as error:
                read = from_rpc(error)
                if read.reason == reason:
                    return read
