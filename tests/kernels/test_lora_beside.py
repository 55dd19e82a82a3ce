"""Adapters beside a product: mixed ranks, base rows, missing slices, tiles to spare, poisoned memory."""

import numpy as np
import pytest
import torch

from kernels import lora
from kernels.linear.tiles import Tile
from kernels.lora import Arrivals, LoraBatch, can_be_beside, reference
from kernels.lora.beside import multiply
from kernels.lora.beside_tiles import Beside, choose
from kernels.lora.tiles import BLOCK, Tiles, cut
from tests.kernels.test_lora_gpu import DEVICE, IN, PACKED, make_table

VECTOR, NARROW, SPLIT = Tile(4, 1, 64, 4, 1, 1), Tile(16, 16, 32, 4, 2, 1), Tile(64, 16, 32, 4, 2, 2)
# Tile, slots, and what no rank is above: programs for it are launched, and the interpreter takes its time.
CASES = {
    "one token": (VECTOR, [3], 128),
    "one token, untouched": (VECTOR, [4], 32),
    "mixed": (SPLIT, [-1, -1, 0, 0, 0, 1, 3, 4], 256),
    "base": (SPLIT, [-1], 32),
    "middling": (NARROW, [-1, *[0] * 4, 2, 2], 32),
}


def tiles_of(slots: list[int], *, spare: int, rank: int) -> tuple[LoraBatch, Tiles]:
    batch = LoraBatch.of_tokens(slots)
    found = np.zeros((3, 0), np.int32) if batch.empty else cut(batch.slots, batch.splits, blocks=(BLOCK,))[0]
    places = np.zeros((3, min(len(slots), found.shape[1] + spare)), np.int32)
    places[:, : found.shape[1]] = found
    return batch, Tiles(places=torch.from_numpy(places).to(DEVICE), block=BLOCK, rank=rank)


@pytest.mark.parametrize(("tile", "slots", "rank"), CASES.values(), ids=CASES.keys())
def test_parts_add_up(tile: Tile, slots: list[int], rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    table, (batch, tiles) = make_table(torch.float16), tiles_of(slots, spare=1, rank=rank)
    x, weight = torch.randn(len(slots), IN, device=DEVICE), torch.randn(240, IN, device=DEVICE)
    x, weight = x.half() * IN**-0.5, weight.half() * IN**-0.5
    bias = torch.randn(240, device=DEVICE).half()
    expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    reference.apply(expected, x, slices=PACKED, batch=batch, table=table)
    arrivals = Arrivals(1, torch.device(DEVICE))
    for _ in range(2):
        arrivals.begin()
        parts = multiply(
            x,
            weight,
            bias,
            slices=PACKED,
            tiles=tiles,
            table=table,
            arrived=arrivals.take(),
            cut=Beside(tile, 3, 64),
        )
        torch.testing.assert_close(parts.sum(0), expected, rtol=1e-4, atol=1e-4)


def test_a_step_has_a_counter_for_each_launch() -> None:
    arrivals = Arrivals(2, torch.device("cpu"))
    first, second = arrivals.take(), arrivals.take()
    first += 5
    assert not second.any()
    with pytest.raises(IndexError, match="more than 2"):
        arrivals.take()
    arrivals.begin()
    assert not arrivals.take().any()


def test_what_can_be_beside() -> None:
    table = make_table(torch.float16)
    assert can_be_beside(1, rank=8, table=table)
    assert can_be_beside(32, rank=256, table=table)
    assert not can_be_beside(33, rank=8, table=table)
    assert not can_be_beside(1, rank=0, table=table), "it touches nothing"
    assert not can_be_beside(1, rank=264, table=table)
    assert not can_be_beside(1, rank=8, table=make_table(torch.float32))


def test_what_does_not_fit_is_refused() -> None:
    table, (_, tiles) = make_table(torch.float16), tiles_of([0, 1], spare=0, rank=256)
    batch = LoraBatch(slots=(), splits=(0,), tiles=tiles, arrivals=Arrivals(9, torch.device("cpu")))
    x, weight = torch.zeros(2, IN).half(), torch.zeros(240, IN).half()
    for slices, weights, says in (
        (PACKED[1:], weight, "consecutive"),
        (PACKED, weight[:200], "cover"),
        (PACKED, weight.float(), "dtype"),
        (PACKED, torch.zeros(240, IN + 1).half(), "shapes"),
    ):
        with pytest.raises(ValueError, match=says):
            lora.product(x, weights, None, slices=slices, batch=batch, table=table)
    with pytest.raises(ValueError, match="without arrivals"):
        lora.product(x, weight, None, slices=PACKED, batch=LoraBatch.of_tokens([0]), table=table)


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 16, 17, 32])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(4096, 12288), (4096, 4096), (100, 64), (24576, 5120), (6144, 4096)]
)
def test_every_product_finds_a_cut(tokens: int, outputs: int, inputs: int) -> None:
    for rank, tiles in ((64, tokens), (16, 1)):
        tile, chunks, span = choose(tokens, outputs, inputs, rank=rank, tiles=tiles)
        assert tile.tokens >= tokens
        assert span % 128 == 0
        assert chunks >= 1
