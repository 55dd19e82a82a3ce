import json
from collections.abc import Iterator

import pytest

from lorikeet.v1 import generation_pb2 as pb
from tests.support.cli_fake_server import FakeServer, fake_server
from tests.support.cli_runner import lorikeet
from tests.support.waiting import WAIT_SECONDS


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as state:
        yield state


def test_streams_the_answer_to_stdout(server: FakeServer) -> None:
    done = lorikeet("generate", "one two three", "--target", server.target)
    assert (done.code, done.out, done.err) == (0, "base: three two one\n", "")


@pytest.mark.parametrize("arguments", [["-"], []])
def test_reads_the_prompt_from_stdin(server: FakeServer, arguments: list[str]) -> None:
    done = lorikeet("generate", *arguments, "--target", server.target, stdin="a b\n")
    assert done.out == "base: b a\n"
    assert server.requests[0].text == "a b"


def test_sends_what_the_flags_say_and_nothing_else(server: FakeServer) -> None:
    flags = (
        "--max-tokens 5 --temperature 0 --top-k 0 --seed 18446744073709551615 --ignore-eos --stop x --stop y"
    )
    lorikeet("generate", "hello", *flags.split(), "--target", server.target)
    expected = pb.SamplingParams(max_tokens=5, temperature=0, top_k=0, seed=2**64 - 1, ignore_eos=True)
    assert server.requests == [pb.GenerateRequest(text="hello", sampling=expected, stop=["x", "y"], n=1)]
    assert not server.requests[0].sampling.HasField("top_p")


def test_chat_sends_messages(server: FakeServer) -> None:
    lorikeet("generate", "hello there", "--system", "be brief", "--target", server.target)
    messages = [(message.role, message.content) for message in server.requests[0].chat.messages]
    assert messages == [("system", "be brief"), ("user", "hello there")]


def test_json_prints_one_response_a_line(server: FakeServer) -> None:
    done = lorikeet("generate", "x y", "--json", "--target", server.target)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == ["base: ", "y ", "x"]
    assert lines[-1]["finish_reason"] == "FINISH_REASON_STOP"
    assert lines[-1]["summary"]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}


def test_several_completions_are_printed_one_after_the_other(server: FakeServer) -> None:
    done = lorikeet("generate", "x", "-n", "2", "--target", server.target)
    assert done.out == "--- 1 ---\nbase: x\n--- 2 ---\nbase: x\n"


def test_errors_are_one_line_with_code_reason_and_advice(server: FakeServer) -> None:
    done = lorikeet("generate", "x", "--adapter", "nobody", "--target", server.target)
    assert done.code == 1
    assert done.out == ""
    assert done.err == "lorikeet: NOT_FOUND (ADAPTER_NOT_FOUND): no adapter 'nobody': load it first\n"


def test_errors_say_when_to_retry(server: FakeServer) -> None:
    done = lorikeet("generate", "overload", "--target", server.target)
    assert "RESOURCE_EXHAUSTED (QUEUE_FULL): the queue is full (may be retried in 2 s)" in done.err


def test_errors_as_json(server: FakeServer) -> None:
    done = lorikeet("generate", "x", "--adapter", "nobody", "--json", "--target", server.target)
    assert done.code == 1
    assert json.loads(done.err)["error"]["reason"] == "ADAPTER_NOT_FOUND"


def test_nothing_at_the_target() -> None:
    done = lorikeet("generate", "x", "--target", "127.0.0.1:1")
    assert done.code == 1
    assert "UNAVAILABLE" in done.err
    assert "nothing answers at 127.0.0.1:1: start a server with `lorikeet serve`" in done.err


def test_gives_up_after_the_timeout(server: FakeServer) -> None:
    server.hold = True
    done = lorikeet("generate", "x y", "--timeout", "0.2", "--target", server.target)
    assert done.code == 1
    assert done.out in ("base: \n", "")  # where the machine is slow
    assert "DEADLINE_EXCEEDED" in done.err
    assert "--timeout" in done.err
    # Where the machine is slow, the call may never have left.
    assert not server.requests or server.cancelled.wait(timeout=WAIT_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-tokens", "0"], "--max-tokens"),
        (["--temperature", "warm"], "--temperature"),
        (["--logprobs", "2"], "--json"),
        (["--timeout", "-1"], "timeout"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--max-tokens", "5000000000"], "--max-tokens 5000000000: that is too much"),
        (["--adapter", "\udcff"], "not text in UTF-8"),
        (["--target", "http://here:1"], "target is 'http://here:1': give host:port or unix:/path"),
        (["--target", "localhost:70000"], "give host:port"),
        (["--target", "unix:/" + "x" * 200], "a socket's path has"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], said: str) -> None:
    done = lorikeet("generate", "x", *arguments)
    assert done.code == 2
    assert said in done.err
