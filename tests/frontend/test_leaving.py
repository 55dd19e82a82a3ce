"""Clients that leave, run out of time, or read slowly."""

import asyncio
from pathlib import Path

import grpc
import pytest

from lorikeet.v1 import generation_pb2, generation_pb2_grpc
from tests.support.frontend_fake_executor import fixed_tokens
from tests.support.frontend_harness import running_rig
from tests.support.frontend_model_folder import byte_level_tokenizer, token_id
from tests.support.waiting import WAIT_SECONDS

LONG = generation_pb2.GenerateRequest(text="x", n=2, sampling=generation_pb2.SamplingParams(max_tokens=500))


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_cancels_frees_its_requests(model_folder: Path, begun: bool):
    async with running_rig(model_folder, free_running=False) as rig:
        call = rig.generation.Generate(LONG)
        await rig.executor.until(lambda: rig.executor.running == 2)
        if begun:
            rig.executor.step()
            await call.read()
        call.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.executor.until(lambda: sorted(rig.executor.aborts) == [1, 2])
        await rig.assert_idle()


async def test_a_client_whose_connection_goes_frees_its_requests(model_folder: Path):
    async with running_rig(model_folder, free_running=False) as rig:
        channel = grpc.aio.insecure_channel(rig.address)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(LONG)
        await rig.executor.until(lambda: rig.executor.running == 2)
        rig.executor.step()
        await call.read()
        await channel.close()
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.executor.until(lambda: rig.executor.running == 0)
        await rig.assert_idle()


async def test_a_deadline_reaches_the_executor_and_frees_the_request(model_folder: Path):
    async with running_rig(model_folder, free_running=False) as rig:
        submits = rig.executor.submits
        for seconds in (0.5, 5.0, 50.0):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in rig.generation.Generate(LONG, timeout=seconds):
                    pass
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # On a busy machine its time may be over before it gets as far as the executor.
            if submits:
                break
        # gRPC rounds timeouts up a little on the way.
        assert all(0 < submit.remaining_us < 1.1e6 * seconds for submit in submits)
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.executor.until(lambda: len(rig.executor.aborts) == len(submits) > 0)
        assert sorted(rig.executor.aborts) == [submit.request for submit in submits]
        await rig.assert_idle()


async def test_a_slow_reader_gets_everything_in_fewer_messages_and_holds_nobody_up(model_folder: Path):
    tokens, letter = 3000, token_id(byte_level_tokenizer(), "a")
    async with running_rig(model_folder, script=fixed_tokens([letter]), context_length=8192) as rig:
        # Little of what a client does not read is buffered on the way.
        channel = grpc.aio.insecure_channel(
            rig.address, options=[("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
        )
        request = generation_pb2.GenerateRequest(
            text="x", logprobs=20, sampling=generation_pb2.SamplingParams(max_tokens=tokens)
        )
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)
        responses = [await call.read()]
        # The executor goes on to the end although nobody reads.
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.executor.until(lambda: rig.executor.running == 0)
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
        assert "".join(response.text for response in responses) == "a" * tokens
        assert sum(len(response.logprobs) for response in responses) == tokens
        assert len(responses) < tokens / 2
        assert max(response.ByteSize() for response in responses) < 4 << 20
        assert responses[-1].summary.usage.completion_tokens == tokens
        await channel.close()
