"""What must hold of adapters that are computed beside a product or ahead of it, on a GPU, where programs wait
for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from kernels import lora
from kernels.fused import reference as fused
from kernels.lora import Arrivals, LoraBatch, PackedSlice, SliceEntry, SliceShape, SlotTable, reference
from kernels.lora.tiles import BLOCK, Tiles, cut

_RANKS, _NARROW = (8, 16, 64, 24, 256), (8, 16, 64, 24, 40)
_SIZES, _INPUTS = (640, 128, 130), 1536
_STARTS = np.cumsum((0, *_SIZES)).tolist()
_PACKED = [PackedSlice(i, _STARTS[i], _STARTS[i + 1]) for i in range(3)]
_WIDE = 328
_GATED = [PackedSlice(3, 0, _WIDE), PackedSlice(4, _WIDE, 2 * _WIDE)]
_TIMES = 20


def run_all() -> Iterator[tuple[str, torch.dtype, float]]:
    """Name, dtype and largest relative error of each case."""
    for dtype in (torch.float16, torch.bfloat16):
        table = _table(dtype, _RANKS)
        for slots in (
            [0], [4], [-1], [-1, 0, 1], list(range(8)), [-1] * 5 + [2] * 8, [3] * 32, list(range(32)),
            np.sort(np.arange(32) % 6 - 1).tolist(),
        ):  # fmt: skip
            name = f"lora beside a product, {len(slots)} tokens, {len(set(slots) - {-1})} adapters"
            yield name, dtype, _error(dtype, slots, table)
            yield f"{name}, gated", dtype, _error(dtype, slots, table, gated=True)
        for ranks in (_RANKS, _NARROW):
            table = _table(dtype, ranks)
            for tokens, recorded in ((40, True), (128, True), (300, False), (1100, False)):
                slots = np.sort(np.arange(tokens) * tokens % 7 - 1).tolist()
                name = f"lora ahead of a product, {tokens} tokens, ranks up to {max(ranks)}"
                for gated in (False, True):
                    error = _error(dtype, slots, table, recorded=recorded, ahead=True, gated=gated)
                    yield f"{name}, gated" * gated or name, dtype, error


def _error(
    dtype: torch.dtype,
    slots: list[int],
    table: SlotTable,
    *,
    recorded: bool = True,
    ahead: bool = False,
    gated: bool = False,
) -> float:
    """Over and over into memory that was NaN, with tiles to spare."""
    batch, tokens = LoraBatch.of_tokens(slots), len(slots)
    places = np.zeros((3, tokens), np.int32)
    if not batch.empty:
        found, _ = cut(batch.slots, batch.splits, blocks=(BLOCK,))
        places[:, : found.shape[1]] = found
    arrivals = Arrivals(1, table.pool.device)
    tiles = Tiles(
        places=torch.from_numpy(places).to(table.pool.device), block=BLOCK, rank=table.traits(range(5)).rank
    )
    tiled = LoraBatch(slots=(), splits=(0,), tiles=tiles, has_vectors=False, arrivals=arrivals)
    if not recorded:
        tiled = replace(batch.tiled(table), has_vectors=False)
    x = (torch.randn(tokens, _INPUTS, device="cuda") * _INPUTS**-0.5).to(dtype)
    packed = _GATED if gated else _PACKED
    weight = (torch.randn(packed[-1].stop, _INPUTS, device="cuda") * _INPUTS**-0.5).to(dtype)
    bias = torch.randn(packed[-1].stop, device="cuda").to(dtype)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double()).float()
    reference.apply(expected, x, slices=packed, batch=batch, table=table)
    if gated:
        expected = fused.silu_mul(expected)
    errors = []
    for _ in range(_TIMES):
        freed = torch.full((16 << 20,), float("nan"), device="cuda")
        del freed
        arrivals.begin()
        if ahead and gated and lora.can_be_gated(tiled, table):
            y = torch.nn.functional.linear(x, weight, bias)
            shrunk = lora.shrink(x, slices=packed, batch=tiled, table=table)
            found = lora.silu_mul(y, shrunk, slices=packed, batch=tiled, table=table)
        elif ahead:
            found = lora.ahead(x, bias, slices=packed, batch=tiled, table=table).addmm_(x, weight.t())
        else:
            found = lora.product(x, weight, bias, slices=packed, batch=tiled, table=table, gated=gated)
            found = fused.whole(found, torch.float32)
        if gated and found.shape[1] == len(weight):
            found = fused.silu_mul(found.float())
        errors.append(((found.float() - expected).norm() / expected.norm()).item())
    return float(np.max(errors))


def _table(dtype: torch.dtype, ranks: tuple[int, ...]) -> SlotTable:
    """Five ranks in turn; one of five adapters lacks a slice. NaN between the weights."""
    sizes = (*_SIZES, _WIDE, _WIDE)
    shapes = [SliceShape(kind="linear", in_features=_INPUTS, out_features=size) for size in sizes]
    pool = torch.full((64 << 20,), float("nan"), dtype=dtype, device="cuda")
    table, unit = SlotTable(pool=pool, shapes=shapes, slots=32), 1
    for slot in range(table.slots):
        entries, rank = [], ranks[slot % 5]
        for index, shape in enumerate(shapes):
            units = []
            for features in (shape.in_features, shape.out_features):
                size, first = rank * features, unit * 128 // dtype.itemsize
                pool[first : first + size] = torch.randn(size, device="cuda").to(dtype) * rank**-0.5
                units.append(unit)
                unit += -(-size * dtype.itemsize // 128) + 1
            if (slot % 5, index) != (1, 2):
                entries.append(
                    SliceEntry(slice=index, a_unit=units[0], b_unit=units[1], rank=rank, scaling=0.5 + index)
                )
        table.set_row(slot, entries)
    return table
