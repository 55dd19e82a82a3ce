"""Each sampling option against a plain definition, row by row and token by token."""

import math

import pytest
import torch
from torch import Tensor

from executor.sampling import filters

VOCAB = 23
INF = float("inf")


@pytest.fixture
def logits() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, VOCAB) * 3


def entries(tokens_by_row: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = [row for row, tokens in enumerate(tokens_by_row) for _ in tokens]
    return torch.tensor(rows), torch.tensor([token for tokens in tokens_by_row for token in tokens])


SEEN = [[3, 3, 5], [], [0, 22, 22, 22], [7]]


def test_bias(logits: Tensor) -> None:
    expected = logits.clone()
    expected[0, 3] += 2.5
    expected[2, 0] += -INF
    filters.add_bias(logits, torch.tensor([0, 2]), torch.tensor([3, 0]), torch.tensor([2.5, -INF]))
    torch.testing.assert_close(logits, expected)


def test_suppress(logits: Tensor) -> None:
    expected = logits.clone()
    for row, tokens in enumerate(SEEN):
        for token in tokens:
            expected[row, token] = -INF
    filters.suppress(logits, *entries(SEEN))
    assert torch.equal(logits, expected)


def test_repetition(logits: Tensor) -> None:
    penalties = [1.3, 2.0, 0.7, 1.0]
    expected = logits.clone()
    for row, tokens in enumerate(SEEN):
        for token in set(tokens):
            value = logits[row, token].item()
            expected[row, token] = value / penalties[row] if value > 0 else value * penalties[row]
    filters.penalise_repetition(logits, *entries(SEEN), torch.tensor(penalties))
    torch.testing.assert_close(logits, expected)


def test_presence_and_frequency(logits: Tensor) -> None:
    presence, frequency = [0.5, 1.0, -0.3, 0.0], [0.2, 1.0, 0.9, -1.5]
    expected = logits.clone()
    for row, tokens in enumerate(SEEN):
        for token in set(tokens):
            expected[row, token] -= presence[row] + frequency[row] * tokens.count(token)
    filters.penalise_presence(logits, *entries(SEEN), torch.tensor(presence))
    filters.penalise_frequency(logits, *entries(SEEN), torch.tensor(frequency))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("temperature", [1e-9, 0.5, 1.0, 100.0])
def test_heat(logits: Tensor, temperature: float) -> None:
    expected = ((logits.double() - logits.double().amax(-1, keepdim=True)) / temperature).softmax(-1)
    filters.heat(logits, torch.full((4,), temperature))
    assert not logits.isnan().any()
    torch.testing.assert_close(logits.double().softmax(-1), expected, rtol=1e-4, atol=1e-6)


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def test_top_k(logits: Tensor) -> None:
    logits[1, :] = 1.0  # all tie
    logits[2, [4, 9]] = 50.0
    limits = [5, 2, 1, 0]
    before = logits.clone()
    filters.keep_top_k(logits, torch.tensor(limits), largest=5)
    everything = set(range(VOCAB))
    largest = set(before[0].argsort(descending=True)[:5].tolist())
    assert kept(logits) == [largest, everything, {4, 9}, everything]
    assert torch.equal(logits[logits.isfinite()], before[logits.isfinite()]), "what stays is unchanged"


def test_top_k_beyond_the_vocabulary_keeps_all(logits: Tensor) -> None:
    before = logits.clone()
    filters.keep_top_k(logits, torch.tensor([VOCAB, VOCAB + 1, 10**6, 0]), largest=10**6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p(logits: Tensor, p: float) -> None:
    expected = []
    for row in logits.double().softmax(-1).tolist():
        chosen, total = set(), 0.0
        for token in sorted(range(VOCAB), key=lambda token: -row[token]):
            if total >= p and p < 1:
                break
            chosen.add(token)
            total += row[token]
        expected.append(chosen)
    filters.keep_top_p(logits, torch.full((4,), p))
    assert kept(logits) == expected


def test_top_p_keeps_ties_with_the_last() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    filters.keep_top_p(logits, torch.tensor([0.6]))
    assert kept(logits) == [{0, 1, 2}]


def test_top_p_looks_at_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    filters.keep_top_k(logits, torch.tensor([2]), largest=2)
    filters.keep_top_p(logits, torch.tensor([0.55]))
    assert kept(logits) == [{0}], "0.4 of 0.7 is over 0.55"


@pytest.mark.parametrize("min_p", [0.0, 0.01, 0.2, 1.0])
def test_min_p(logits: Tensor, min_p: float) -> None:
    expected = [
        {token for token in range(VOCAB) if row[token] >= min_p * max(row)}
        for row in logits.double().softmax(-1).tolist()
    ]
    filters.keep_min_p(logits, torch.full((4,), min_p))
    assert kept(logits) == expected


def test_rows_do_not_see_each_other(logits: Tensor) -> None:
    """A neutral row passes through every filter unchanged, whatever its neighbours ask for."""
    before = logits.clone()
    rows, tokens = entries([[1, 2], [], [3], [4]])
    filters.penalise_repetition(logits, rows, tokens, torch.tensor([2.0, 1.0, 2.0, 2.0]))
    filters.keep_top_k(logits, torch.tensor([3, 0, 2, 2]), largest=3)
    filters.keep_top_p(logits, torch.tensor([0.5, 1.0, 0.2, 0.2]))
    filters.keep_min_p(logits, torch.tensor([0.5, 0.0, 0.2, 0.2]))
    assert torch.equal(logits[1], before[1])
    assert math.isinf(logits[0].min().item())
