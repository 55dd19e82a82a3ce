"""Draws against the definition of their noise."""

import pytest
import torch

from executor.sampling.noise import gumbel
from kernels.sampling.gpu import draw, logsumexp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_draws_are_those_of_the_noise() -> None:
    torch.manual_seed(0)
    rows, vocab_size = 40, 5000
    logits = torch.randn(rows, vocab_size, device=DEVICE) * 2
    logits[3, 100:] = float("-inf")
    seeds = torch.randint(-(1 << 62), 1 << 62, (rows,), device=DEVICE)
    seeds[:2] = torch.tensor([0, -1])
    positions = torch.arange(rows, device=DEVICE) * 977
    expected = (logits + gumbel(seeds, positions, vocab_size)).argmax(-1)
    assert torch.equal(draw(logits, seeds, positions), expected)


def test_what_is_no_number_is_not_drawn() -> None:
    """Where a row has nothing else, its token is one of the vocabulary, which ends within a chunk."""
    logits = torch.full((2, 5000), float("nan"), device=DEVICE)
    logits[1, 4711] = -3.0
    seeds, positions = torch.arange(2, device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    assert draw(logits, seeds, positions).tolist() == [0, 4711]


def test_the_noise_of_one_token_in_a_million() -> None:
    """Large values of the noise, which decide, are as exact as small ones."""
    rows, vocab_size = 3, 1 << 17
    logits = torch.zeros(rows, vocab_size, device=DEVICE)
    seeds, positions = torch.arange(rows, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    noise = gumbel(seeds, positions, vocab_size)
    assert torch.equal(draw(logits, seeds, positions), noise.argmax(-1))
    assert noise.max() > 10


def test_logsumexp() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 20_011, device=DEVICE) * 5
    logits[1, 7:] = float("-inf")
    logits[2] += 300
    total = logsumexp(logits)
    torch.testing.assert_close(total, logits.double().logsumexp(-1).float(), atol=2e-6, rtol=1e-6)
    assert torch.equal(logsumexp(logits[2:3]), total[2:3])


def test_no_rows_and_wrong_dtype() -> None:
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert draw(torch.empty(0, 10, device=DEVICE), none, none).shape == (0,)
    with pytest.raises(ValueError, match="float32"):
        draw(torch.empty(1, 10, device=DEVICE).half(), none, none)
