"""Triton's LoRA on experts against the reference: by hooks and together with the base, mixed ranks, untouched
slices, padding, poisoned memory.
"""

import random
from dataclasses import replace

import pytest
import torch

from kernels import moe, moe_lora
from kernels.lora import LoraBatch, SliceEntry, SliceShape, SlotTable
from kernels.moe import ExpertWeights, Routing
from kernels.moe import reference as moe_reference
from kernels.moe.gpu_routing import arrange
from kernels.moe.tiles import Tile, Tiles
from kernels.moe_lora import ExpertLora, fused, gpu, prompts, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 5e-5, torch.float16: 5e-3}
EXPERTS, HIDDEN, WIDE, FIRST = 5, 70, 40, 2
RANKS = (8, 64, 16, 8, 72)
PARTLY, UNTOUCHED, SHARED = 2, 3, 0


def shapes_of(hidden: int) -> tuple[SliceShape, ...]:
    first = SliceShape(kind="linear", in_features=hidden, out_features=WIDE)
    down = SliceShape(kind="linear", in_features=WIDE, out_features=hidden)
    untold = SliceShape(kind="linear", in_features=3, out_features=3)
    return (*[untold] * FIRST, *[first, first, down] * EXPERTS)


SHAPES = shapes_of(HIDDEN)


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
        outer, outer_b, entries = take(rank * HIDDEN, HIDDEN**-0.5), take(rank * HIDDEN, rank**-0.5), []
        for expert in range(EXPERTS):
            for j in range(3):
                if slot == UNTOUCHED or (slot == PARTLY and random.random() < 0.5):
                    continue
                shape = SHAPES[FIRST + j]
                # One that has another matrix and another rank among those that share.
                is_odd = expert == 3
                is_shared = slot == SHARED and j < 2 and not is_odd
                shares_b = slot == SHARED and j == 2 and not is_odd
                a_unit = outer if is_shared else take(rank * shape.in_features, shape.in_features**-0.5)
                entry = SliceEntry(
                    slice=FIRST + 3 * expert + j,
                    a_unit=a_unit,
                    b_unit=outer_b if shares_b else take(rank * shape.out_features, rank**-0.5),
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

    def __init__(self, batch: LoraBatch, table: SlotTable, first: int = FIRST) -> None:
        self._batch, self._table, self._first = batch, table, first

    def gate_up(self, y_P2I: torch.Tensor, x_TD: torch.Tensor, routing: Routing) -> None:
        reference.apply_gate_up(
            y_P2I, x_TD, routing, first_slice=self._first, batch=self._batch, table=self._table
        )

    def down(self, y_PD: torch.Tensor, wide_PI: torch.Tensor, routing: Routing) -> None:
        reference.apply_down(
            y_PD, wide_PI, routing, first_slice=self._first, batch=self._batch, table=self._table
        )


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


def test_what_experts_share_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As prompts have it; more tokens than a tile holds, beside adapters that share nothing."""
    monkeypatch.setattr(fused, "choose", lambda *_: SMALL)
    monkeypatch.setattr(fused, "_SHARED_PAIRS", 16)
    _compare(torch.float16, [-1] * 3 + [0] * 18 + [1] * 2 + [2] * 2, 2, together=True, shares=True)


@pytest.mark.parametrize(
    ("dtype", "name", "ranks"),
    [
        (torch.float32, MIXED, RANKS),
        (torch.float16, MIXED, RANKS),
        (torch.float16, MIXED, (24, 8, 32, 8, 8)),
        (torch.float16, "long", RANKS),
    ],
    ids=str,
)
def test_prompts_together_with_the_base(
    dtype: torch.dtype, name: str, ranks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More slots of a tile than programs, and more pairs of a slot than a program takes at once."""
    monkeypatch.setitem(globals(), "RANKS", ranks)
    monkeypatch.setitem(globals(), "HIDDEN", 72)
    monkeypatch.setitem(globals(), "SHAPES", shapes_of(72))
    monkeypatch.setattr(fused, "choose", lambda *_: Tiles(Tile(32, 32, 64, 4, 2), Tile(32, 32, 64, 4, 2)))
    monkeypatch.setattr(prompts, "LEAST_PAIRS", 32)
    monkeypatch.setattr(prompts, "LEAST_SHARE", 0)
    monkeypatch.setattr(prompts, "_TURNS", 2)
    monkeypatch.setattr(prompts, "SHRINK", Tile(16, 32, 32, 4, 2))
    served = []
    experts = prompts.experts
    monkeypatch.setattr(prompts, "experts", lambda *args: served.append(1) or experts(*args))
    _compare(dtype, *BATCHES[name], together=True)
    assert served


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


def test_rows_beyond_32_bits() -> None:
    """Nearly all tokens are padding, so that of 2^31 numbers of x and y few are touched."""
    torch.manual_seed(0)
    tokens, hidden, wide, rank, real = (1 << 16) + 5, 1 << 15, 16, 8, 2
    shapes = [SliceShape(kind="linear", in_features=hidden, out_features=wide)] * 2
    shapes = [*shapes, SliceShape(kind="linear", in_features=wide, out_features=hidden)] * real
    units = rank * (hidden + wide) * 2 // 128
    pool = (torch.randn(len(shapes) * units * 64) * hidden**-0.5).to(DEVICE, torch.float16)
    table = SlotTable(pool=pool, shapes=shapes, slots=1)
    factors = {False: rank * hidden * 2 // 128, True: rank * wide * 2 // 128}
    table.set_row(
        0,
        [
            SliceEntry(
                slice=i, a_unit=i * units, b_unit=i * units + factors[i % 3 == 2], rank=rank, scaling=9.0
            )
            for i in range(len(shapes))
        ],
    )
    batch = LoraBatch.of_tokens([0] * real)
    lora = ExpertLora(first_slice=0, experts=real, batch=batch.tiled(table), table=table)
    routing = Routing(torch.full((tokens, 1), -1, dtype=torch.int32, device=DEVICE), torch.ones(tokens, 1))
    routing.experts_TX[-real:, 0] = torch.arange(real)
    gate_up = torch.randn(real, 2 * wide, hidden, device=DEVICE, dtype=torch.float16) * hidden**-0.5
    down = torch.randn(real, hidden, wide, device=DEVICE, dtype=torch.float16) * wide**-0.5
    x = torch.empty(tokens, hidden, dtype=torch.float16, device=DEVICE)
    x[-real:] = torch.randn(real, hidden, device=DEVICE)
    made = arrange(
        routing, real, block=16, slots_T=torch.zeros(tokens, dtype=torch.int32, device=DEVICE), slots=2
    )
    made = made._replace(tiles_5N=made.tiles_5N[:, :real].contiguous())  # all that do anything
    tile = Tile(16, 32, 8192, 4, 2)
    wide_PI, _ = fused.multiply(x, gate_up, routing, made, tile, lora, is_down=False)
    tile = Tile(16, 4096, 16, 4, 2)
    y = fused.multiply(wide_PI, down, routing, made, tile, lora, is_down=True)[0][-real:]
    ends = Routing(routing.experts_TX[-real:].cpu(), torch.ones(real, 1))
    adapt = Reference(batch, table, first=0)
    few = ExpertWeights(gate_up.cpu(), down.cpu())
    expected = moe_reference.experts(x[-real:].cpu(), ends, few, adapt=adapt)
    torch.testing.assert_close(y.cpu(), expected, rtol=5e-3, atol=5e-3)
    plain = moe_reference.experts(x[-real:].cpu(), ends, few, adapt=None)
    assert (expected - plain).abs().mean() > 0.05


def _compare(
    dtype: torch.dtype,
    slots: list[int],
    padding: int,
    *,
    together: bool,
    before: int = 0,
    shares: bool = False,
) -> None:
    """New memory holds NaN, so that what a kernel reads and nobody wrote is seen."""
    slots = slots[: len(slots) - padding]
    table, tokens = make_table(dtype, before=before), len(slots) + padding
    gate_up = torch.randn(EXPERTS, 2 * WIDE, HIDDEN) * HIDDEN**-0.5
    down = torch.randn(EXPERTS, HIDDEN, WIDE) * WIDE**-0.5
    weights = ExpertWeights(gate_up.to(DEVICE, dtype), down.to(DEVICE, dtype))
    batch, routing = LoraBatch.of_tokens(slots), make_routing(tokens, 2, padding)
    assert table.traits([SHARED]).shares
    assert not table.traits([1, PARTLY, UNTOUCHED]).shares
    tiled = replace(batch.tiled(table), shares=shares)
    x = torch.randn(tokens, HIDDEN).to(DEVICE, dtype)
    x[len(slots) :] = float("nan")
    lora = ExpertLora(first_slice=FIRST, experts=EXPERTS, batch=tiled, table=table)
    torch.use_deterministic_algorithms(True)
    try:
        if together:
            out = moe.add_up(moe_lora.experts(x, routing, weights, lora=lora, triton=True))
        else:
            out = moe.add_up(moe.experts(x, routing, weights, adapt=lora, triton=True))
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
        return moe.add_up(moe_lora.experts(x[first:last], some, weights, lora=lora, triton=True))

    assert torch.equal(compute(0, 9)[3:7], compute(3, 7))


def test_which_slots_touch_slices() -> None:
    table = make_table(torch.float32)
    gates = [FIRST + 3 * expert for expert in range(EXPERTS)]
    assert table.touches([UNTOUCHED, 0], gates)
    assert not table.touches([UNTOUCHED], gates)
    assert not table.touches([0, 1], range(FIRST))
    assert not table.touches([0], ())
