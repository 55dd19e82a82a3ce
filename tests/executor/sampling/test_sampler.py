"""The sampler as a whole: order of options, counting, distributions, and independence from the batch."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from executor.control.request import SamplingParams
from executor.sampling.sampler import Sampled, Sampler

VOCAB, EOS = 12, 11


def params(**options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=100, **options)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def sampler_with(
    *options: SamplingParams, prompt: Sequence[int] = (), emitted: Sequence[int] = ()
) -> Sampler:
    sampler = Sampler(rows=8, eos_ids=(EOS,))
    for row, option in enumerate(options):
        sampler.install(row, option, ids(*prompt), ids(*emitted))
    return sampler


def sample(sampler: Sampler, logits: Tensor, *, rows: list[int] | None = None, position: int = 5) -> Sampled:
    before = logits.clone()
    rows = list(range(len(logits))) if rows is None else rows
    sampled = sampler.sample(
        logits, logits.argmax(-1), np.array(rows, dtype=np.int32), np.full(len(rows), position)
    ).collect()
    assert torch.equal(logits, before), "raw logits belong to the caller"
    return sampled


def ramp(rows: int = 1) -> Tensor:
    """Logits that grow with the token id."""
    return torch.arange(VOCAB, dtype=torch.float32).repeat(rows, 1)


def frequencies(option: SamplingParams, logits: Tensor, draws: int = 4000) -> dict[int, float]:
    """Share of each token over many positions."""
    sampler = Sampler(rows=1, eos_ids=())
    sampler.install(0, option, ids(), ids())
    rows = np.zeros(draws, dtype=np.int32)
    sampled = sampler.sample(
        logits.repeat(draws, 1), logits.argmax(-1).repeat(draws), rows, np.arange(draws)
    ).collect()
    return {token: count / draws for token, count in Counter(sampled.token_ids.tolist()).items()}


def chi_square(observed: dict[int, float], expected: Tensor, draws: int) -> float:
    return sum(
        (observed.get(token, 0.0) - p) ** 2 / p * draws for token, p in enumerate(expected.tolist()) if p > 0
    )


def test_greedy_rows_take_the_largest() -> None:
    sampler = sampler_with(params(), params())
    assert sample(sampler, torch.stack((ramp()[0], -ramp()[0]))).token_ids.tolist() == [VOCAB - 1, 0]


def above(logits: Tensor, least: float) -> Tensor:
    return torch.where(logits >= least, logits, -torch.inf).softmax(-1)


@pytest.mark.parametrize(
    ("option", "probabilities"),
    [
        (params(temperature=1.0, seed=1), lambda x: x.softmax(-1)),
        (params(temperature=0.5, seed=2), lambda x: (x / 0.5).softmax(-1)),
        (params(temperature=3.0, seed=3), lambda x: (x / 3).softmax(-1)),
        (
            params(temperature=1.0, top_k=3, seed=4),
            lambda x: above(x, 1.0),
        ),
        (
            params(temperature=1.0, min_p=0.5, seed=5),
            lambda x: above(x, 1.5),
        ),
        (
            params(temperature=1.0, top_p=0.6, seed=6),
            lambda x: above(x, 1.5),
        ),
    ],
    ids=["plain", "cold", "hot", "top_k", "min_p", "top_p"],
)
def test_draws_follow_the_distribution(option: SamplingParams, probabilities: Any) -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 0.5, 1.5, -1.0])
    expected, draws = probabilities(logits), 4000
    observed = frequencies(option, logits, draws)
    assert set(observed) <= set(expected.nonzero().flatten().tolist())
    # Five degrees of freedom at most: beyond 20.5 once in a thousand seeds, and these are fixed.
    assert chi_square(observed, expected, draws) < 20.5


def test_a_seeded_request_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, VOCAB)

    def alone(seed: int) -> list[int]:
        sampler = sampler_with(params(temperature=0.9, top_p=0.9, seed=seed))
        return [int(sample(sampler, logits[:1], position=position).token_ids[0]) for position in range(30)]

    others = [params(temperature=0.5 + i, seed=i, top_k=3, presence_penalty=0.5) for i in range(5)]
    crowded = sampler_with(*others, params(temperature=0.9, top_p=0.9, seed=77))
    together = [
        int(sample(crowded, logits.roll(-1, 0), position=position).token_ids[-1]) for position in range(30)
    ]
    assert together == alone(77)
    assert together != alone(78)
    assert len(set(together)) > 2


def test_options_apply_in_the_stated_order() -> None:
    """Bias before penalties before temperature: each order would choose another token."""
    # The bias lifts token 2 above 0; the repetition penalty then halves what it became.
    sampler = sampler_with(params(logit_bias=((2, 10.0),), repetition_penalty=2.0), prompt=(2,))
    logits = torch.tensor([[1.0, 0.0, -4.0, 2.9]])
    assert sample(sampler, logits).token_ids.tolist() == [2]  # (-4 + 10) / 2 = 3
    sampler = sampler_with(params(logit_bias=((2, 10.0),), repetition_penalty=2.0), prompt=(2,))
    assert sample(sampler, torch.tensor([[1.0, 0.0, -4.0, 3.1]])).token_ids.tolist() == [3]


def test_repetition_counts_prompt_and_output_the_others_output_only() -> None:
    logits = torch.tensor([[3.0, 2.9, 2.1] + [0.0] * 9])
    assert sample(sampler_with(params(repetition_penalty=1.5), prompt=(0,)), logits).token_ids[0] == 1
    assert (
        sample(
            sampler_with(
                params(repetition_penalty=1.5),
                emitted=(
                    0,
                    1,
                ),
            ),
            logits,
        ).token_ids[0]
        == 2
    )
    assert sample(sampler_with(params(presence_penalty=0.5), prompt=(0,)), logits).token_ids[0] == 0
    assert (
        sample(
            sampler_with(
                params(presence_penalty=0.5),
                emitted=(
                    0,
                    0,
                ),
            ),
            logits,
        ).token_ids[0]
        == 1
    )
    assert sample(sampler_with(params(frequency_penalty=0.5), prompt=(0,)), logits).token_ids[0] == 0
    assert sample(sampler_with(params(frequency_penalty=0.06), emitted=(0,)), logits).token_ids[0] == 0
    assert (
        sample(
            sampler_with(
                params(frequency_penalty=0.06),
                emitted=(
                    0,
                    0,
                ),
            ),
            logits,
        ).token_ids[0]
        == 1
    )


def test_sampled_tokens_count_as_output() -> None:
    sampler = sampler_with(params(presence_penalty=100.0), params())
    chosen = [sample(sampler, ramp(2)).token_ids.tolist() for _ in range(4)]
    assert chosen == [[11, 11], [10, 11], [9, 11], [8, 11]]


def test_emitted_tokens_resume_where_they_were() -> None:
    """A row that is installed again with what it had emitted goes on as if nothing had happened."""
    option = params(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.2, seed=5, min_tokens=6)
    torch.manual_seed(3)
    logits = torch.randn(10, 1, VOCAB) * 2
    steady = sampler_with(
        option,
        prompt=(
            1,
            2,
        ),
    )
    whole = [int(sample(steady, logits[i], position=2 + i).token_ids[0]) for i in range(10)]
    resumed = sampler_with(
        option,
        prompt=(
            1,
            2,
        ),
        emitted=whole[:4],
    )
    assert [int(sample(resumed, logits[i], position=2 + i).token_ids[0]) for i in range(4, 10)] == whole[4:]


def test_min_tokens_suppress_every_stop() -> None:
    option = params(min_tokens=3, stop_token_ids=(10, 9))
    sampler = sampler_with(option)
    assert [int(sample(sampler, ramp()).token_ids[0]) for _ in range(5)] == [8, 8, 8, EOS, EOS]
    assert (
        sample(
            sampler_with(
                option,
                emitted=(
                    8,
                    8,
                ),
            ),
            ramp(),
        ).token_ids[0]
        == 8
    )
    assert (
        sample(
            sampler_with(
                option,
                emitted=(
                    8,
                    8,
                    8,
                ),
            ),
            ramp(),
        ).token_ids[0]
        == EOS
    )


def test_an_ignored_eos_is_no_stop() -> None:
    assert sample(sampler_with(params(min_tokens=3, ignore_eos=True)), ramp()).token_ids[0] == EOS
    option = params(min_tokens=3, ignore_eos=True, stop_token_ids=(EOS,))
    assert sample(sampler_with(option), ramp()).token_ids[0] == EOS - 1


def test_logit_bias_forces_and_forbids() -> None:
    sampler = sampler_with(params(logit_bias=((3, 100.0),)), params(logit_bias=((11, -100.0), (10, -100.0))))
    assert sample(sampler, ramp(2)).token_ids.tolist() == [3, 9]
    everything = tuple((token, float("-inf")) for token in range(VOCAB))
    token = sample(sampler_with(params(logit_bias=everything, temperature=1.0, top_p=0.5)), ramp()).token_ids[
        0
    ]
    assert 0 <= token < VOCAB, "nothing left to choose is no crash"


def test_logprobs_are_those_of_raw_logits() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, VOCAB) * 3
    sampler = sampler_with(
        params(logprobs=0, temperature=5.0, seed=3),
        params(),
        params(logprobs=3, logit_bias=((0, 100.0),)),
        params(logprobs=VOCAB + 5),
    )
    expected = logits.log_softmax(-1)
    sampled = sample(sampler, logits)
    tokens = sampled.token_ids.tolist()
    assert tokens[2] == 0
    for row in (0, 2, 3):
        assert sampled.logprobs[row] == pytest.approx(expected[row, tokens[row]].item(), abs=1e-5)
    assert sampled.logprobs[1] == 0
    assert sorted(sampled.top) == [2, 3]
    top_ids, top_logprobs = sampled.top[2]
    best = expected[2].topk(3)
    assert top_ids.tolist() == best.indices.tolist()
    np.testing.assert_allclose(top_logprobs, best.values, atol=1e-5)
    assert len(sampled.top[3][0]) == VOCAB


def test_a_new_tenant_inherits_nothing() -> None:
    heavy = params(
        temperature=2.0,
        top_k=2,
        repetition_penalty=3.0,
        presence_penalty=5.0,
        frequency_penalty=5.0,
        logit_bias=((11, -100.0),),
        min_tokens=50,
        logprobs=2,
        seed=9,
    )
    sampler = sampler_with(
        heavy,
        prompt=(
            1,
            2,
            11,
        ),
        emitted=(
            10,
            9,
        ),
    )
    sample(sampler, ramp())
    sampler.install(0, params(), ids(), ids())
    sampled = sample(sampler, ramp())
    assert (sampled.token_ids.tolist(), sampled.logprobs.tolist(), dict(sampled.top)) == ([EOS], [0.0], {})


def test_histories_outgrow_their_first_size() -> None:
    sampler = sampler_with(params(frequency_penalty=0.25))
    tokens = [int(sample(sampler, ramp()).token_ids[0]) for _ in range(300)]
    scores, expected = [float(token) for token in range(VOCAB)], []
    for _ in range(300):
        best = max(range(VOCAB), key=lambda token: scores[token])
        expected.append(best)
        scores[best] -= 0.25
    assert sorted(Counter(tokens).values()) == sorted(Counter(expected).values())


def test_not_a_number_is_no_crash() -> None:
    """An adapter may overflow; its own request gets some token, its neighbours theirs."""
    logits = ramp(3)
    logits[0] = float("nan")
    sampler = sampler_with(
        params(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1, logprobs=2), params(), params()
    )
    sampled = sampler.sample(logits, logits.argmax(-1), np.arange(3, dtype=np.int32), np.full(3, 5)).collect()
    assert 0 <= sampled.token_ids[0] < VOCAB
    assert sampled.token_ids.tolist()[1:] == [EOS, EOS]


def test_no_rows() -> None:
    sampled = sample(sampler_with(), torch.empty(0, VOCAB))
    assert len(sampled.token_ids) == 0
