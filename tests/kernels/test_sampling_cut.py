"""What top-k and top-p keep, searched for, against a sort of the row."""

import pytest
import torch
from torch import Tensor

from kernels.sampling.cut import keep_top_k, keep_top_p

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 5001


def rows(*, is_coarse: bool) -> Tensor:
    """Peaked and flat, shifted far off, with removed tokens; coarse ones have many ties."""
    torch.manual_seed(0)
    logits = torch.randn(7, VOCAB)
    logits[1] *= 8
    logits[2] *= 0.01
    logits[3] = logits[3] * 3 + 500
    logits[4, 40:] = float("-inf")
    logits[5, torch.randperm(VOCAB)[: 2 * VOCAB // 3]] = float("-inf")
    logits[6] = -torch.arange(VOCAB) * 7.5
    return (logits.bfloat16().float() if is_coarse else logits).to(DEVICE)


def kept_by_count(logits_V: Tensor, k: int) -> Tensor:
    if not 0 < k < len(logits_V):
        return logits_V > float("-inf")
    return (logits_V >= logits_V.sort(descending=True).values[k - 1]) & (logits_V > float("-inf"))


def kept_by_mass(logits_V: Tensor, p: float) -> Tensor:
    """Those above which less than p lies; ties stay together."""
    if p >= 1:
        return logits_V > float("-inf")
    values, inverse = logits_V.double().unique(return_inverse=True)
    mass = torch.zeros_like(values).index_add_(0, inverse, logits_V.double().softmax(-1))
    above = mass.flip(0).cumsum(0).flip(0) - mass
    return (above < p)[inverse] & (logits_V > float("-inf"))


@pytest.mark.parametrize("is_coarse", [False, True])
@pytest.mark.parametrize("k", [1, 37, 1000, VOCAB - 1, 0])
def test_top_k(k: int, is_coarse: bool) -> None:
    logits = rows(is_coarse=is_coarse)
    cut = logits.clone()
    keep_top_k(cut, torch.full((len(logits),), k, device=DEVICE))
    for row, before in enumerate(logits):
        kept = kept_by_count(before, k)
        assert torch.equal(cut[row], before.where(kept, float("-inf"))), f"row {row}"


@pytest.mark.parametrize("is_coarse", [False, True])
@pytest.mark.parametrize("p", [1e-6, 0.5, 0.9, 1 - 2.0**-20, 1.0])
def test_top_p(p: float, is_coarse: bool) -> None:
    logits = rows(is_coarse=is_coarse)
    cut = logits.clone()
    keep_top_p(cut, torch.full((len(logits),), p, device=DEVICE))
    for row, before in enumerate(logits):
        kept = cut[row] > float("-inf")
        assert torch.equal(cut[row], before.where(kept, float("-inf"))), f"row {row}: a logit has changed"
        # Sums in float32 may be wrong where the limit is all but met.
        error = 2e-6
        fewest, most = kept_by_mass(before, p - error), kept_by_mass(before, min(p + error, 1.0))
        fewest[before.argmax()] = True
        assert (fewest <= kept).all(), f"row {row}: too few"
        assert (kept <= most).all(), f"row {row}: too many"


def test_limits_of_rows_differ() -> None:
    logits = rows(is_coarse=False)[:4]
    cut = logits.clone()
    keep_top_k(cut, torch.tensor([3, 0, VOCAB + 5, 50], device=DEVICE))
    assert (cut > float("-inf")).sum(-1).tolist() == [3, VOCAB, VOCAB, 50]
    alone = logits[3:].clone()
    keep_top_k(alone, torch.tensor([50], device=DEVICE))
    assert torch.equal(alone[0], cut[3])


def test_all_tokens_alike() -> None:
    logits = torch.full((2, 600), 3.25, device=DEVICE)
    keep_top_p(logits, torch.tensor([0.3, 0.9], device=DEVICE))
    keep_top_k(logits, torch.tensor([1, 5], device=DEVICE))
    assert (logits == 3.25).all()


def test_neighbours_among_floats() -> None:
    """Values that no float lies between are told apart."""
    values = torch.tensor([1.0, 1 + 2.0**-23, 1 + 2.0**-22, 1 + 3 * 2.0**-23, -4e30])
    logits = values.repeat(3, 100)[:, torch.randperm(500)].to(DEVICE)
    keep_top_k(logits, torch.tensor([1, 150, 401], device=DEVICE))
    assert (logits > float("-inf")).sum(-1).tolist() == [100, 200, 500]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_cannot_be_cut_ends(bad: float) -> None:
    logits = torch.full((2, 300), bad, device=DEVICE)
    logits[1, 7] = 1.0
    keep_top_p(logits, torch.tensor([0.5, 0.5], device=DEVICE))
    keep_top_k(logits, torch.tensor([2, 2], device=DEVICE))


def test_no_rows_and_wrong_dtype() -> None:
    keep_top_k(torch.empty(0, 10, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE))
    with pytest.raises(ValueError, match="float32"):
        keep_top_p(torch.empty(1, 10, device=DEVICE).half(), torch.ones(1, device=DEVICE))
