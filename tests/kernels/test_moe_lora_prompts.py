"""Addresses of `prompts` where memory is large: asked for, but hardly touched."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kernels.lora import LoraBatch, SliceEntry, SliceShape, SlotTable
from kernels.moe import ExpertWeights, Routing
from kernels.moe import reference as moe_reference
from kernels.moe.gpu_routing import Arrangement, arrange
from kernels.moe.tiles import Tile
from kernels.moe_lora import ExpertLora, prompts, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, RANK, EXPERTS, TOKENS = 128, 32, 3, 6
FAR = 1 << 31
"""Numbers before the first that is used."""
UNITS, NUMBERS = WIDTH * RANK // 64, 64
"""Of a matrix of LoRA, and numbers of a unit."""
SLOTS = [-1, 0, 0, 1, 1, 1]


class Distances(NamedTuple):
    """Tokens, experts and units of the pool before those that are used."""

    tokens: int = 0
    experts: int = 0
    units: int = 0


CASES = {
    # Of what is shrunk of gate and up, a token has 4 x RANK numbers.
    "rows": Distances(tokens=FAR // WIDTH),
    "weights": Distances(experts=FAR // WIDTH**2),
    "adapters": Distances(units=FAR // NUMBERS),
}


class Reference:
    """The hooks as they are defined."""

    def __init__(self, table: SlotTable) -> None:
        self._told = {"first_slice": 0, "batch": LoraBatch.of_tokens(SLOTS), "table": table}

    def gate_up(self, y_P2I: Tensor, x_TD: Tensor, routing: Routing) -> None:
        reference.apply_gate_up(y_P2I, x_TD, routing, **self._told)

    def down(self, y_PD: Tensor, wide_PI: Tensor, routing: Routing) -> None:
        reference.apply_down(y_PD, wide_PI, routing, **self._told)


def make_table(before: int) -> SlotTable:
    """Two slots with LoRA everywhere, after so many units."""
    shape, slices = SliceShape(kind="linear", in_features=WIDTH, out_features=WIDTH), 3 * EXPERTS
    pool = torch.empty((before + 4 * slices * UNITS) * NUMBERS, dtype=torch.float16, device=DEVICE)
    used = pool[before * NUMBERS :]
    used.copy_(torch.randn_like(used) * 0.15)
    table = SlotTable(pool=pool, shapes=[shape] * slices, slots=2)
    for slot in range(2):
        units = [before + 2 * (slot * slices + index) * UNITS for index in range(slices)]
        entries = [
            SliceEntry(slice=index, a_unit=unit, b_unit=unit + UNITS, rank=RANK, scaling=1.0 + slot)
            for index, unit in enumerate(units)
        ]
        table.set_row(slot, entries)
    return table


def far_tensor(before: int, few: Tensor) -> Tensor:
    """With so many rows ahead of these that nobody touches."""
    tensor = few.new_empty(before + len(few), *few.shape[1:])
    tensor[before:] = few
    return tensor


def far_arrangement(few: Arrangement, distances: Distances) -> Arrangement:
    """Of pairs of the last tokens and experts; all the others are of no tile."""
    assert few.turns_P is not None
    tiles_5N = few.tiles_5N.clone()
    tiles_5N[0] += distances.experts
    tiles_5N[1] += distances.tokens
    order_P = far_tensor(distances.tokens, few.order_P + distances.tokens)
    return few._replace(order_P=order_P, tiles_5N=tiles_5N, turns_P=far_tensor(distances.tokens, few.turns_P))


@pytest.mark.parametrize("distances", CASES.values(), ids=CASES.keys())
def test_addresses_beyond_32_bits(distances: Distances) -> None:
    torch.manual_seed(0)
    few = ExpertWeights(
        torch.randn(EXPERTS, 2 * WIDTH, WIDTH).to(DEVICE, torch.float16) / 8,
        torch.randn(EXPERTS, WIDTH, WIDTH).to(DEVICE, torch.float16) / 8,
    )
    x_TD = torch.randn(TOKENS, WIDTH).to(DEVICE, torch.float16)
    experts_TX = torch.tensor([[0], [2], [0], [2], [1], [2]], dtype=torch.int32, device=DEVICE)
    routing = Routing(experts_TX, torch.ones(TOKENS, 1, device=DEVICE))
    table, tile = make_table(distances.units), Tile(32, 128, 128, 4, 2)
    slots_T = torch.tensor(SLOTS, dtype=torch.int32, device=DEVICE)
    made = arrange(routing, EXPERTS, block=tile.pairs, slots_T=slots_T, slots=3)
    made = far_arrangement(made, distances)
    assert made.met_NS is not None
    # Of experts ahead of these, no adapter is told.
    lora = ExpertLora(
        first_slice=-3 * distances.experts,
        experts=EXPERTS,
        batch=LoraBatch.of_tokens(SLOTS).tiled(table),
        table=table,
    )
    far = Routing(far_tensor(distances.tokens, experts_TX), routing.weights_TX)
    found_NS4 = torch.empty(*(made.met_NS[:, 1:].shape), 4, dtype=torch.int64, device=DEVICE)
    rows_K = far_tensor(distances.tokens, x_TD)
    for weight_ENK, is_down in ((few.gate_up_E2ID, False), (few.down_EDI, True)):
        shrunk_PLR = prompts.shrink(rows_K, far, made, found_NS4, lora, is_down=is_down)
        assert shrunk_PLR[-TOKENS:].any()  # which else might be wrong in both kernels alike
        rows_K = prompts.multiply(
            rows_K,
            far_tensor(distances.experts, weight_ENK),
            shrunk_PLR,
            found_NS4,
            far,
            made,
            tile,
            lora,
            is_down=is_down,
        )
    y_PD = rows_K[-TOKENS:]
    expected = moe_reference.experts(x_TD, routing, few, adapt=Reference(table))
    torch.testing.assert_close(y_PD, expected, rtol=1e-2, atol=2e-2)
    plain = moe_reference.experts(x_TD, routing, few, adapt=None)
    assert (expected - plain)[1:].abs().mean() > 0.3
