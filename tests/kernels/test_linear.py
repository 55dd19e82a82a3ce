"""Products of few tokens against torch: odd sizes, splits, biases, strides, poisoned outputs."""

import pytest
import torch

from kernels.fused import gpu
from kernels.linear import tiles
from kernels.linear.small_batch import multiply, parts
from kernels.linear.tiles import Tile, choose

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILES = [
    Tile(4, 1, 64, 4, 1, 1),
    Tile(16, 8, 32, 4, 2, 1),
    Tile(32, 16, 32, 4, 2, 3),
    Tile(48, 16, 64, 4, 2, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(77, 150), (64, 256)])
@pytest.mark.parametrize("biased", [False, True])
def test_multiply(dtype: torch.dtype, tile: Tile, outputs: int, inputs: int, biased: bool) -> None:
    if DEVICE.type == "cuda" and dtype == torch.float32:
        pytest.skip("tensor cores would round float32")
    torch.manual_seed(0)
    tokens = min(tile.tokens, 5)
    x = torch.randn(tokens, inputs + 3, device=DEVICE).to(dtype)[:, :inputs]
    weight = torch.randn(outputs, inputs, device=DEVICE).to(dtype) * inputs**-0.5
    bias = torch.randn(outputs, device=DEVICE).to(dtype) if biased else None
    out = torch.full((tokens, outputs), float("nan"), dtype=dtype, device=DEVICE)
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), bias.double() if bias is not None else None
    )
    limit = 2e-6 if dtype == torch.float32 else 2e-3
    for _ in range(2):  # the counters are left as they were found
        multiply(out.fill_(float("nan")), x, weight, bias, tile)
        torch.testing.assert_close(out.double(), expected, rtol=limit, atol=2 * limit)
    if tile.tokens > 1 and tile.rows.bit_count() == 1 and not biased:
        whole = parts(x, weight, tile)
        assert whole.shape == (tile.splits, tokens, outputs)
        torch.testing.assert_close(whole.double().sum(0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "tile", [*(tile for tile in TILES if tile.splits == 1), Tile(2, 1, 64, 4, 1, 1)], ids=str
)
@pytest.mark.parametrize(("wide", "inputs"), [(77, 150), (48, 128)])
@pytest.mark.parametrize("biased", [False, True])
def test_gated_is_the_same_as_one_after_the_other(tile: Tile, wide: int, inputs: int, biased: bool) -> None:
    """To the bit, with numbers whose sums are exact in any order, also in the last rows of either half."""
    torch.manual_seed(0)
    tokens = min(tile.tokens, 5)
    x, weight = (
        torch.randint(-3, 4, (size, inputs), device=DEVICE).half() / 4 for size in (tokens, 2 * wide)
    )
    bias = torch.randint(-9, 10, (2 * wide,), device=DEVICE).half() if biased else None
    product, out = (
        torch.full((tokens, size), float("nan"), device=DEVICE).half() for size in (2 * wide, wide)
    )
    multiply(product, x, weight, bias, tile)
    multiply(out, x, weight, bias, tile, gated=True)
    assert torch.equal(out, gpu.silu_mul(product))


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.zeros(9, 64), torch.zeros(32, 64)
    with pytest.raises(ValueError, match="do not fit"):
        multiply(torch.zeros(9, 32), x, weight, None, TILES[1])
    with pytest.raises(ValueError, match="contiguous"):
        multiply(torch.zeros(8, 32), x[:8], torch.zeros(64, 32).t(), None, TILES[1])
    with pytest.raises(ValueError, match="do not fit"):
        multiply(torch.zeros(8, 32), x[:8], weight, None, TILES[1], gated=True)
    for tile, gated in ((TILES[2], True), (TILES[3]._replace(splits=2), False)):
        with pytest.raises(ValueError, match="cannot be split"):
            multiply(torch.zeros(8, 16 if gated else 32), x[:8], weight, None, tile, gated=gated)


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 16, 17, 32])
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 12288), (4096, 4096), (100, 64), (152_064, 5120)])
def test_every_product_finds_a_tile(tokens: int, outputs: int, inputs: int) -> None:
    tile = choose(tokens, outputs, inputs)
    assert tile is not None
    assert tile.tokens >= tokens
    assert inputs // tile.splits >= min(inputs, 512)
    assert tile.splits == 1 or -(-outputs // tile.rows) <= tiles.MOST_BLOCKS


@pytest.mark.parametrize(
    ("tokens", "gated", "rows"), [(0, False, None), (64, False, None), (65, True, 192), (129, True, None)]
)
def test_many_tokens_are_for_cublas_but_where_it_loses(tokens: int, gated: bool, rows: int | None) -> None:
    tile = choose(tokens, 24_576, 4096, gated=gated)
    assert (tile and tile.rows) == rows


def test_a_tile_is_of_powers_of_two() -> None:
    for shape, tile in (*tiles._H100.items(), *tiles._H100_GATED.items()):
        assert tile.tokens >= min(shape[0], tile.tokens), shape
        for number in (tile.tokens, tile.block_k, tile.warps, tile.splits):
            assert number.bit_count() == 1, shape
        assert tile.rows.bit_count() <= (2 if tile.splits == 1 and tile.tokens > 1 else 1), shape
        assert shape[2] % (tile.block_k * tile.splits) == 0, shape
