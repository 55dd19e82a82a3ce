"""Executors that die, come back, come back as something else, or talk nonsense."""

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorikeet.v1 import executor_pb2, generation_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.frontend_fake_executor import FakeExecutor, Session, token_by_position
from tests.support.frontend_harness import hello_for, ids_of, running_rig, text_of
from tests.support.frontend_model_folder import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
PROMPT_IDS = TOKENIZER.encode("hello world").ids
REQUEST = generation_pb2.GenerateRequest(
    text="hello world", sampling=generation_pb2.SamplingParams(max_tokens=20, seed=3)
)


def expected(count: int = 20) -> list[int]:
    submit = executor_pb2.Submit(prompt_ids=PROMPT_IDS, sampling=executor_pb2.EngineSampling(seed=3))
    return [token_by_position(submit, index) for index in range(count)]


async def rest_of(call: grpc.aio.UnaryStreamCall) -> list[generation_pb2.GenerateResponse]:
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


async def failure_of(call: grpc.aio.UnaryStreamCall) -> LorikeetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest_of(call)
    return from_rpc(caught.value)


async def test_a_restarted_executor_continues_exactly_where_the_old_one_died(model_folder: Path):
    async with running_rig(model_folder, free_running=False) as rig:
        call = rig.generation.Generate(REQUEST)
        waiting = rig.generation.Generate(REQUEST)
        await rig.executor.until(lambda: rig.executor.running == 2)
        rig.executor.step(5)
        responses = []
        while len(ids_of(responses)) < 5:
            responses.append(await call.read())
        await rig.kill_executor()
        await rig.restart_executor(FakeExecutor(hello=hello_for(model_folder)))
        responses += await rest_of(call)
        assert ids_of(responses) == expected()
        assert text_of(responses) == TOKENIZER.decode(expected())
        assert ids_of(await rest_of(waiting)) == expected()
        for submit in rig.executor.submits:
            assert list(submit.prompt_ids) == PROMPT_IDS
            assert list(submit.emitted_ids) == expected(5)
            assert submit.sampling.seed == 3
        assert responses[-1].summary.usage.completion_tokens == 20
        await rig.assert_idle()


async def test_a_request_that_comes_during_the_outage_waits(model_folder: Path):
    async with running_rig(model_folder) as rig:
        await rig.kill_executor()
        call = rig.generation.Generate(REQUEST)
        await rig.restart_executor(FakeExecutor(hello=hello_for(model_folder)))
        assert ids_of(await rest_of(call)) == expected()


async def test_after_too_long_an_outage_requests_fail_until_there_is_an_executor(model_folder: Path):
    async with running_rig(model_folder, free_running=False, patience_seconds=0.2) as rig:
        health = health_pb2_grpc.HealthStub(rig.channel).Watch(  # pyright: ignore[reportAttributeAccessIssue]
            health_pb2.HealthCheckRequest()
        )
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = rig.generation.Generate(REQUEST)
        await rig.executor.until(lambda: rig.executor.running == 1)
        await rig.kill_executor()
        error = await failure_of(call)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "EXECUTOR_AWAY")
        assert error.retry_after
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        error = await failure_of(rig.generation.Generate(REQUEST))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "EXECUTOR_AWAY")
        assert len(rig.frontend.flights) == 0
        await rig.restart_executor(FakeExecutor(hello=hello_for(model_folder)))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert ids_of(await rest_of(rig.generation.Generate(REQUEST))) == expected()


async def test_another_base_model_ends_what_the_old_one_began(model_folder: Path):
    async with running_rig(model_folder, free_running=False) as rig:
        call = rig.generation.Generate(REQUEST)
        await rig.executor.until(lambda: rig.executor.running == 1)
        rig.executor.step()
        await call.read()
        await rig.kill_executor()
        hello = hello_for(model_folder)
        hello.base_digest = "1" * 64
        await rig.restart_executor(FakeExecutor(hello=hello))
        error = await failure_of(call)
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "MODEL_CHANGED")
        assert ids_of(await rest_of(rig.generation.Generate(REQUEST))) == expected()


async def test_an_adapter_version_that_is_gone_after_a_restart_aborts(model_folder: Path):
    async with running_rig(model_folder, free_running=False, adapters={"sql": "ab" * 32}) as rig:
        request = generation_pb2.GenerateRequest(text="x", adapter="sql")
        call = rig.generation.Generate(request)
        await rig.executor.until(lambda: rig.executor.running == 1)
        rig.executor.step()
        await call.read()
        await rig.kill_executor()
        successor = FakeExecutor(hello=hello_for(model_folder))
        successor.refuse = lambda submit: executor_pb2.Failed(
            request=submit.request, code=5, reason="ADAPTER_NOT_FOUND", message="retired"
        )
        await rig.restart_executor(successor)
        error = await failure_of(call)
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ADAPTER_REPLACED")
        await rig.assert_idle()


class Babbler(FakeExecutor):
    """Contradicts itself in its third step, once."""

    def _compute(self, session: Session) -> executor_pb2.EngineStep | None:
        step = super()._compute(session)
        if self._steps == 3 and step is not None:
            step.token_splits.append(99)
        return step


async def test_nonsense_from_the_executor_is_a_lost_connection(model_folder: Path):
    async with running_rig(model_folder) as rig:
        await rig.kill_executor()
        await rig.restart_executor(Babbler(hello=hello_for(model_folder)))
        assert ids_of(await rest_of(rig.generation.Generate(REQUEST))) == expected()
        first, second = rig.executor.submits
        assert len(first.emitted_ids) == 0
        assert list(second.emitted_ids) == expected(2)


async def test_a_frontend_that_stops_lets_requests_end_within_the_drain_time(model_folder: Path):
    async with running_rig(model_folder, free_running=False, drain_seconds=10.0) as rig:
        call = rig.generation.Generate(REQUEST)
        await rig.executor.until(lambda: rig.executor.running == 1)
        stopping = asyncio.create_task(rig.frontend.stop())
        rig.executor.step(20)
        assert ids_of(await rest_of(call)) == expected()
        await stopping
