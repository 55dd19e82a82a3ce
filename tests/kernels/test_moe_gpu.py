"""Triton's routing and experts against the reference: odd sizes, empty experts, padding, poisoned memory."""

import pytest
import torch

from kernels import moe
from kernels.fused import gpu as fused_steps
from kernels.moe import ExpertWeights, RouterForm, Routing, gpu_products, gpu_routing, reference
from kernels.moe.tiles import Tile, Tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 3e-5, torch.float16: 4e-3}


def make_routing(tokens: int, experts: int, top_k: int, *, padding: int = 0) -> Routing:
    chosen = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]).int()
    chosen[tokens - padding :] = -1
    return Routing(chosen.to(DEVICE), torch.rand(tokens, top_k).to(DEVICE))


def make_weights(experts: int, hidden: int, wide: int, dtype: torch.dtype) -> ExpertWeights:
    gate_up = torch.randn(experts, 2 * wide, hidden) * hidden**-0.5
    down = torch.randn(experts, hidden, wide) * wide**-0.5
    return ExpertWeights(gate_up.to(DEVICE, dtype), down.to(DEVICE, dtype))


def on_cpu(routing: Routing) -> Routing:
    return Routing(*(tensor.cpu() for tensor in routing))


@pytest.mark.parametrize("form", RouterForm)
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 8, 2), (5, 60, 4), (3, 128, 8), (2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_route(tokens: int, experts: int, top_k: int, form: RouterForm, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randperm(tokens * experts).view(tokens, experts).to(DEVICE, dtype) / 64  # no ties
    chosen = gpu_routing.route(logits, top_k=top_k, form=form)
    expected = reference.route(logits.cpu(), top_k=top_k, form=form)
    assert torch.equal(chosen.experts_TX.cpu(), expected.experts_TX)
    torch.testing.assert_close(chosen.weights_TX.cpu(), expected.weights_TX, rtol=1e-5, atol=1e-6)


def test_route_of_what_is_no_number() -> None:
    """Padding may hold anything: its experts are experts, all the same."""
    logits = torch.full((2, 5), float("nan"), device=DEVICE)
    logits[1, 3], logits[1, 4] = float("inf"), float("-inf")
    chosen = gpu_routing.route(logits, top_k=3, form=RouterForm.SHARES).experts_TX
    assert chosen[0].tolist() == [0, 1, 2]
    assert chosen[1].tolist() == [3, 0, 1]


def test_arrangement_of_the_running_example() -> None:
    routing = Routing(torch.tensor([[2, 0], [2, 1]], dtype=torch.int32).to(DEVICE), torch.ones(2, 2))
    slots = torch.tensor([-1, 5], dtype=torch.int32, device=DEVICE)
    made = gpu_routing.arrange(routing, 3, block=16, slots_T=slots, slots=2, run=16)
    assert made.order_P.tolist() == [1, 3, 0, 2]
    assert made.tiles_5N.tolist() == [[0, 1, 2], [0, 1, 2], [1, 1, 2], [0, 0, 0], [0, 0, 0]]
    assert made.runs_4M is not None
    assert made.runs_4M.tolist() == [[0, 1, 2, 2], [0, 1, 2, 3], [1, 1, 1, 1], [-1, 5, -1, 5]]
    made = gpu_routing.arrange(routing, 3, block=16, slots_T=slots, slots=2)
    assert made.turns_P is not None
    assert made.met_NS is not None
    assert made.turns_P.tolist() == [-1, 0, -1, 0]
    assert made.met_NS[:, 0].tolist() == [0, 1, 1]
    assert made.met_NS[1:, 1].tolist() == [5, 5]


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(2, 3, 2), (77, 5, 3), (300, 4, 2), (130, 1, 1)])
def test_arrangement(tokens: int, experts: int, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair is in one tile and one run, in order; those of expert -1 in none."""
    monkeypatch.setattr(gpu_routing, "_MOST_PAIRS_AT_ONCE", 64)  # so that counts go on from block to block
    torch.manual_seed(0)
    routing = make_routing(tokens, experts, top_k, padding=tokens // 10)
    slots = torch.randint(-1, 3, (tokens,)).sort().values
    made = gpu_routing.arrange(routing, experts, block=16, slots_T=slots.int().to(DEVICE), slots=4, run=32)
    assert made.runs_4M is not None
    chosen, order = routing.experts_TX.cpu().flatten(), made.order_P.cpu()
    for table, block in ((made.tiles_5N[:3].cpu(), 16), (made.runs_4M.cpu(), 32)):
        seen, keys = [], set()
        for expert, first, count, *slot in table.t().tolist():
            if count == 0:
                continue
            assert count <= block
            pairs = order[first : first + count]
            assert (chosen[pairs] == expert).all()
            assert not slot or (slots[pairs // top_k] == slot[0]).all()
            assert pairs.tolist() == sorted(pairs.tolist())
            assert count == block or (expert, *slot) not in keys or pairs[0] > seen[-1]
            keys.add((expert, *slot))
            seen += pairs.tolist()
        assert sorted(seen) == (chosen >= 0).nonzero().flatten().tolist()


CASES = {
    "one token": (1, 5, 2, 70, 40, 0),
    "two tokens, one of them padding": (2, 5, 2, 70, 40, 1),
    "some": (9, 6, 3, 70, 40, 2),
    "all on one expert": (40, 1, 1, 32, 24, 0),
    "many": (300, 3, 2, 32, 16, 7),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_experts(dtype: torch.dtype, case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that what a kernel reads and nobody wrote is seen."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(
        "kernels.moe.gpu.choose", lambda *_: Tiles(Tile(16, 32, 32, 4, 2), Tile(16, 16, 64, 4, 2))
    )
    torch.manual_seed(0)
    tokens, experts, top_k, hidden, wide, padding = case
    routing, weights = (
        make_routing(tokens, experts, top_k, padding=padding),
        make_weights(experts, hidden, wide, dtype),
    )
    x = torch.randn(tokens, hidden).to(DEVICE, dtype)
    x[tokens - padding :] = float("nan")
    torch.use_deterministic_algorithms(True)
    try:
        out = moe.add_up(moe.experts(x, routing, weights, adapt=None, triton=True))
    finally:
        torch.use_deterministic_algorithms(False)
    cpu_weights = ExpertWeights(*(weight.cpu() for weight in weights))
    expected = reference.experts(x.cpu(), on_cpu(routing), cpu_weights, adapt=None)
    scale = expected.float().abs().mean().item()
    torch.testing.assert_close(out.cpu(), expected, rtol=TOLERANCE[dtype], atol=3 * scale * TOLERANCE[dtype])


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, whoever shares its experts' tiles."""
    torch.manual_seed(0)
    weights, routing = make_weights(4, 64, 32, torch.float32), make_routing(12, 4, 2)
    x = torch.randn(12, 64, device=DEVICE)
    together = moe.add_up(moe.experts(x, routing, weights, adapt=None, triton=True))
    some = Routing(routing.experts_TX[2:7].contiguous(), routing.weights_TX[2:7].contiguous())
    assert torch.equal(moe.add_up(moe.experts(x[2:7], some, weights, adapt=None, triton=True)), together[2:7])


def test_weights_beyond_32_bits() -> None:
    """The last experts' numbers lie more than 2^31 from the first's, in memory that nobody touches."""
    torch.manual_seed(0)
    experts, hidden, wide = (1 << 17) + 4, 128, 128
    weights = ExpertWeights(
        torch.empty(experts, 2 * wide, hidden, dtype=torch.float16, device=DEVICE),
        torch.empty(experts, hidden, wide, dtype=torch.float16, device=DEVICE),
    )
    for weight in weights:
        weight[-4:] = torch.randn_like(weight[-4:]) / 8
    few = ExpertWeights(*(weight[-4:].cpu() for weight in weights))
    x, routing = torch.randn(2, hidden).to(DEVICE, torch.float16), make_routing(2, 4, 2)
    far = Routing(routing.experts_TX + (experts - 4), routing.weights_TX)
    tile = Tile(16, 128, 128, 4, 2)
    wide_PI = gpu_products.gate_up(x, weights.gate_up_E2ID, far, None, tile, activated=True)
    tiled = gpu_products.add_up(gpu_products.down(wide_PI, weights.down_EDI, far, None, tile), far)
    expected = reference.experts(x.cpu(), on_cpu(routing), few, adapt=None)
    for out in (tiled, moe.add_up(moe.experts(x, far, weights, adapt=None, triton=True))):
        torch.testing.assert_close(out.cpu(), expected, rtol=4e-3, atol=4e-3)


def test_rows_beyond_32_bits() -> None:
    """Nearly all tokens are padding, so that of 2^31 numbers of x and y few are touched."""
    torch.manual_seed(0)
    tokens, hidden, wide, real = (1 << 16) + 5, 1 << 15, 16, 3
    routing = make_routing(tokens, 3, 1)
    routing.experts_TX[:-real] = -1
    weights = make_weights(3, hidden, wide, torch.float16)
    x = torch.empty(tokens, hidden, dtype=torch.float16, device=DEVICE)
    x[-real:] = torch.randn(real, hidden).to(DEVICE, torch.float16)
    tiles = Tiles(Tile(16, 32, 8192, 4, 2), Tile(16, 4096, 16, 4, 2))
    made = gpu_routing.arrange(routing, 3, block=16)
    made = made._replace(tiles_5N=made.tiles_5N[:, :real].contiguous())  # all that do anything
    wide_PI = gpu_products.gate_up(x, weights.gate_up_E2ID, routing, made, tiles.gate_up, activated=True)
    y = gpu_products.down(wide_PI, weights.down_EDI, routing, made, tiles.down)[-real:].cpu()
    ends = Routing(routing.experts_TX[-real:].cpu(), torch.ones(real, 1))
    few = ExpertWeights(*(weight.cpu() for weight in weights))
    torch.testing.assert_close(
        y, reference.experts(x[-real:].cpu(), ends, few, adapt=None), rtol=4e-3, atol=4e-3
    )


def test_what_does_not_fit_is_refused() -> None:
    weights, routing = make_weights(4, 64, 32, torch.float32), make_routing(12, 4, 2)
    with pytest.raises(ValueError, match="do not fit"):
        moe.experts(torch.zeros(12, 60, device=DEVICE), routing, weights, adapt=None, triton=True)
    made = gpu_routing.arrange(routing, 4, block=32)
    tile, x = Tile(16, 32, 32, 4, 2), torch.zeros(12, 64, device=DEVICE)
    with pytest.raises(ValueError, match="do not fit"):
        gpu_products.gate_up(x, weights.gate_up_E2ID, routing, made, tile, activated=True)
    with pytest.raises(ValueError, match="contiguous"):
        gpu_routing.route(torch.zeros(5, 4, device=DEVICE).t(), top_k=2, form=RouterForm.SHARES)


def test_experts_are_added_up_as_a_norm_is_taken() -> None:
    """Bit for bit as one after the other; what is of no expert is not read."""
    torch.manual_seed(0)
    routing = make_routing(5, 9, 3, padding=1)
    for dtype in (torch.float32, torch.float16):
        y, x, weight = (torch.randn(*shape).to(DEVICE, dtype) for shape in ((15, 70), (5, 70), (70,)))
        y[-3:] = float("nan")
        pairs, stream = moe.Pairs(y, routing), x.clone()
        out = moe.add_norm(stream, pairs, weight, 1e-6)
        expected = fused_steps.add_norm(x, moe.add_up(pairs), weight, 1e-6)
        assert torch.equal(stream, x)
        assert torch.equal(out, expected)
