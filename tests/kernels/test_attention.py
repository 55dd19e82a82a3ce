"""Paged attention against its definition: odd sizes, cached prefixes, windows, splits, dirty pages."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.attention import paged, reference
from kernels.attention.tiles import QueryTiles, cut

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}

# (tokens in the cache before, tokens fed) of each row
DECODES = [(0, 1), (7, 1), (70, 1), (129, 1)]
CHUNKS = [(0, 9), (37, 33), (0, 1), (64, 2), (5, 70)]


class Case:
    """Queries and pages of a batch; whatever no query may see is NaN."""

    def __init__(
        self,
        spans: list[tuple[int, int]],
        *,
        dtype: torch.dtype = torch.float32,
        heads: int = 6,
        kv_heads: int = 2,
        head_dim: int = 64,
        page: int = 16,
        queries: int = 1,
    ) -> None:
        torch.manual_seed(0)
        rows, columns = len(spans), 16
        self.table = torch.randperm(rows * columns).view(rows, columns).int() + 1
        starts, lengths = np.array(spans).T
        tokens = np.concatenate(([0], np.cumsum(lengths)))
        places = cut(np.arange(rows)[::-1], tokens[:-1], starts, lengths, queries)
        self.tiles = QueryTiles(places=torch.from_numpy(places).to(DEVICE), queries=queries)
        packed = torch.randn(int(tokens[-1]), heads + 2 * kv_heads, head_dim).to(dtype)
        self.q = packed.to(DEVICE)[:, :heads]
        self.kv = torch.full((rows * columns + 1, page, 2, kv_heads, head_dim), float("nan"), dtype=dtype)
        for i, (start, fed) in enumerate(spans):
            for position in range(start + fed):
                self.kv[self.table[rows - 1 - i, position // page], position % page] = torch.randn(
                    2, kv_heads, head_dim
                )
        self.kv, self.table = self.kv.to(DEVICE), self.table.to(DEVICE)

    def run(self, window: int | None = None, splits: int = 1) -> tuple[Tensor, Tensor]:
        out = torch.full((len(self.q), self.q[0].numel()), float("nan"), dtype=self.q.dtype, device=DEVICE)
        expected = out.clone()
        arguments = (self.q, self.kv, self.table, self.tiles)
        paged.attend(out, *arguments, scale=0.17, window=window, splits=splits)
        reference.attend(expected, *arguments, scale=0.17, window=window)
        return out, expected


def check(out: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[out.dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance, msg=lambda m: f"out: {m}")


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 1, 50, 4096])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_decode(dtype: torch.dtype, window: int | None, splits: int) -> None:
    check(*Case(DECODES, dtype=dtype).run(window, splits))


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_chunks_after_cached_prefixes(dtype: torch.dtype, window: int | None) -> None:
    check(*Case(CHUNKS, dtype=dtype, queries=paged.queries_per_tile(3, 64, dtype)).run(window))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 4, 128), (8, 1, 256), (5, 1, 24), (7, 7, 80), (20, 1, 16)]
)
@pytest.mark.parametrize("page", [4, 64])
def test_shapes_of_models(heads: int, kv_heads: int, head_dim: int, page: int) -> None:
    shape: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "page": page}
    spans = [(start % 30, fed % 25) for start, fed in CHUNKS]
    check(
        *Case(
            spans, queries=paged.queries_per_tile(heads // kv_heads, head_dim, torch.float32), **shape
        ).run()
    )
    check(*Case([(start % 40, fed) for start, fed in DECODES], **shape).run(splits=4))


def test_tokens_outside_every_tile_are_left_alone() -> None:
    case = Case(DECODES)
    case.tiles.places[3, 1] = 0
    for splits in (1, 4):
        out, _ = case.run(splits=splits)
        assert out.isnan().any(dim=1).tolist() == [False, True, False, False]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, with the same number of splits."""
    for splits in (1, 4):
        together = Case(DECODES)
        out, _ = together.run(splits=splits)
        together.tiles = QueryTiles(places=together.tiles.places[:, 2:3].contiguous(), queries=1)
        alone, _ = together.run(splits=splits)
        assert torch.equal(alone[2], out[2])


def test_what_does_not_fit_is_refused() -> None:
    case = Case(CHUNKS, queries=4)
    with pytest.raises(ValueError, match="splits"):
        case.run(splits=2)
    case.q = case.q[:, :5]
    with pytest.raises(ValueError, match="shapes do not fit"):
        case.run()
