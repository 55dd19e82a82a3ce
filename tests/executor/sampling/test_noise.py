"""The noise: known values, independence from the batch, and its distribution."""

import math

import torch

from executor.sampling.noise import gumbel


def splitmix(state: int) -> int:
    """SplitMix64's output function on Python's integers."""
    mask = (1 << 64) - 1
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def plain(seed: int, position: int, token: int) -> float:
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    key = splitmix((splitmix((seed + golden) & mask) + position * golden) & mask)
    uniform = ((splitmix((key + (token + 1) * golden) & mask) >> 11) + 0.5) * 2.0**-53
    return -math.log(-math.log1p(-min(uniform, 1 - 2.0**-24)))


def test_against_plain_integers() -> None:
    seeds = [0, 1, 2**63, 2**64 - 1, 0xDEADBEEF]
    signed = torch.tensor([seed - (1 << 64) if seed >= 1 << 63 else seed for seed in seeds])
    positions = [0, 5, 131_071, 1, 77]
    noise = gumbel(signed, torch.tensor(positions), 50)
    expected = [[plain(s, p, token) for token in range(50)] for s, p in zip(seeds, positions, strict=True)]
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_splitmix_reference_values() -> None:
    """First outputs of the published generator for seed 1234567."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    outputs = [splitmix((1234567 + (i + 1) * golden) & mask) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_row_is_the_same_in_any_batch() -> None:
    seeds, positions = torch.arange(100, 140), torch.arange(40) * 3
    together = gumbel(seeds, positions, 300)
    for row in (0, 17, 39):
        assert torch.equal(gumbel(seeds[row : row + 1], positions[row : row + 1], 300)[0], together[row])
    assert torch.equal(gumbel(seeds, positions, 100), together[:, :100])


def test_moments_and_tails() -> None:
    noise = gumbel(torch.arange(2000), torch.arange(2000) % 7, 500).double()
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772) < 0.005
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.01
    # P(g > x) = 1 - exp(-exp(-x)): about 45 of a million exceed 10.
    assert 20 < (noise > 10).sum().item() < 80


def test_neighbours_are_uncorrelated() -> None:
    """Nearby seeds, positions and tokens, which real traffic is full of."""
    noise = gumbel(torch.arange(1000).repeat_interleave(10), torch.arange(10).repeat(1000), 32).double()
    noise = (noise - noise.mean()) / noise.std()
    by_seed = noise.view(1000, 10, 32)
    for first, second in (
        (by_seed[:-1], by_seed[1:]),
        (by_seed[:, :-1], by_seed[:, 1:]),
        (by_seed[:, :, :-1], by_seed[:, :, 1:]),
    ):
        assert abs((first * second).mean().item()) < 0.01
