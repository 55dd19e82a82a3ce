"""DoRA, biases and saved modules beside plain LoRA in one batch, token for token against PEFT."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from executor.control.request import FinishReason, SamplingParams
from tests.support.oracle_adapters import PEFT_FORMS, make_adapters
from tests.support.oracle_checkpoints import make_checkpoint
from tests.support.oracle_reference import Oracle
from tests.support.oracle_serving import Answer, Ask, Server, mixed_asks

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3, tied, no biases": ("qwen3", {}),
    "qwen2, tied, biases of qkv": ("qwen2", {}),
    "llama, untied, biases": ("llama", {}),
    "llama, tied, no biases": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False},
    ),
}
PLAIN = ("attention", "ends")
OWNERS = ("", *PLAIN, *PEFT_FORMS)


class Base:
    """A checkpoint, adapters of every form, and their oracle."""

    def __init__(self, name: str, folder: Path) -> None:
        family, options = BASES[name]
        self.checkpoint = make_checkpoint(folder / "model", family, **options)
        self.adapters = make_adapters(self.checkpoint, folder / "adapters", [*PLAIN, *PEFT_FORMS])
        self.oracle = Oracle(self.checkpoint, self.adapters)

    def serve(self, asks: list[Ask], **options: Any) -> tuple[Server, list[Answer]]:
        server = Server(self.checkpoint, self.adapters, adapter_slots=len(OWNERS), **options)
        return server, server.serve(asks)

    def check(self, answers: list[Answer]) -> None:
        assert all(answer.finish == FinishReason.LENGTH for answer in answers)
        self.oracle.judge(answers)


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(request.param, tmp_path_factory.mktemp("base"))


def test_every_form_is_exact_alone_and_its_own(base: Base) -> None:
    """One after another; and none answers like another, or a test that mixes them up would pass."""
    prompt = tuple(random.Random(3).randrange(256) for _ in range(30))
    ask = SamplingParams(max_tokens=6, logprobs=0, prompt_logprobs=0)
    answers = []
    for owner in OWNERS:
        server = Server(base.checkpoint, {owner: base.adapters[owner]} if owner else {})
        answers += server.serve([Ask(prompt=prompt, adapter=owner, sampling=ask)])
    base.check(answers)
    scores = [base.oracle.logprobs(owner, prompt)[-1] for owner in OWNERS]
    for i, mine in enumerate(scores):
        for other in scores[:i]:
            assert (mine - other).abs().max() > 0.05


def test_all_forms_in_one_batch(base: Base) -> None:
    asks = mixed_asks(OWNERS, 44)
    server, cold = base.serve(asks)
    assert server.runner.most_slots == len(OWNERS)
    base.check(cold)
    warm = server.serve(asks)
    assert any(answer.cached_tokens for answer in warm)
    base.check(warm)


def test_chunked_and_preempted(base: Base) -> None:
    server, answers = base.serve(mixed_asks(OWNERS, 33), pages=40, chunk=7)
    base.check(answers)
    assert server.scheduler.statistics().preemptions > 0


def test_evicted_and_loaded_again(base: Base) -> None:
    """Two slots: vectors are derived anew, in other places of the pool, and nobody's are left behind."""
    server = Server(base.checkpoint, base.adapters, adapter_slots=2)
    base.check(server.serve(mixed_asks(OWNERS, 22)) + server.serve(mixed_asks(OWNERS[::-1], 22)))
    assert server.loader.installs > len(OWNERS)


def test_bfloat16_by_tolerance(base: Base) -> None:
    """As far from float32 as PEFT in bfloat16."""
    _, answers = base.serve(mixed_asks(OWNERS, 22), dtype=torch.bfloat16)
    rounded = Oracle(base.checkpoint, base.adapters, dtype=torch.bfloat16)
    ours, theirs = [], []
    for answer in answers:
        first, ids = len(answer.ask.prompt) - 1, [*answer.ask.prompt, *answer.tokens]
        expected = rounded.logprobs(answer.ask.adapter, ids)[first:]
        true = base.oracle.logprobs(answer.ask.adapter, ids)[first:]
        for i, token in enumerate(answer.tokens):
            ours.append(abs(true[i, token].item() - answer.logprobs[i]))
            theirs.append(abs(true[i, token].item() - expected[i, token].item()))
    assert max(theirs) > 1e-3, "bfloat16 has not been used"
    assert sum(ours) < 1.3 * sum(theirs)


def test_with_triton(tmp_path: Path) -> None:
    base = Base("qwen2, tied, biases of qkv", tmp_path)
    owners = ("", "attention", "dora", "dora ends", "all biases", "saved ends")
    sampling = SamplingParams(max_tokens=4, logprobs=0)
    asks = [
        Ask(prompt=tuple(range(7, 16 + i)), adapter=owner, sampling=sampling)
        for i, owner in enumerate(owners)
    ]
    server, answers = base.serve(asks, triton=True)
    assert server.runner.most_slots == len(owners)
    base.check(answers)
