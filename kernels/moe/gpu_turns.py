"""Which adapter slots a tile's pairs have, and what those share among experts, for `gpu_routing`.

Legend: B pairs of a tile, or tokens.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

SHARED_A: tl.constexpr = tl.constexpr(256)
SHARED_B: tl.constexpr = tl.constexpr(512)
"""Bits of a turn, which is below both: a pair's expert has lora_a of gate and of up, or lora_b of down, in
common with the first two experts, and so presumably with all.
"""


class Sharing(NamedTuple):
    """Where a slot table says which experts of a layer share matrices."""

    rows_SL6: Tensor
    scaling_SL: Tensor
    first_slice: int


@triton.jit
def store_turns(
    order_ptr, turns_ptr, met_ptr, slots_ptr, place, count, expert,
    rows_ptr, scaling_ptr, first_slice, table_slices,
    TOP_K: tl.constexpr, TILE: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Of a tile, whose slots are sorted."""
    b_B = tl.arange(0, TILE)
    place_B, here_B = place + b_B, b_B < count
    pair_B = tl.load(order_ptr + place_B, mask=here_B, other=0)
    before_B = tl.load(order_ptr + place_B - 1, mask=here_B & (b_B > 0), other=0)
    slot_B = tl.where(here_B, tl.load(slots_ptr + pair_B // TOP_K), -1)
    last_B = tl.where(b_B > 0, tl.load(slots_ptr + before_B // TOP_K), -1)
    more_B = b_B * 0
    if SHARES:
        more_B = _shared(rows_ptr, scaling_ptr, slot_B, expert, first_slice, table_slices)
    _store(turns_ptr + place_B, met_ptr, slot_B, last_B, here_B, more_B)


@triton.jit
def store_token_turns(
    turns_ptr, met_ptr, slots_ptr, token, tokens, rows_ptr, scaling_ptr, first_slice, table_slices,
    TILE: tl.constexpr,
):  # fmt: skip
    """Of tokens as if they were a tile, for lora_a that experts share: other slots are none."""
    b_B = tl.arange(0, TILE)
    token_B = token + b_B
    here_B = token_B < tokens
    slot_B = tl.load(slots_ptr + token_B, mask=here_B, other=-1)
    last_B = tl.load(slots_ptr + token_B - 1, mask=here_B & (b_B > 0), other=-1)
    shared_B = _shared(rows_ptr, scaling_ptr, slot_B, 0, first_slice, table_slices)
    slot_B = tl.where((shared_B & SHARED_A) != 0, slot_B, -1)
    _store(turns_ptr + token_B, met_ptr, slot_B, last_B, here_B, b_B * 0)


@triton.jit
def _store(turns_ptr, met_ptr, slot_B, last_B, here_B, more_B):
    is_first_B = (slot_B >= 0) & (slot_B != last_B)
    turn_B = tl.where(slot_B >= 0, tl.cumsum(is_first_B.to(tl.int32), 0) - 1, -1)
    tl.store(turns_ptr, tl.where(turn_B >= 0, turn_B + more_B, -1), mask=here_B)
    tl.store(met_ptr + 1 + turn_B, slot_B, mask=is_first_B)
    tl.store(met_ptr, tl.max(turn_B, 0) + 1)


@triton.jit
def _shared(rows_ptr, scaling_ptr, slot_B, expert, first_slice, table_slices):
    """What slots share for this expert, as bits."""
    first_B = tl.maximum(slot_B, 0).to(tl.int64) * table_slices + first_slice
    mine_B = first_B + 3 * expert
    is_a_B = _is_same(rows_ptr, first_B, mine_B, 0) & _is_same(rows_ptr, first_B + 1, mine_B + 1, 0)
    for j in tl.static_range(2):
        is_a_B &= tl.load(scaling_ptr + first_B + j) == tl.load(scaling_ptr + mine_B + j)
    is_b_B = _is_same(rows_ptr, first_B + 2, mine_B + 2, 1)
    return tl.where(slot_B >= 0, is_a_B.to(tl.int32) * SHARED_A + is_b_B.to(tl.int32) * SHARED_B, 0)


@triton.jit
def _is_same(rows_ptr, first_B, mine_B, FACTOR: tl.constexpr):
    """Whether the first two experts and this one have the same lora_a (0) or lora_b (1)."""
    unit_B, rank_B = tl.load(rows_ptr + first_B * 6 + FACTOR), tl.load(rows_ptr + first_B * 6 + 2)
    is_same_B = rank_B > 0
    for other_B in tl.static_range(2):
        entry_B = first_B + 3 if other_B == 0 else mine_B
        is_same_B &= tl.load(rows_ptr + entry_B * 6 + FACTOR) == unit_B
        is_same_B &= tl.load(rows_ptr + entry_B * 6 + 2) == rank_B
    return is_same_B
