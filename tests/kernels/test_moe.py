"""Routing and experts in plain torch against the reference."""

import pytest
import torch
from torch import Tensor

from kernels import moe
from kernels.moe import ExpertWeights, RouterForm, Routing, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
EXPERTS, HIDDEN, WIDE = 9, 34, 13


def make_weights(dtype: torch.dtype) -> ExpertWeights:
    return ExpertWeights(
        gate_up_E2ID=(torch.randn(EXPERTS, 2 * WIDE, HIDDEN) * HIDDEN**-0.5).to(dtype),
        down_EDI=(torch.randn(EXPERTS, HIDDEN, WIDE) * WIDE**-0.5).to(dtype),
    )


class Shift:
    """Adds something that differs by pair and column, so that rows out of order would show."""

    def gate_up(self, y_P2I: Tensor, x_TD: Tensor, routing: Routing) -> None:
        y_P2I += (
            self._of(y_P2I, routing)
            + x_TD.mean(dim=1).repeat_interleave(routing.experts_TX.shape[1])[:, None]
        )

    def down(self, y_PD: Tensor, wide_PI: Tensor, routing: Routing) -> None:
        y_PD += self._of(y_PD, routing) + wide_PI.mean(dim=1, keepdim=True)

    def _of(self, y: Tensor, routing: Routing) -> Tensor:
        columns = torch.arange(y.shape[1]) / y.shape[1]
        return (routing.experts_TX.reshape(-1, 1) + columns).to(y.dtype) / 10


@pytest.mark.parametrize("form", RouterForm)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (7, 2), (5, EXPERTS), (0, 2)])
def test_route(form: RouterForm, dtype: torch.dtype, tokens: int, top_k: int) -> None:
    torch.manual_seed(tokens)
    logits = (torch.randn(tokens, EXPERTS).mul(4) + torch.arange(EXPERTS) / 16).to(dtype)
    routing = moe.route(logits, top_k=top_k, form=form)
    expected = reference.route(logits, top_k=top_k, form=form)
    assert routing.experts_TX.dtype == torch.int32
    assert routing.weights_TX.dtype == torch.float32
    # Equal logits, as in 16 bits, may come in either order.
    assert torch.equal(
        logits.gather(1, routing.experts_TX.long()), logits.gather(1, expected.experts_TX.long())
    )
    torch.testing.assert_close(routing.weights_TX, expected.weights_TX)
    total = routing.weights_TX.sum(dim=1)
    if form is RouterForm.NORMALISED or top_k == EXPERTS:
        torch.testing.assert_close(total, torch.ones(tokens))
    else:
        assert (total < 1).all()


def test_route_tells_logits_apart_whose_shares_are_equal() -> None:
    """Far below the largest, shares underflow to 0; logits still have an order."""
    logits = torch.tensor([[200.0, -1.0, 0.0, -2.0, 1.0]])
    assert moe.route(logits, top_k=3, form=RouterForm.SHARES).experts_TX.tolist() == [[0, 4, 2]]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("adapt", [None, Shift()], ids=["base", "adapted"])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (11, 3), (40, 2), (0, 2)])
def test_experts(dtype: torch.dtype, adapt: Shift | None, tokens: int, top_k: int) -> None:
    torch.manual_seed(tokens)
    weights, x = make_weights(dtype), torch.randn(tokens, HIDDEN).to(dtype)
    routing = moe.route(torch.randn(tokens, EXPERTS), top_k=top_k, form=RouterForm.SHARES)
    before = x.clone()
    out = moe.experts(x, routing, weights, adapt=adapt, triton=False)
    expected = reference.experts(x, routing, weights, adapt=adapt)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == dtype
    assert out.shape == (tokens, HIDDEN)
    torch.testing.assert_close(out, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 3)
    assert torch.equal(x, before), "the input was touched"


def test_reference_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    weights, x = make_weights(torch.float32), torch.randn(1, HIDDEN)
    routing = Routing(torch.tensor([[4, 2]], dtype=torch.int32), torch.tensor([[0.7, 0.1]]))
    out = reference.experts(x, routing, weights, adapt=None)
    expected = torch.zeros(HIDDEN)
    for expert, weight in ((4, 0.7), (2, 0.1)):
        gate, up = (weights.gate_up_E2ID[expert] @ x[0]).chunk(2)
        expected += weight * (weights.down_EDI[expert] @ (gate * torch.sigmoid(gate) * up))
    torch.testing.assert_close(out[0], expected)


def test_padding_adds_nothing_and_unused_experts_are_not_read() -> None:
    torch.manual_seed(0)
    weights, x = make_weights(torch.float32), torch.randn(3, HIDDEN)
    x[1] = float("nan")
    weights.gate_up_E2ID[5] = weights.down_EDI[5] = float("nan")
    routing = Routing(
        torch.tensor([[1, 0], [-1, -1], [8, -1]], dtype=torch.int32),
        torch.tensor([[0.5, 0.2], [float("nan"), 1.0], [0.3, float("inf")]]),
    )
    out = moe.experts(x, routing, weights, adapt=None, triton=False)
    alone = Routing(torch.tensor([[8]], dtype=torch.int32), torch.tensor([[0.3]]))
    assert isinstance(out, torch.Tensor)
    assert not out[1].any()
    torch.testing.assert_close(out[2:], reference.experts(x[2:], alone, weights, adapt=None))
    torch.testing.assert_close(out, reference.experts(x, routing, weights, adapt=None))
