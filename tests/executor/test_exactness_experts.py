"""Models with experts, every form of adapter on them mixed in one batch, against transformers and PEFT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import demo
from executor.control.request import FinishReason
from tests.support.oracle_checkpoints import MOE_FAMILIES, make_checkpoint
from tests.support.oracle_experts import FORMS, make_expert_adapters
from tests.support.oracle_reference import Oracle, Verdict
from tests.support.oracle_serving import Answer, Ask, Server, mixed_asks

DEMO = Path(demo.__file__).parent
OWNERS = ("", *FORMS)


class Family:
    """A checkpoint, its adapters and their oracle."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.checkpoint = make_checkpoint(folder / "model", name)
        self.adapters = make_expert_adapters(self.checkpoint, folder / "adapters")
        self.oracle = Oracle(self.checkpoint, {name: made.twin for name, made in self.adapters.items()})

    def server(self, **options: Any) -> Server:
        folders = {name: made.folder for name, made in self.adapters.items()}
        options.setdefault("adapter_slots", len(FORMS))
        return Server(self.checkpoint, folders, **options)


@pytest.fixture(scope="module", params=MOE_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def make_asks(count: int = 4 * len(OWNERS)) -> list[Ask]:
    return mixed_asks(OWNERS, count)


def check(family: Family, answers: Sequence[Answer]) -> Verdict:
    assert all(answer.finish == FinishReason.LENGTH for answer in answers)
    verdict = family.oracle.judge(answers)
    print(family.name, verdict)  # what -s or a failure shows
    return verdict


def test_every_adapter_answers_differently(family: Family) -> None:
    """Otherwise a test that mixes them up would pass."""
    prompt = make_asks()[2].prompt
    scores = [family.oracle.logprobs(owner, prompt)[-1] for owner in OWNERS]
    for i, mine in enumerate(scores):
        for other in scores[:i]:
            assert (mine - other).abs().max() > 0.1


def test_mixed_batch_cold_and_warm(family: Family) -> None:
    server, asks = family.server(), make_asks()
    cold = server.serve(asks)
    assert server.runner.most_rows >= 24
    assert server.runner.most_slots == len(OWNERS)
    assert check(family, cold).positions > 300
    assert all(answer.cached_tokens == 0 for answer in cold)

    warm = server.serve(asks)
    check(family, warm)
    for before, after in zip(cold, warm, strict=True):
        wants_prompt = after.ask.sampling.prompt_logprobs is not None
        assert after.cached_tokens == (0 if wants_prompt else (len(after.ask.prompt) - 1) // 4 * 4)
        assert before.tokens == after.tokens


def test_chunked_and_preempted(family: Family) -> None:
    server = family.server(chunk=16, pages=28, overlap=False)
    check(family, server.serve(make_asks()))
    assert server.scheduler.statistics().preemptions > 2


def test_more_adapters_than_slots(family: Family) -> None:
    server = family.server(adapter_slots=2)
    check(family, server.serve(make_asks(2 * len(OWNERS))))
    assert server.loader.installs >= len(FORMS)


def test_the_demos_model_with_experts() -> None:
    """A trained router, and an adapter that PEFT itself has trained and saved."""
    checkpoint, adapters = DEMO / "qwen3-moe-tiny", {"experts": DEMO / "expert_adapters" / "experts"}
    asks = [
        Ask(prompt=ask.prompt, adapter=("", "experts")[i % 2], sampling=ask.sampling)
        for i, ask in enumerate(make_asks(20))
    ]
    answers = Server(checkpoint, adapters, chunk=16).serve(asks)
    # Of random bytes it is not sure.
    verdict = Oracle(checkpoint, adapters).judge(answers, most_skipped=0.1)
    assert verdict.positions > 100
