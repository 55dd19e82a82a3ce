import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli.benchmark.load import Outcome
from cli.benchmark.report import parse_goals, summarise
from cli.benchmark.workload import Traffic, matching, plan, prompts_of, random_prompts
from cli.errors import CliError
from lorikeet.v1 import adapters_pb2
from tests.support.cli_fake_server import FakeServer, fake_server
from tests.support.cli_runner import lorikeet

TRAFFIC = Traffic(
    requests=200, rate=None, output_tokens=5, zipf=1.0, ignore_eos=True, temperature=None, seed=3
)


def _serve(server: FakeServer, *arguments: str):
    for name in ("user-1", "user-2", "other"):
        server.names[name] = adapters_pb2.Adapter(name=name)
    return lorikeet("bench", "serve", "--target", server.target, *arguments)


def test_what_was_answered_is_measured(tmp_path: Path) -> None:
    out, picture = tmp_path / "run.json", tmp_path / "run.svg"
    with fake_server() as server:
        done = _serve(
            server,
            *("-n", "20", "-c", "4", "--warmup", "2", "--prompt-tokens", "3", "-a", "user-*"),
            *("--goal", "e2e=60000", "--out", str(out), "--plot", str(picture), "--json"),
        )
        asked = list(server.requests)
    printed, written = json.loads(done.out), json.loads(out.read_text())
    assert len(asked) == 22
    assert {request.adapter for request in asked} == {"user-1", "user-2"}
    assert all(len(request.tokens.ids) == 3 and request.sampling.ignore_eos for request in asked)
    assert printed["completed"] == 20
    # The adapter's name and three words, a message each.
    assert (printed["output_tokens"], printed["tokens_per_message"]) == (80, 1.0)
    assert printed["prompt_tokens"] == 60
    assert printed["good_requests"] == 20
    assert 0 < printed["ttft_ms"]["p50"] <= printed["e2e_ms"]["p50"] <= printed["e2e_ms"]["max"]
    assert len(written.pop("each")) == 20
    assert written == printed
    assert "<svg" in picture.read_text()


def test_a_person_reads_a_table() -> None:
    with fake_server() as server:
        done = _serve(server, "-n", "3", "--warmup", "0", "--goal", "ttft=0.000001")
    lines = done.out.splitlines()
    assert lines[0].startswith("3 of 3 requests in ")
    assert lines[2] == "goodput: 0 requests/s with ttft <= 1e-06 ms"
    assert lines[3].split("\t")[:3] == ["ms", "MEAN", "P50"]
    assert [line.split("\t")[0] for line in lines[4:]] == ["TTFT", "TPOT", "ITL", "E2E"]


def test_prompts_come_from_a_file_and_failures_are_counted(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"text": "one two", "max_tokens": 9},
        {"messages": [{"role": "user", "content": "three"}], "adapter": "user-1"},
        {"text": "overload"},
    ]
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    with fake_server() as server:
        done = _serve(server, "-n", "6", "-c", "1", "--warmup", "0", "--prompts", str(prompts), "--json")
        asked = list(server.requests)
    result = json.loads(done.out)
    assert result["failed"] == {"RESOURCE_EXHAUSTED QUEUE_FULL": 2}
    assert (result["completed"], result["adapters"]) == (4, 1)
    assert [request.sampling.max_tokens for request in asked[:3]] == [9, 128, 128]
    assert asked[1].chat.messages[0].content == "three"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-a", "nobody-*"), "no adapter of the server is called 'nobody-*'"),
        (("--goal", "speed=3"), "write ttft=MS or tpot=MS or e2e=MS"),
        (("--plot", "run.txt"), "must end in one of"),
        (("--plot", "/nowhere/run.png"), "there is no folder /nowhere"),
        (("--prompt-tokens", "512"), "--prompt-tokens 512: fake-1b takes 511 at most"),
        (("--prompts", "/nowhere"), "/nowhere cannot be read: No such file or directory\n"),
        (("-a", "missing", "-n", "2"), "none of 2 requests was answered: NOT_FOUND ADAPTER_NOT_FOUND"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], message: str) -> None:
    with fake_server() as server:
        done = _serve(server, *arguments)
    assert done.code != 0
    assert message in done.err


def test_arrivals_and_choices_follow_the_seed() -> None:
    traffic = replace(TRAFFIC, rate=50.0)
    first = plan(traffic, random_prompts(4, 100, 7), "abc")
    again = plan(traffic, random_prompts(4, 100, 7), "abc")
    assert first == again
    times = [planned.at for planned in first]
    assert times == sorted(times)
    assert 2.0 < times[-1] < 8.0  # 200 at 50 a second
    counts = [sum(planned.request.adapter == name for planned in first) for name in "abc"]
    assert counts[0] > counts[1] > counts[2] > 0
    assert len({tuple(planned.request.tokens.ids) for planned in first}) == 200


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("first\n\nsecond\n")
    planned = plan(replace(TRAFFIC, requests=3), prompts_of(path), ())
    assert [each.request.text for each in planned] == ["first", "second", "first"]
    path.write_text("\n")
    with pytest.raises(CliError, match="holds no prompt"):
        prompts_of(path)


def test_patterns_keep_their_order() -> None:
    assert matching(["b*", "a1", "*"], ["a1", "a2", "b2", "b1"]) == ["b1", "b2", "a1", "a2"]


def test_the_summary_adds_up() -> None:
    outcomes = [
        Outcome(adapter="a", begun=0.0, messages=[0.1, 0.2, 0.4], tokens=5, prompt_tokens=7),
        Outcome(adapter="", begun=0.5, messages=[1.5], tokens=1, prompt_tokens=3, cached_tokens=2),
        Outcome(adapter="b", begun=0.6, error="UNAVAILABLE GONE"),
    ]
    summary = summarise(outcomes, parse_goals(["ttft=500", "tpot=80"]))
    assert summary["seconds"] == 1.5
    assert (summary["completed"], summary["failed"]) == (2, {"UNAVAILABLE GONE": 1})
    assert summary["output_tokens_per_second"] == 4.0
    assert summary["ttft_ms"]["mean"] == pytest.approx(550)
    assert summary["tpot_ms"] == {"mean": 75.0, "p50": 75.0, "p90": 75.0, "p99": 75.0, "max": 75.0}
    assert summary["itl_ms"]["max"] == pytest.approx(200)
    assert (summary["good_requests"], summary["cached_prompt_tokens"]) == (1, 2)
