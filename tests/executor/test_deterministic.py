"""Deterministic mode: a request's tokens and log probabilities have the same bits in whatever company and
chunks they are computed, from cached prefixes too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from tests.support.engine_rig import Answer, Ask, Rig, random_pack

TINY = {
    "model_type": "qwen3",
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "sliding_window": 20,
    "max_window_layers": 1,
}
MODEL = ModelConfig.parse(TINY, {})
PARAMETERS = dummy_parameters(MODEL, dtype=torch.float32, device=torch.device("cpu"))
PACKS = {
    f"{i}": random_pack(MODEL, rank=rank, dtype=torch.float32, seed=i, ends=i == 1, forms=i == 2)
    for i, rank in enumerate((8, 16, 24))
}


def make(deterministic: bool = True, **options: object) -> Rig:
    limits = {"max_running": 16, "context": 160, "pages": 200, "max_step_tokens": 200} | options
    return Rig(MODEL, PARAMETERS, packs=PACKS, deterministic=deterministic, **limits)  # pyright: ignore[reportArgumentType]


def requests(count: int, output: int) -> list[Ask]:
    rng = np.random.default_rng(1)
    sampling = SamplingParams(max_tokens=output, logprobs=0)
    return [
        Ask(
            prompt=rng.integers(0, MODEL.vocab_size, int(rng.integers(1, 50))),
            adapter=["", "0", "1", "2"][i % 4],
            sampling=replace(sampling, temperature=0.8, seed=i) if i % 3 == 1 else sampling,
        )
        for i in range(count)
    ]


def same(answers: list[Answer], expected: list[Answer]) -> bool:
    return [(a.tokens, a.logprobs) for a in answers] == [(a.tokens, a.logprobs) for a in expected]


@pytest.fixture(scope="module")
def alone() -> list[Answer]:
    """Each request in an engine that has nothing else to do."""
    rig = make(max_running=1)
    return [rig.serve([ask])[0] for ask in requests(6, 14)]


def test_together_chunked_cached_and_preempted(alone: list[Answer]) -> None:
    asks = requests(6, 14)
    rig = make()
    assert same(rig.serve(asks), alone)
    assert same(rig.serve(asks), alone), "from cached prefixes"
    assert same(make(chunk=7).serve(asks), alone)
    preempting = make(pages=11)
    assert same(preempting.serve(asks), alone)
    assert preempting.scheduler.statistics().preemptions > 0


def test_a_prompt_that_was_once_an_answer(alone: list[Answer]) -> None:
    """Keys and values that decoding left in the cache are those that a prompt's would be."""
    ask = requests(6, 14)[2]
    following = replace(ask, prompt=np.concatenate((ask.prompt, alone[2].tokens, [7, 8])))
    warm = make()
    warm.serve([ask])
    assert same(warm.serve([following]), make().serve([following]))


def test_without_it_a_batch_changes_bits(alone: list[Answer]) -> None:
    """So that the tests above can fail."""
    assert not same(make(deterministic=False).serve(requests(6, 14)), alone)
