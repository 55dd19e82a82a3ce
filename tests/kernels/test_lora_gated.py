"""Adapters of gate and up in the step that multiplies them: mixed ranks, one of both missing, base rows."""

from dataclasses import replace

import pytest
import torch

from kernels import lora
from kernels.fused import reference as fused
from kernels.lora import LoraBatch, PackedSlice, gated, reference
from kernels.lora.gpu_tiles import GatedCut
from tests.kernels.test_lora_beside import tiles_of
from tests.kernels.test_lora_gpu import DEVICE, IN, TOLERANCE, make_table

WIDE = 130
GATE_UP = (PackedSlice(1, 0, WIDE), PackedSlice(2, WIDE, 2 * WIDE))
SMALL = GatedCut(tokens=16, columns=32, blocks=3, stages=3, warps=4)
# Slots, spare tiles of a recorded step, and how its programs are cut.
CASES = {
    "recorded": ([-1, -1, 0, 0, 2, 3, 4], 2, SMALL),
    "untouched": ([-1, 4, 4], 2, SMALL),
    "long": ([*[-1] * 3, *[1] * 20, *[2] * 70], None, GatedCut(32, 64, 2, 3, 4)),
    "prompt": ([0] * 70, None, GatedCut(64, 64, 4, 3, 4)),
}


@pytest.mark.parametrize(("slots", "spare", "cut"), CASES.values(), ids=CASES.keys())
def test_gate_and_up_have_their_adapters(
    slots: list[int], spare: int | None, cut: GatedCut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "choose_gated", lambda *_, **__: cut)
    monkeypatch.setattr(gated, "_MOST_PLAIN", 2)
    monkeypatch.setattr(gated, "_PLAIN_COLUMNS", 64)
    dtype = torch.float16
    table, batch = make_table(dtype, (WIDE, WIDE)), LoraBatch.of_tokens(slots)
    if spare is None:
        tiled = batch.tiled(table)
    else:
        tiled = LoraBatch(slots=(), splits=(0,), tiles=tiles_of(slots, spare=spare, rank=72)[1])
    x = (torch.randn(len(slots), IN, device=DEVICE) * IN**-0.5).to(dtype)
    gate_up = torch.randn(len(slots), 2 * WIDE, device=DEVICE).to(dtype)
    expected = gate_up.clone().float()
    reference.apply(expected, x, slices=GATE_UP, batch=batch, table=table)
    shrunk = lora.shrink(x, slices=GATE_UP, batch=tiled, table=table)
    found = lora.silu_mul(gate_up, shrunk, slices=GATE_UP, batch=tiled, table=table)
    torch.testing.assert_close(
        found.float(), fused.silu_mul(expected), rtol=TOLERANCE[dtype], atol=3 * TOLERANCE[dtype]
    )


def test_which_batches_it_is_for() -> None:
    half, single = (make_table(dtype, (WIDE, WIDE)) for dtype in (torch.float16, torch.float32))
    plain = replace(LoraBatch.of_tokens([0, 2]).tiled(half), has_vectors=False)
    assert lora.can_be_gated(plain, half)
    assert not lora.can_be_gated(replace(plain, has_vectors=True), half)
    assert not lora.can_be_gated(plain, single)
    wide = replace(LoraBatch.of_tokens([0, 1]).tiled(half), has_vectors=False)
    assert not lora.can_be_gated(wide, half), "ranks wider than have been tried"


def test_what_does_not_fit_is_refused() -> None:
    table = make_table(torch.float16, (WIDE, WIDE))
    batch = LoraBatch.of_tokens([0])
    tiled, x, y = batch.tiled(table), torch.zeros(1, IN).half(), torch.zeros(1, 2 * WIDE).half()
    shrunk = lora.shrink(x, slices=GATE_UP, batch=tiled, table=table)
    halves = (PackedSlice(1, 0, 100), PackedSlice(2, 100, 2 * WIDE))
    for slices, product, says in ((halves, y, "halves"), (GATE_UP, y.float(), "dtype")):
        with pytest.raises(ValueError, match=says):
            lora.silu_mul(product, shrunk, slices=slices, batch=tiled, table=table)
    with pytest.raises(ValueError, match="without tiles"):
        lora.shrink(x, slices=GATE_UP, batch=batch, table=table)
    with pytest.raises(ValueError, match="without tiles"):
        lora.silu_mul(y, shrunk, slices=GATE_UP, batch=replace(tiled, tiles=None), table=table)
