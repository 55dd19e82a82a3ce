"""What must hold on a GPU of a decoding step's attention in one launch, where the last program of a row adds
up what others left: the steps one by one in float32 decide, and every launch gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.attention import QueryTiles, reference
from kernels.fused import reference as steps

_PAGE, _KV_HEADS = 16, 8
_POSITIONS = (0, 16, 255, 2047, 64, 63, 300, 1000)
_PADDED, _TIMES = 8, 20
# dtype, dimension and query heads of a KV head, splits, parts of the projections, window
_CASES = (
    (torch.bfloat16, 128, 4, 1, 0, None),
    (torch.bfloat16, 128, 4, 4, 2, None),
    (torch.bfloat16, 128, 4, 32, 2, None),
    (torch.bfloat16, 64, 7, 2, 0, 700),
    (torch.bfloat16, 256, 1, 16, 0, None),
    (torch.float32, 128, 4, 4, 0, None),
    (torch.float16, 128, 4, 1, 2, 77),
)


def run_all() -> Iterator[tuple[str, torch.dtype, float]]:
    """Name, dtype and largest relative error of each case; NaN where bits differ or a counter is left."""
    for dtype, head_dim, group, splits, parts, window in _CASES:
        error = _error(dtype, head_dim, group, splits, parts, window)
        yield f"decoding in one launch, {group} x {head_dim}, {splits} splits, window {window}", dtype, error


def _error(
    dtype: torch.dtype, head_dim: int, group: int, splits: int, parts: int, window: int | None
) -> float:
    from kernels.attention import decode

    rows, tokens = len(_POSITIONS), len(_POSITIONS) + _PADDED
    columns = max(_POSITIONS) // _PAGE + 1
    table = (torch.randperm(rows * columns) + 1).view(rows, columns)
    kv = torch.full((rows * columns + 1, _PAGE, 2, _KV_HEADS, head_dim), float("nan"), dtype=dtype)
    places, kv_tokens = torch.zeros(4, tokens, dtype=torch.int32), torch.full((tokens,), -1)
    places[1] = torch.arange(tokens)
    for row, last in enumerate(_POSITIONS):
        seen = torch.arange(last)
        kv[table[row, seen // _PAGE], seen % _PAGE] = torch.randn(last, 2, _KV_HEADS, head_dim).to(dtype)
        places[:, row] = torch.tensor((row, row, last, 1))
        kv_tokens[row] = table[row, last // _PAGE] * _PAGE + last % _PAGE
    table, kv, kv_tokens = table.int().cuda(), kv.cuda(), kv_tokens.cuda()
    tiles = QueryTiles(places=places.cuda(), queries=1)
    width = (group + 2) * _KV_HEADS * head_dim
    qkv = torch.randn(parts or 1, tokens, width, device="cuda") * (parts or 1) ** -0.5
    qkv = qkv if parts else qkv[0].to(dtype)
    cos, sin, norms = torch.randn(3, max(_POSITIONS) + 1, head_dim, device="cuda").to(dtype)
    scale, given = head_dim**-0.5, (kv_tokens, (cos, sin), (norms[0], norms[1]), 1e-6)
    arrived = torch.zeros(tokens * _KV_HEADS, dtype=torch.int32, device="cuda")
    out = torch.full((tokens, group * _KV_HEADS * head_dim), float("nan"), dtype=dtype, device="cuda")

    def launch() -> tuple[Tensor, Tensor]:
        mine, my_kv = out.clone(), kv.clone()
        decode.attend(
            mine, qkv, my_kv, table, tiles, *given, scale=scale, arrived=arrived, window=window, splits=splits
        )
        return mine[:rows], my_kv.nan_to_num(7)

    first, first_kv = launch()
    for _ in range(_TIMES):
        again, kv_again = launch()
        if arrived.any() or not (torch.equal(again, first) and torch.equal(kv_again, first_kv)):
            return float("nan")
    expected_kv, expected = kv.clone(), torch.empty(out.shape, device="cuda")
    positions = tiles.places[2]
    q = steps.rotate_store(
        qkv.clone(), expected_kv.flatten(0, 1), kv_tokens, (cos, sin), positions, given[2], given[3]
    )
    reference.attend(expected, q.float(), expected_kv, table, tiles, scale=scale, window=window)
    pairs = ((first, expected[:rows]), (first_kv, expected_kv.nan_to_num(7).float()))
    return max(((mine.float() - theirs).norm() / theirs.norm()).item() for mine, theirs in pairs)
