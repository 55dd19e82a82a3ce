"""LoRA on experts in plain torch against the reference."""

import pytest
import torch

from kernels import moe_lora
from kernels.lora import LoraBatch, SliceEntry, SliceShape, SlotTable
from kernels.moe import Routing
from kernels.moe_lora import reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
EXPERTS, HIDDEN, WIDE = 6, 34, 13
FIRST = 2
"""Slices of other modules come before the experts'."""

SHAPES = (
    *[SliceShape(kind="linear", in_features=3, out_features=3)] * FIRST,
    *[
        SliceShape(kind="linear", in_features=HIDDEN, out_features=WIDE),
        SliceShape(kind="linear", in_features=HIDDEN, out_features=WIDE),
        SliceShape(kind="linear", in_features=WIDE, out_features=HIDDEN),
    ]
    * EXPERTS,
)
RANKS = (8, 24, 16, 8)
SHARED_OUTER, ONE_A_FOR_BOTH, NO_UP_OR_DOWN = 1, 2, 3


def make_table(dtype: torch.dtype) -> SlotTable:
    """Slot 0 has matrices of its own everywhere, slot 1 one A for gate and up and one B for down over all
    experts, slot 2 one A for gate and up of each expert, slot 3 gates of even experts alone.
    """
    torch.manual_seed(0)
    table = SlotTable(pool=(torch.randn(64_000) * 0.3).to(dtype), shapes=SHAPES, slots=len(RANKS))
    unit = 3

    def take(numbers: int) -> int:
        nonlocal unit
        unit += (units := -(-numbers * dtype.itemsize // 128))
        return unit - units

    for slot, rank in enumerate(RANKS):
        outer_a, outer_b = take(rank * HIDDEN), take(rank * HIDDEN)
        entries = []
        for expert in range(EXPERTS):
            inner_a = outer_a if slot == SHARED_OUTER else take(rank * HIDDEN)
            for j in range(3):
                if slot == NO_UP_OR_DOWN and (j or expert % 2):
                    continue
                if j < 2:
                    shares = slot in (SHARED_OUTER, ONE_A_FOR_BOTH)
                    a_unit, b_unit = inner_a if shares else take(rank * HIDDEN), take(rank * WIDE)
                else:
                    a_unit = take(rank * WIDE)
                    b_unit = outer_b if slot == SHARED_OUTER else take(rank * HIDDEN)
                entries.append(
                    SliceEntry(
                        slice=FIRST + 3 * expert + j,
                        a_unit=a_unit,
                        b_unit=b_unit,
                        rank=rank,
                        scaling=0.2 + slot + 0.1 * j,
                    )
                )
        table.set_row(slot, entries)
    return table


def make_routing(tokens: int, top_k: int = 2) -> Routing:
    experts = torch.stack([torch.randperm(EXPERTS)[:top_k] for _ in range(tokens)])
    return Routing(experts.int(), torch.rand(tokens, top_k))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "slots", [[-1, -1, 0, 0, 1, 1, 1, 2, 3, 3], [2], [-1, 3, 3], [0, 1, 2, 3], [1] * 30], ids=str
)
def test_matches_reference(dtype: torch.dtype, slots: list[int]) -> None:
    table, batch, routing = make_table(dtype), LoraBatch.of_tokens(slots), make_routing(len(slots))
    pairs = routing.experts_TX.numel()
    for name, columns, x in (
        ("apply_gate_up", 2 * WIDE, torch.randn(len(slots), HIDDEN).to(dtype)),
        ("apply_down", HIDDEN, torch.randn(pairs, WIDE).to(dtype)),
    ):
        before = torch.randn(pairs, columns).to(dtype)
        y, expected = before.clone(), before.clone()
        getattr(moe_lora, name)(y, x, routing, first_slice=FIRST, batch=batch, table=table)
        getattr(reference, name)(expected, x, routing, first_slice=FIRST, batch=batch, table=table)
        torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 10, msg=name)
        slot_P = torch.tensor(slots).repeat_interleave(2)
        touched_P = (y != before).any(dim=1)
        odd_P = routing.experts_TX.flatten() % 2 == 1
        assert not touched_P[slot_P < 0].any(), "base tokens were touched"
        assert touched_P[(slot_P >= 0) & (slot_P < 3)].all()
        assert not touched_P[(slot_P == 3) & (odd_P | (name == "apply_down"))].any()


def test_shared_matrices_are_the_same_places() -> None:
    table = make_table(torch.float32)
    gates = [table.weights(SHARED_OUTER, FIRST + 3 * expert) for expert in range(EXPERTS)]
    assert len({weights.a.data_ptr() for weights in gates if weights}) == 1
    assert len({weights.b.data_ptr() for weights in gates if weights}) == EXPERTS


def test_padding_is_left_alone() -> None:
    table, batch = make_table(torch.float32), LoraBatch.of_tokens([-1, 0, 1])
    routing = Routing(torch.tensor([[0, 1], [-1, 4], [-1, -1]], dtype=torch.int32), torch.rand(3, 2))
    x = torch.randn(3, HIDDEN)
    x[2] = float("nan")
    y = torch.zeros(6, 2 * WIDE)
    moe_lora.apply_gate_up(y, x, routing, first_slice=FIRST, batch=batch, table=table)
    assert y.any(dim=1).tolist() == [False, False, False, True, False, False]
    assert y.isfinite().all()


def test_reference_is_the_textbook_formula() -> None:
    table, batch = make_table(torch.float32), LoraBatch.of_tokens([2])
    routing = Routing(torch.tensor([[5]], dtype=torch.int32), torch.ones(1, 1))
    x, y = torch.randn(1, HIDDEN), torch.randn(1, 2 * WIDE)
    expected = y.clone()
    for j in range(2):
        weights = table.weights(2, FIRST + 15 + j)
        assert weights is not None
        expected[:, j * WIDE : (j + 1) * WIDE] += weights.scaling * x @ weights.a.T @ weights.b.T
    reference.apply_gate_up(y, x, routing, first_slice=FIRST, batch=batch, table=table)
    torch.testing.assert_close(y, expected)
