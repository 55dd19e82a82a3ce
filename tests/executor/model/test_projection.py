"""A layer's products with adapters beside them, against the same with adapters after them in plain torch."""

import pytest
import torch

from executor.model.layout import MlpSlices
from executor.model.mlp import DenseMlp
from executor.model.parameters import Linear, MlpParameters
from kernels import lora
from kernels.fused import reference
from kernels.lora import NO_LORA, Arrivals, LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable
from kernels.lora.beside_tiles import choose
from kernels.lora.tiles import BLOCK, Tiles, cut

gpu = pytest.importorskip("kernels.fused.gpu")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HIDDEN, WIDE = 48, 168
SHAPES = [
    *(SliceShape(kind="linear", in_features=HIDDEN, out_features=WIDE) for _ in range(2)),
    SliceShape(kind="linear", in_features=WIDE, out_features=HIDDEN),
]
SLICES = MlpSlices(
    gate_up=(PackedSlice(0, 0, WIDE), PackedSlice(1, WIDE, 2 * WIDE)), down=(PackedSlice(2, 0, HIDDEN),)
)


def make_table() -> SlotTable:
    """Ranks 8 and 16; the second has no up."""
    table, unit = SlotTable(pool=torch.randn(1 << 14, device=DEVICE).half() / 3, shapes=SHAPES, slots=2), 0
    for slot, rank in enumerate((8, 16)):
        entries = []
        for index, shape in enumerate(SHAPES):
            if (slot, index) == (1, 1):
                continue
            units = [-(-rank * size * 2 // 128) for size in (shape.in_features, shape.out_features)]
            entries.append(
                SliceEntry(slice=index, a_unit=unit, b_unit=unit + units[0], rank=rank, scaling=0.3)
            )
            unit += sum(units)
        table.set_row(slot, entries)
    return table


@pytest.mark.parametrize(
    "slots", [[1], [-1, 0, 0, 1], [-1, *[0] * 16, 1]], ids=["one token", "mixed", "gated"]
)
@pytest.mark.parametrize("is_whole", [False, True], ids=["parts", "whole"])
def test_an_mlp_with_adapters_beside_it(
    slots: list[int], is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up in two spans, the second of which is not full."""
    torch.manual_seed(0)
    monkeypatch.setattr(lora, "choose", lambda *a, **k: choose(*a, **k)._replace(span=128))
    table, batch = make_table(), LoraBatch.of_tokens(slots)
    weights = MlpParameters(
        gate_up=Linear(weight=(torch.randn(2 * WIDE, HIDDEN, device=DEVICE) / 7).half(), bias=None),
        down=Linear(weight=(torch.randn(HIDDEN, WIDE, device=DEVICE) / 7).half(), bias=None),
    )
    x = torch.randn(len(slots), HIDDEN, device=DEVICE).half()
    places, _ = cut(batch.slots, batch.splits, blocks=(BLOCK,))
    arrivals = Arrivals(2, DEVICE)
    beside = LoraBatch(
        slots=(),
        splits=(0,),
        tiles=Tiles(places=torch.from_numpy(places).to(DEVICE), block=BLOCK, rank=16),
        arrivals=arrivals,
    )
    arrivals.begin()
    mlp = DenseMlp(weights, SLICES, adapters=table, steps=gpu)
    found = mlp.forward(x, beside, is_whole=is_whole)
    assert (found.dim(), found.dtype) == ((2, torch.float16) if is_whole else (3, torch.float32))
    expected = DenseMlp(weights, SLICES, adapters=table, steps=reference).forward(x, batch)
    plain = DenseMlp(weights, SLICES, adapters=table, steps=reference).forward(x, NO_LORA)
    assert (expected - plain).abs().max() > 0.1, "the adapters must matter"
    torch.testing.assert_close(reference.whole(found, x.dtype), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("tokens", [1, 4])
def test_an_mlp_without_adapters(tokens: int) -> None:
    torch.manual_seed(0)
    weights = MlpParameters(
        gate_up=Linear(weight=(torch.randn(2 * WIDE, HIDDEN, device=DEVICE) / 7).half(), bias=None),
        down=Linear(weight=(torch.randn(HIDDEN, WIDE, device=DEVICE) / 7).half(), bias=None),
    )
    x, table = torch.randn(tokens, HIDDEN, device=DEVICE).half(), make_table()
    found = DenseMlp(weights, SLICES, adapters=table, steps=gpu).forward(x, NO_LORA, is_whole=True)
    expected = DenseMlp(weights, SLICES, adapters=table, steps=reference).forward(x, NO_LORA, is_whole=True)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
