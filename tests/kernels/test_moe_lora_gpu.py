"""Triton's LoRA on experts against the reference: by hooks and together with the base, mixed ranks, untouched
slices, padding, poisoned memory.
"""

import random

import pytest
import torch

from kernels import moe, moe_lora
from kernels.lora import LoraBatch, SliceEntry, SliceShape, SlotTable
from kernels.moe import ExpertWeights, Routing
from kernels.moe import reference as moe_reference
from kernels.moe.tiles import Tile, Tiles
from kernels.moe_lora import ExpertLora, fused, gpu, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 5e-5, torch.float16: 5e-3}
EXPERTS, HIDDEN, WIDE, FIRST = 5, 70, 40, 2
RANKS = (8, 64, 16, 8, 72)
PARTLY, UNTOUCHED, SHARED = 2, 3, 0
SHAPES = (
    *[SliceShape(kind="linear", in_features=3, out_features=3)] * FIRST,
    *[
        SliceShape(kind="linear", in_features=HIDDEN, out_features=WIDE),
        SliceShape(kind="linear", in_features=HIDDEN, out_features=WIDE),
        SliceShape(kind="linear", in_features=WIDE, out_features=HIDDEN),
    ]
    * EXPERTS,
)


def make_table(dtype: torch.dtype, *, before: int = 0) -> SlotTable:
    """Slot 0 has one A for all gates and ups; slot 2 some slices, slot 3 none. NaN between the weights, which
    come after so many units.
    """
    torch.manual_seed(0)
    random.seed(0)
    pool = torch.empty(before * 128 // dtype.itemsize + (1 << 19), dtype=dtype, device=DEVICE)
    pool[before * 128 // dtype.itemsize :] = float("nan")
    table, unit = SlotTable(pool=pool, shapes=SHAPES, slots=len(RANKS)), before + 3

    def take(numbers: int, std: float) -> int:
        nonlocal unit
        first = unit * 128 // dtype.itemsize
        pool[first : first + numbers] = (torch.randn(numbers) * std).to(DEVICE, dtype)
        taken, unit = unit, unit - (-numbers * dtype.itemsize // 128) + 1
        return taken

    for slot, rank in enumerate(RANKS):
        outer, entries = take(rank * HIDDEN, HIDDEN**-0.5), []
        for expert in range(EXPERTS):
            for j in range(3):
                if slot == UNTOUCHED or (slot == PARTLY and random.random() < 0.5):
                    continue
                shape = SHAPES[FIRST + j]
                is_shared = slot == SHARED and j < 2
                a_unit = outer if is_shared else take(rank * shape.in_features, shape.in_features**-0.5)
                entry = SliceEntry(
                    slice=FIRST + 3 * expert + j,
                    a_unit=a_unit,
                    b_unit=take(rank * shape.out_features, rank**-0.5),
                    rank=rank,
                    scaling=0.5 + 0.1 * slot + 0.2 * j,
                )
                entries.append(entry)
        table.set_row(slot, entries)
    return table


def make_routing(tokens: int, top_k: int, padding: int) -> Routing:
    chosen = torch.stack([torch.randperm(EXPERTS)[:top_k] for _ in range(tokens)]).int()
    chosen[tokens - padding :] = -1
    return Routing(chosen.to(DEVICE), torch.rand(tokens, top_k).to(DEVICE))


class Reference:
    """The hooks as they are defined."""

    def __init__(self, batch: LoraBatch, table: SlotTable) -> None:
        self._batch, self._table = batch, table

    def gate_up(self, y_P2I: torch.Tensor, x_TD: torch.Tensor, routing: Routing) -> None:
        reference.apply_gate_up(y_P2I, x_TD, routing, first_slice=FIRST, batch=self._batch, table=self._table)

    def down(self, y_PD: torch.Tensor, wide_PI: torch.Tensor, routing: Routing) -> None:
        reference.apply_down(y_PD, wide_PI, routing, first_slice=FIRST, batch=self._batch, table=self._table)


MIXED = "mixed, with padding"
BATCHES = {
    "one token": ([1], 0),
    "one token of the base beside one": ([-1, 0], 0),
    MIXED: ([-1, 0, 0, 1, 2, 2, 3, 1 << 10, 1 << 10], 2),
    "long": ([-1] * 3 + [0] * 20 + [2] * 3, 0),
}


SMALL = Tiles(Tile(16, 32, 64, 4, 2), Tile(16, 32, 64, 4, 2))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in BATCHES), ("one token", torch.float16), (MIXED, torch.float16)],
    ids=str,
)
def test_together_with_the_base(dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "choose", lambda *_: SMALL)
    _compare(dtype, *BATCHES[name], together=True)


