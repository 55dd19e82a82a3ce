"""The deterministic mode's kernels: right, and the same bits whatever else is computed beside."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import lora
from kernels.attention import fixed, reference
from kernels.attention.tiles import QueryTiles, cut
from kernels.linear import fixed as fixed_linear
from kernels.linear.fixed import multiply
from kernels.lora import LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable
from kernels.lora.tiles import Tiles

pytestmark = pytest.mark.usefixtures("exact_products")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("outputs", "inputs", "has_bias"), [(200, 1024, True), (130, 96, False), (64, 2100, True)]
)
def test_a_product_is_the_same_in_any_batch(outputs: int, inputs: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(70, inputs, device=DEVICE)
    weight = torch.randn(outputs, inputs, device=DEVICE) * inputs**-0.5
    bias = torch.randn(outputs, device=DEVICE) if has_bias else None
    whole = multiply(x, weight, bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    for first, last in ((0, 1), (3, 20), (69, 70)):
        assert torch.equal(multiply(x[first:last], weight, bias), whole[first:last]), (first, last)


def test_segments_of_one_program_are_those_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 2048, device=DEVICE), torch.randn(40, 2048, device=DEVICE)
    split = multiply(x, weight, None)
    segments = fixed_linear._segments
    monkeypatch.setattr(fixed_linear, "_ENOUGH_PROGRAMS", 1)
    monkeypatch.setattr(fixed_linear, "_segments", lambda blocks, inputs: 4)
    assert segments(1, 2048) == 1
    assert torch.equal(multiply(x, weight, None), split)


class Rows:
    """Two rows in the cache; pages that nobody may read hold NaN."""

    def __init__(
        self, lengths: tuple[int, ...], *, heads: int = 6, kv_heads: int = 2, head_dim: int = 24
    ) -> None:
        torch.manual_seed(0)
        self.page, columns = 16, 80
        self.table = (torch.randperm(len(lengths) * columns) + 1).view(len(lengths), columns).int().to(DEVICE)
        shape = (len(lengths) * columns + 1, self.page, 2, kv_heads, head_dim)
        self.kv = torch.full(shape, float("nan"), device=DEVICE)
        for row, length in enumerate(lengths):
            places = torch.arange(length, device=DEVICE)
            pages = self.table[row, places // self.page].long()
            self.kv[pages, places % self.page] = torch.randn(length, *shape[2:], device=DEVICE)
        self.heads, self.head_dim = heads, head_dim

    def attend(
        self, q: torch.Tensor, row: int, start: int, *, queries: int, splits: int, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = len(q)
        places = cut(np.array([row]), np.array([0]), np.array([start]), np.array([length]), queries)
        tiles = QueryTiles(places=torch.from_numpy(places).to(DEVICE), queries=queries)
        out = torch.full((length, self.heads * self.head_dim), float("nan"), device=DEVICE)
        expected = out.clone()
        fixed.attend(out, q, self.kv, self.table, tiles, scale=0.2, window=window, splits=splits)
        reference.attend(expected, q, self.kv, self.table, tiles, scale=0.2, window=window)
        return out, expected


@pytest.mark.parametrize("window", [None, 100, 600])
def test_attention_is_the_same_in_chunks_and_when_decoding(window: int | None) -> None:
    rows = Rows((1100, 40))
    q = torch.randn(1100, rows.heads, rows.head_dim, device=DEVICE)
    last = slice(1093, 1100)
    chunk, expected = rows.attend(q[last], 0, 1093, queries=8, splits=1, window=window)
    torch.testing.assert_close(chunk, expected, atol=1e-5, rtol=1e-4)
    for splits in (1, 2, 8):
        decoded, _ = rows.attend(q[1099:], 0, 1099, queries=1, splits=splits, window=window)
        assert torch.equal(decoded[0], chunk[-1]), splits
    other, _ = rows.attend(q[1096:1100], 0, 1096, queries=8, splits=1, window=window)
    assert torch.equal(other, chunk[3:])


def test_a_short_row() -> None:
    rows = Rows((1100, 40))
    q = torch.randn(40, rows.heads, rows.head_dim, device=DEVICE)
    chunk, expected = rows.attend(q, 1, 0, queries=8, splits=1, window=None)
    torch.testing.assert_close(chunk, expected, atol=1e-5, rtol=1e-4)
    decoded, _ = rows.attend(q[39:], 1, 39, queries=1, splits=4, window=None)
    assert torch.equal(decoded[0], chunk[39])


def test_tiles_that_do_not_fit() -> None:
    rows = Rows((40,))
    q = torch.randn(20, rows.heads, rows.head_dim, device=DEVICE)
    with pytest.raises(ValueError, match="do not fit a tile"):
        rows.attend(q, 0, 0, queries=8, splits=2, window=None)
    with pytest.raises(ValueError, match="do not fit a tile"):
        rows.attend(q, 0, 0, queries=16, splits=1, window=None)


def lora_table(ranks: tuple[int, ...], sizes: tuple[int, ...], inputs: int) -> SlotTable:
    torch.manual_seed(1)
    shapes = [SliceShape(kind="linear", in_features=inputs, out_features=size) for size in sizes]
    pool = torch.randn(1 << 20, device=DEVICE) * 0.1
    table, unit = SlotTable(pool=pool, shapes=shapes, slots=len(ranks), fixed_order=True), 0
    for slot, rank in enumerate(ranks):
        entries = []
        for index, shape in enumerate(shapes):
            second = unit + rank * shape.in_features // 32
            entries.append(SliceEntry(slice=index, a_unit=unit, b_unit=second, rank=rank, scaling=0.5))
            unit = second + -(-rank * shape.out_features // 32)
        table.set_row(slot, entries)
    return table


def test_an_adapter_is_the_same_beside_others() -> None:
    """Alone, after others of the batch, and beside one of a higher rank; few tokens and many."""
    sizes, inputs = (40, 24), 600
    table = lora_table((8, 32, 24), sizes, inputs)
    packed = [PackedSlice(0, 0, 40), PackedSlice(1, 40, 64)]
    x, y = torch.randn(60, inputs, device=DEVICE), torch.randn(60, 64, device=DEVICE)

    def apply(slots: list[int], first: int) -> torch.Tensor:
        out, batch = y[first : first + len(slots)].clone(), LoraBatch.of_tokens(slots)
        rank = table.traits(batch.slots).rank
        tiles = Tiles.cut(batch.slots, batch.splits, rank=rank, like=table.pool, fixed_order=True)
        source = x[first : first + len(slots)]
        lora.apply(out, source, slices=packed, batch=replace(batch, tiles=tiles), table=table)
        return out

    together = apply([-1] * 2 + [0] * 18 + [1] * 32 + [2] * 8, 0)
    assert not torch.equal(together, y)
    for slot, first, last in ((0, 2, 20), (0, 9, 10), (1, 25, 45), (2, 52, 60)):
        assert torch.equal(apply([slot] * (last - first), first), together[first:last]), (slot, first, last)
