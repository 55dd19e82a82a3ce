"""Many requests through base and adapters in one batch, token for token against transformers and PEFT.

For each family: cold, warm from the prefix tree, in chunks of 7 tokens, and with so few pages that
sequences are preempted.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from executor.control.request import FinishReason, SamplingParams
from tests.support.oracle_adapters import ADAPTERS, make_adapters
from tests.support.oracle_checkpoints import FAMILIES, make_checkpoint
from tests.support.oracle_reference import Oracle, Verdict
from tests.support.oracle_serving import Answer, Ask, Server, mixed_asks

REQUESTS = 48
OWNERS = ("", *ADAPTERS)


class Family:
    """A checkpoint, its adapters and their oracle."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.checkpoint = make_checkpoint(folder / "model", name)
        self.adapters = make_adapters(self.checkpoint, folder / "adapters")
        self.oracle = Oracle(self.checkpoint, self.adapters)

    def server(self, **options: Any) -> Server:
        return Server(self.checkpoint, self.adapters, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def make_asks(count: int = REQUESTS, *, longest: int = 70) -> list[Ask]:
    return mixed_asks(OWNERS, count, longest=longest, outputs=(8, 24))


def check(family: Family, answers: Sequence[Answer]) -> Verdict:
    assert all(answer.finish == FinishReason.LENGTH for answer in answers)
    assert all(len(answer.tokens) == answer.ask.sampling.max_tokens for answer in answers)
    verdict = family.oracle.judge(answers)
    print(family.name, verdict)  # what -s or a failure shows
    return verdict


def test_every_adapter_answers_differently(family: Family) -> None:
    """Otherwise a test that mixes them up would pass."""
    prompt = make_asks(1, longest=40)[0].prompt
    sampling = SamplingParams(max_tokens=16, logprobs=0)
    answers = family.server().serve(
        [Ask(prompt=prompt, adapter=owner, sampling=sampling) for owner in OWNERS]
    )
    check(family, answers)
    assert len({tuple(answer.tokens) for answer in answers}) == len(OWNERS)
    scores = [family.oracle.logprobs(owner, prompt)[-1] for owner in OWNERS]
    for i, mine in enumerate(scores):
        for other in scores[:i]:
            assert (mine - other).abs().max() > 0.1


@pytest.mark.parametrize("overlap", [False, True])
def test_mixed_batch_cold_and_warm(family: Family, overlap: bool) -> None:
    server, asks = family.server(overlap=overlap), make_asks()
    cold = server.serve(asks)
    assert server.runner.most_rows >= 40
    assert server.runner.most_slots == len(OWNERS)
    verdict = check(family, cold)
    assert verdict.positions > 500
    assert all(answer.cached_tokens == 0 for answer in cold)

    warm = server.serve(asks)
    check(family, warm)
    for before, after in zip(cold, warm, strict=True):
        wants_prompt = after.ask.sampling.prompt_logprobs is not None
        # All full pages but the one that would hold the last prompt token.
        assert after.cached_tokens == (0 if wants_prompt else (len(after.ask.prompt) - 1) // 4 * 4)
        assert before.tokens == after.tokens
    assert server.scheduler.statistics().preemptions == 0


def test_chunks_of_seven_tokens(family: Family) -> None:
    server = family.server(chunk=7)
    check(family, server.serve(make_asks()))
    assert server.runner.most_rows >= 40


def test_preempted_for_want_of_pages(family: Family) -> None:
    server = family.server(pages=64, chunk=16)
    check(family, server.serve(make_asks()))
    assert server.scheduler.statistics().preemptions > 5


def test_more_adapters_than_slots(family: Family) -> None:
    server = family.server(adapter_slots=2)
    check(family, server.serve(make_asks(24)) + server.serve(make_asks(24)))
    assert server.loader.installs > len(ADAPTERS)


def test_no_adapter_reuses_anothers_kv(family: Family) -> None:
    """One prompt through A, then B, then the base: each computes all of it, and finds only its own again."""
    prompt = tuple(random.Random(3).randrange(256) for _ in range(41))
    server, owners = family.server(), ("attention", "mlp", "")
    sampling = SamplingParams(max_tokens=8, logprobs=0)
    first = [server.serve([Ask(prompt=prompt, adapter=owner, sampling=sampling)])[0] for owner in owners]
    again = [server.serve([Ask(prompt=prompt, adapter=owner, sampling=sampling)])[0] for owner in owners]
    assert [answer.cached_tokens for answer in first] == [0, 0, 0]
    assert [answer.cached_tokens for answer in again] == [40, 40, 40]
    check(family, first + again)
    assert len({tuple(answer.logprobs) for answer in first}) == 3


def test_seeded_requests_draw_the_same_everywhere(family: Family) -> None:
    """Alone, in a crowd, in chunks, preempted: a seed and a prompt decide the tokens."""

    def sampled(seed: int, ask: Ask) -> Ask:
        sampling = SamplingParams(
            max_tokens=16,
            temperature=0.9,
            top_p=0.95,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.1,
            min_tokens=4,
            seed=seed,
        )
        return Ask(prompt=ask.prompt, adapter=ask.adapter, sampling=sampling)

    asks = [sampled(seed, ask) for seed, ask in enumerate(make_asks(24))]
    expected = [answer.tokens for answer in family.server().serve(asks)]
    assert [answer.tokens for answer in family.server(chunk=5, overlap=False).serve(asks)] == expected
    short_of_pages = family.server(pages=100)
    assert [answer.tokens for answer in short_of_pages.serve(asks)] == expected
    assert short_of_pages.scheduler.statistics().preemptions > 0
    alone = family.server()
    assert [alone.serve([ask])[0].tokens for ask in asks[:6]] == expected[:6]
    reseeded = [sampled(seed + 1000, ask) for seed, ask in enumerate(asks)]
    assert [answer.tokens for answer in alone.serve(reseeded)] != expected
