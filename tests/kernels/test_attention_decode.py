"""A decoding step's attention from the projections on, against the steps one by one: parts, splits, windows,
padded rows, dirty pages.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.attention import decode, reference
from kernels.attention.decode import Blocks
from kernels.attention.tiles import QueryTiles
from kernels.fused import reference as steps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
POSITIONS = [0, 70, 200]
PADDED = 1


class Case:
    """Projections and pages of decoding rows, some of them padding; whatever no query may see is NaN."""

    def __init__(
        self,
        positions: list[int],
        *,
        dtype: torch.dtype = torch.float32,
        heads: int = 6,
        kv_heads: int = 2,
        head_dim: int = 64,
        page: int = 16,
        parts: int = 0,
        normed: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.rows, columns = len(positions), max(positions) // page + 1
        tokens, width = self.rows + PADDED, (heads + 2 * kv_heads) * head_dim
        self.table = torch.randperm(self.rows * columns).view(self.rows, columns).int() + 1
        self.kv = torch.full((self.rows * columns + 1, page, 2, kv_heads, head_dim), float("nan")).to(dtype)
        self.places = torch.zeros(4, tokens, dtype=torch.int32)
        self.places[0, : self.rows] = torch.arange(self.rows)
        self.places[1] = torch.arange(tokens)
        self.places[2, : self.rows] = torch.tensor(positions)
        self.places[3, : self.rows] = 1
        self.kv_tokens = torch.full((tokens,), -1, dtype=torch.int32)
        for row, last in enumerate(positions):
            seen = torch.arange(last)
            self.kv[self.table[row, seen // page], seen % page] = torch.randn(last, 2, kv_heads, head_dim).to(
                dtype
            )
            self.kv_tokens[row] = self.table[row, last // page] * page + last % page
        self.qkv = torch.randn(parts, tokens, width) if parts else torch.randn(tokens, width).to(dtype)
        cos, sin, norms = torch.randn(3, max(positions) + 1, head_dim).to(dtype)
        self.rotary, self.norms = (cos.to(DEVICE), sin.to(DEVICE)), None
        if normed:
            self.norms = norms[0].to(DEVICE), norms[-1].to(DEVICE)
        self.out = torch.full((tokens, heads * head_dim), float("nan"), dtype=dtype)
        self.arrived = torch.zeros(tokens * kv_heads, dtype=torch.int32)
        for name in ("table", "kv", "places", "kv_tokens", "qkv", "out", "arrived"):
            setattr(self, name, getattr(self, name).to(DEVICE))

    def run(self, window: int | None = None, **options: Any) -> Tensor:
        """The outputs, compared with what the steps make of the same."""
        out, kv = self.out.clone(), self.kv.clone()
        decode.attend(
            out,
            self.qkv,
            kv,
            self.table,
            QueryTiles(places=self.places, queries=1),
            self.kv_tokens,
            self.rotary,
            self.norms,
            1e-5,
            scale=0.17,
            window=window,
            arrived=self.arrived,
            **options,
        )
        assert not self.arrived.any(), "counters are zero again"
        self.check(out, kv, window)
        return out

    def check(self, out: Tensor, kv: Tensor, window: int | None) -> None:
        expected, expected_kv = self.out.clone(), self.kv.clone()
        q = steps.rotate_store(
            self.qkv.clone(),
            expected_kv.flatten(0, 1),
            self.kv_tokens,
            self.rotary,
            self.places[2],
            self.norms,
            1e-5,
        )
        tiles = QueryTiles(places=self.places, queries=1)
        reference.attend(expected, q, expected_kv, self.table, tiles, scale=0.17, window=window)
        limit = TOLERANCE[out.dtype]
        for name, mine, theirs in (("cache", kv, expected_kv), ("out", out, expected)):
            torch.testing.assert_close(
                mine, theirs, rtol=limit, atol=limit, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
            )
        idle = self.places[3] == 0
        assert out[idle].isnan().all(), "padded rows are left alone"


@pytest.mark.parametrize(
    ("dtype", "window", "splits"),
    [
        (torch.float32, None, 1),
        (torch.float32, None, 8),
        (torch.float32, 1, 2),
        (torch.float32, 50, 1),
        (torch.float32, 90, 2),
        (torch.float16, None, 1),
        (torch.float16, None, 2),
    ],
    ids=str,
)
def test_decode(dtype: torch.dtype, window: int | None, splits: int) -> None:
    Case(POSITIONS, dtype=dtype, parts=3).run(window, splits=splits)


@pytest.mark.parametrize("registers", [True, False])
def test_both_ways_to_read(registers: bool) -> None:
    """Shares of no key, of one block and of several, whole and not; counters serve once more."""
    case = Case([0, 16, 17, 64, 131], heads=2, kv_heads=1, head_dim=32)
    for splits in (1, 4, 2):
        case.run(splits=splits, blocks=Blocks(16, 4, registers))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page"),
    [(2, 2, 128, 16), (4, 1, 256, 64), (5, 1, 24, 4), (3, 3, 80, 64), (20, 1, 16, 4)],
)
def test_shapes_of_models(heads: int, kv_heads: int, head_dim: int, page: int) -> None:
    shape: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "page": page}
    Case([3, 70], **shape, normed=False).run(splits=2)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_row_does_not_depend_on_its_neighbours(splits: int) -> None:
    """Bit for bit, with the same number of splits."""
    case = Case(POSITIONS, heads=2, kv_heads=1)
    together = case.run(splits=splits)
    case.places[3, :2] = 0
    case.kv_tokens[:2] = -1
    assert torch.equal(case.run(splits=splits)[2], together[2])


def test_what_does_not_fit_is_refused() -> None:
    case = Case(POSITIONS)
    with pytest.raises(ValueError, match="3 splits"):
        case.run(splits=3)
    case.arrived = case.arrived[:1]
    with pytest.raises(ValueError, match="1 counters"):
        case.run(splits=2)
    case.qkv = case.qkv[:-1]
    with pytest.raises(ValueError, match="shapes do not fit"):
        case.run()