def test_together_with_weights_loaded_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tiles of many pairs have it, and several slots of a tile at once."""
    monkeypatch.setattr(fused, "choose", lambda *_: SMALL)
    monkeypatch.setattr(fused, "_MOST_AHEAD", 0)
    monkeypatch.setattr(fused, "_COLUMNS", 128)
    _compare(torch.float16, *BATCHES[MIXED], together=True)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in BATCHES), (MIXED, torch.float16)], ids=str
)
def test_hooks(dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_SHARE_OF_K", 32)  # so that sums are split at this size too
    _compare(dtype, *BATCHES[name], together=False)


def test_large_ranks_are_left_to_the_hooks() -> None:
    _compare(torch.float32, [1, 4], 0, together=True)


@pytest.mark.parametrize("together", [True, False], ids=["together", "hooks"])
def test_addresses_beyond_32_bits(together: bool) -> None:
    """Weights lie more than 2^31 numbers from the pool's begin; memory before them is never touched."""
    _compare(torch.float16, [-1, 0, 1], 0, together=together, before=(1 << 31) * 2 // 128 + 5)


def _compare(dtype: torch.dtype, slots: list[int], padding: int, *, together: bool, before: int = 0) -> None:
    """New memory holds NaN, so that what a kernel reads and nobody wrote is seen."""
    slots = slots[: len(slots) - padding]
    table, tokens = make_table(dtype, before=before), len(slots) + padding
    gate_up = torch.randn(EXPERTS, 2 * WIDE, HIDDEN) * HIDDEN**-0.5
    down = torch.randn(EXPERTS, HIDDEN, WIDE) * WIDE**-0.5
    weights = ExpertWeights(gate_up.to(DEVICE, dtype), down.to(DEVICE, dtype))
    batch, routing = LoraBatch.of_tokens(slots), make_routing(tokens, 2, padding)
    x = torch.randn(tokens, HIDDEN).to(DEVICE, dtype)
    x[len(slots) :] = float("nan")
    lora = ExpertLora(first_slice=FIRST, experts=EXPERTS, batch=batch.tiled(table), table=table)
    torch.use_deterministic_algorithms(True)
    try:
        if together:
            out = moe_lora.experts(x, routing, weights, lora=lora, triton=True)
        else:
            out = moe.experts(x, routing, weights, adapt=lora, triton=True)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = moe_reference.experts(x, routing, weights, adapt=Reference(batch, table))
    plain = moe_reference.experts(x, routing, weights, adapt=None)
    real, base = slice(0, len(slots)), torch.tensor(slots) < 0
    scale = expected[real].float().abs().mean().item() * TOLERANCE[dtype]
    torch.testing.assert_close(out[real], expected[real], rtol=TOLERANCE[dtype], atol=4 * scale)
    torch.testing.assert_close(out[real][base], plain[real][base], rtol=TOLERANCE[dtype], atol=4 * scale)
    assert (out[len(slots) :] == 0).all()
    adapted = torch.tensor([slot >= 0 and slot != UNTOUCHED for slot in slots])
    assert ((out[real][adapted] - plain[real][adapted]).float().norm(dim=1) > 10 * scale).any()


def test_slots_of_tokens() -> None:
    table = make_table(torch.float32)
    slots = [-1, -1, *[0] * 70, *[2] * 3, *[4] * 130]
    tiled = LoraBatch.of_tokens(slots).tiled(table)
    assert tiled.tiles is not None
    assert gpu.slots_of(tiled.tiles, len(slots) + 2).tolist() == [*slots, -1, -1]


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, whatever other adapters its experts meet."""
    torch.manual_seed(1)
    table, routing = make_table(torch.float32), make_routing(9, 2, 0)
    weights = ExpertWeights(
        torch.randn(EXPERTS, 2 * WIDE, HIDDEN, device=DEVICE),
        torch.randn(EXPERTS, HIDDEN, WIDE, device=DEVICE),
    )
    x = torch.randn(9, HIDDEN, device=DEVICE)

    def compute(first: int, last: int) -> torch.Tensor:
        slots = [0, 0, 0, 1, 1, 1, 1, 2, 2][first:last]
        batch = LoraBatch.of_tokens(slots).tiled(table)
        lora = ExpertLora(first_slice=FIRST, experts=EXPERTS, batch=batch, table=table)
        some = Routing(*(tensor[first:last].contiguous() for tensor in routing))
        return moe_lora.experts(x[first:last], some, weights, lora=lora, triton=True)

    assert torch.equal(compute(0, 9)[3:7], compute(3, 7))


def test_which_slots_touch_slices() -> None:
    table = make_table(torch.float32)
    gates = [FIRST + 3 * expert for expert in range(EXPERTS)]
    assert table.touches([UNTOUCHED, 0], gates)
    assert not table.touches([UNTOUCHED], gates)
    assert not table.touches([0, 1], range(FIRST))
    assert not table.touches([0], ())
