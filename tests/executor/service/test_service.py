"""The executor as a service, in process: what frontends may send, and what is left when they go."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from executor.app import EngineFailedError
from executor.arithmetic.runner import continuation
from executor.control.plan import StepPlan, StepResult
from lorikeet.v1 import executor_pb2 as pb
from rpc.errors import from_rpc
from tests.support.executor_service import (
    CONTEXT,
    VOCAB_SIZE,
    Connection,
    executor_at,
    submit,
)


async def test_hello_describes_the_executor(tmp_path: Path) -> None:
    async with executor_at(tmp_path, max_running=4, max_waiting=9) as running:
        hello = await Connection(running.stub).hello(running.model_dir)
        assert (hello.model_name, hello.model_type, list(hello.eos_token_ids)) == ("model", "qwen3", [2])
        limits = hello.limits
        assert (limits.context_length, limits.vocab_size) == (CONTEXT, VOCAB_SIZE)
        assert (limits.max_running, limits.max_waiting, limits.max_logprobs) == (4, 9, 20)
        assert len(hello.base_digest) == len(hello.layout_digest) == len(hello.tokenizer_digest) == 64


async def test_two_frontends_get_their_own_tokens(tmp_path: Path) -> None:
    async with executor_at(tmp_path) as running, running.connect() as one, running.connect() as two:
        await one.send(submit(1, [5, 6, 7]), submit(2, [8, 9], max_tokens=3))
        await two.send(submit(1, [9, 8, 7], max_tokens=5))
        await one.until_over(1, 2)
        await two.until_over(1)
        for connection, request, prompt, count in (
            (one, 1, [5, 6, 7], 8),
            (one, 2, [8, 9], 3),
            (two, 1, [9, 8, 7], 5),
        ):
            answer = connection.answers[request]
            expected = continuation(np.array(prompt, np.int32), "", count, VOCAB_SIZE)
            assert answer.token_ids == expected.tolist()
            assert answer.finish == pb.ENGINE_FINISH_LENGTH
            assert answer.admitted is not None
        await running.until_empty()


async def test_a_resubmitted_request_goes_on_where_it_was(tmp_path: Path) -> None:
    async with executor_at(tmp_path) as running, running.connect() as connection:
        await connection.send(submit(1))
        await connection.until_over(1)
        whole = connection.answers[1].token_ids
        await connection.send(submit(2, emitted_ids=whole[:3]), submit(3, emitted_ids=whole))
        await connection.until_over(2, 3)
        assert connection.answers[2].token_ids == whole[3:]
        assert connection.answers[3].token_ids == []
        assert connection.answers[3].finish == pb.ENGINE_FINISH_LENGTH


HELLOS = {
    "another protocol": ({"protocol_version": 2}, "PROTOCOL_VERSION"),
    "another tokenizer": ({"tokenizer_digest": "0" * 64}, "TOKENIZER_MISMATCH"),
    "no tokenizer": ({"tokenizer_digest": ""}, "TOKENIZER_MISMATCH"),
}


@pytest.mark.parametrize(("changes", "reason"), HELLOS.values(), ids=HELLOS.keys())
async def test_a_frontend_that_does_not_fit_is_told_why(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    async with executor_at(tmp_path) as running:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await Connection(running.stub).hello(running.model_dir, **changes)
        error = from_rpc(raised.value)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)


MALFORMED = {
    "a second Hello": (pb.ConnectRequest(hello=pb.ClientHello()), "BAD_MESSAGE"),
    "an empty message": (pb.ConnectRequest(), "BAD_MESSAGE"),
    "request 0": (pb.ConnectRequest(commands=pb.ClientCommands(submits=[submit(0)])), "REQUEST_NUMBER"),
    "a number twice": (
        pb.ConnectRequest(commands=pb.ClientCommands(submits=[submit(3), submit(3)])),
        "REQUEST_NUMBER",
    ),
    "a bad hint": (pb.ConnectRequest(commands=pb.ClientCommands(prefetch_digests=["x"])), "BAD_DIGEST"),
}


@pytest.mark.parametrize(("message", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_message_cuts_its_stream_and_no_other(
    tmp_path: Path, message: pb.ConnectRequest, reason: str
) -> None:
    async with executor_at(tmp_path) as running, running.connect() as good, running.connect() as bad:
        await bad.send(submit(2, max_tokens=2000))
        await bad.call.write(message)
        error = from_rpc(await bad.error())
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        await good.send(submit(1))
        await good.until_over(1)
        await running.until_empty()


async def test_commands_before_hello_are_refused(tmp_path: Path) -> None:
    async with executor_at(tmp_path) as running:
        connection = Connection(running.stub)
        await connection.send(submit(1))
        error = from_rpc(await connection.error())
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NO_HELLO")


async def test_a_stream_that_has_said_nothing_holds_up_no_stop(tmp_path: Path) -> None:
    async with executor_at(tmp_path) as running:
        connection = Connection(running.stub)
        await running.statistics()
        running.executor.begin_drain()
        assert from_rpc(await connection.error()).reason == "DRAINING"


async def test_bytes_that_are_no_message_end_only_their_stream(tmp_path: Path) -> None:
    async with executor_at(tmp_path) as running, running.connect() as good:
        async with grpc.aio.insecure_channel(running.address) as channel:
            call = channel.stream_stream("/lorikeet.v1.ExecutorService/Connect")()
            await call.write(b"\xff\xff\xff\xff")
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await good.send(submit(1))
        await good.until_over(1)


async def test_a_bad_request_fails_alone(tmp_path: Path) -> None:
    async with executor_at(tmp_path) as running, running.connect() as connection:
        nan = float("nan")
        await connection.send(
            submit(1, [VOCAB_SIZE]),
            submit(2, sampling={"temperature": nan}),
            submit(3, [1] * CONTEXT),
            submit(4),
            submit(5, adapter_digest="a" * 64),
        )
        await connection.until_over(1, 2, 3, 4, 5)
        reasons = {
            number: answer.failed.reason for number, answer in connection.answers.items() if answer.failed
        }
        assert reasons == {1: "BAD_TOKEN_ID", 2: "BAD_SAMPLING", 3: "PROMPT_TOO_LONG", 5: "ADAPTERS_DISABLED"}
        assert len(connection.answers[4].token_ids) == 8
        await running.until_empty()


async def test_one_request_too_many_is_refused_while_the_others_go_on(tmp_path: Path) -> None:
    async with (
        executor_at(tmp_path, max_running=1, max_waiting=2) as running,
        running.connect() as connection,
    ):
        await connection.send(*(submit(number, max_tokens=30) for number in range(1, 9)))
        await connection.until_over(*range(1, 9))
        failed = [answer.failed for answer in connection.answers.values() if answer.failed]
        assert failed
        assert {(failure.code, failure.reason) for failure in failed} == {(8, "QUEUE_FULL")}
        assert sum(len(answer.token_ids) == 30 for answer in connection.answers.values()) == 8 - len(failed)


async def test_an_abort_frees_the_pages_within_two_steps(tmp_path: Path) -> None:
    async with executor_at(tmp_path, gated=True) as running, running.connect() as connection:
        await connection.send(submit(1, [1] * 300, max_tokens=1500))
        running.gate.permit(3)
        while not connection.answers.get(1) or len(connection.answers[1].token_ids) < 3:
            await connection.receive()
        # A step is under way, so the abort waits for the next.
        await running.until(lambda _: running.gate.begun == 4)
        await connection.send(aborts=[1])
        at_abort = await running.until(lambda statistics: statistics.commands_queued == 1)
        assert at_abort.pages_held > 0
        running.gate.permit(2)
        freed = await running.until(lambda statistics: statistics.pages_held == 0)
        assert freed.steps - at_abort.steps <= 1
        await running.until_empty()


async def test_a_frontend_that_vanishes_leaves_nothing(tmp_path: Path) -> None:
    async with executor_at(tmp_path, arithmetic_step_seconds=0.01, kv_pages=4096) as running:
        async with running.connect() as connection:
            await connection.send(
                *(submit(number, [number] * 20, max_tokens=1500) for number in range(1, 90))
            )
            await connection.receive()
            held = await running.until(lambda statistics: statistics.requests_running == 64)
            assert held.requests_waiting == 25
        empty = await running.until_empty()
        assert empty.frontends == 0


async def test_a_frontend_that_half_closes_is_gone_too(tmp_path: Path) -> None:
    async with (
        executor_at(tmp_path, arithmetic_step_seconds=0.01) as running,
        running.connect() as connection,
    ):
        await connection.send(submit(1, max_tokens=1500))
        await connection.receive()
        await connection.call.done_writing()
        while await connection.call.read() is not grpc.aio.EOF:
            pass
        assert await connection.call.code() is grpc.StatusCode.OK
        await running.until_empty()


async def test_a_finish_keeps_the_prefix_cached(tmp_path: Path) -> None:
    async with (
        executor_at(tmp_path, arithmetic_step_seconds=0.005) as running,
        running.connect() as connection,
    ):
        prompt = [3] * 100
        await connection.send(submit(1, prompt, max_tokens=1500))
        while not connection.answers.get(1):
            await connection.receive()
        await connection.send(finishes=[1, 1, 77])
        await running.until_empty()
        await connection.send(submit(2, prompt))
        await connection.until_over(2)
        admitted = connection.answers[2].admitted
        assert admitted is not None
        assert admitted.cached_tokens == 96


async def test_an_expired_request_is_reported_and_gone(tmp_path: Path) -> None:
    async with (
        executor_at(tmp_path, arithmetic_step_seconds=0.01) as running,
        running.connect() as connection,
    ):
        await connection.send(submit(1, max_tokens=1500, remaining_us=50_000), submit(2, max_tokens=20))
        await connection.until_over(1, 2)
        failed = connection.answers[1].failed
        assert failed is not None
        assert (failed.code, failed.reason) == (4, "DEADLINE_EXCEEDED")
        assert len(connection.answers[2].token_ids) == 20
        await running.until_empty()


async def test_a_frontend_that_does_not_read_is_cut_and_the_other_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"outbox_bytes": 1 << 16, "kv_pages": 8192}
    async with executor_at(tmp_path, **settings) as running, running.connect() as good:
        async with running.connect() as slow:
            # About 20 MB: several times what the transport buffers.
            wordy = {"logprobs": 20}
            await slow.send(*(submit(n, [n], max_tokens=1500, sampling=wordy) for n in range(1, 65)))
            await running.until(lambda statistics: statistics.frontends == 1)
            await running.until_empty()
            error = from_rpc(await slow.error())
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTBOX_FULL")
        await good.send(submit(1))
        await good.until_over(1)


async def test_shutdown_lets_running_requests_end_and_takes_no_more(tmp_path: Path) -> None:
    async with executor_at(tmp_path, gated=True) as running, running.connect() as connection:
        await connection.send(submit(1, max_tokens=20))
        running.gate.permit()
        await connection.receive()
        running.executor.begin_drain()
        await connection.send(submit(2))
        await connection.until_over(2)
        running.gate.open()
        await connection.until_over(1)
        assert len(connection.answers[1].token_ids) == 20
        failed = connection.answers[2].failed
        assert failed is not None
        assert (failed.code, failed.reason) == (14, "DRAINING")
        error = from_rpc(await connection.error())
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        refused = from_rpc(await Connection(running.stub).error_of_hello(running.model_dir))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


class Broken:
    """A runner whose steps all fail."""

    def launch(self, plan: StepPlan) -> None:
        return None

    def collect(self, pending: None) -> StepResult:
        raise RuntimeError("the device is gone")


async def test_an_engine_whose_steps_keep_failing_ends_the_process(tmp_path: Path) -> None:
    async with executor_at(tmp_path, runner=Broken()) as running, running.connect() as connection:
        for number in range(1, 4):
            await connection.send(submit(number))
            await connection.until_over(number)
            failed = connection.answers[number].failed
            assert failed is not None
            assert (failed.code, failed.reason) == (13, "STEP_FAILED")
        with pytest.raises(EngineFailedError):
            await running.executor.wait(asyncio.Event())
