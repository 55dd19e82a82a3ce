"""A shrink of many tokens, or of much to be read: lora_a comes in a pipeline, and all slices of a packed
projection are one program's where ranks are small, so that it reads its input once.

Semantics: `rank[t, l] = scaling[l] * x[t] @ lora_a[l].T`; beyond a slice's rank whatever was there, or zeros.
Programs share the inputs of a tile; the last of them to end adds up what all have left.

Legend: T tokens, K in features, L slices, R rank of all slices of a program, C splits of K.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what becomes of Python in one.

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.batch import PackedSlice
from kernels.lora.gpu_tiles import choose_prompt
from kernels.lora.rows import UNIT_BYTES
from kernels.lora.table import SlotTable
from kernels.lora.tiles import Tiles

_COUNTERS = 1 << 10


def shrink(x_TK: Tensor, *, slices: Sequence[PackedSlice], tiles: Tiles, table: SlotTable) -> Tensor:
    """Float32 `[1, T, L, R]`, of x in half precision."""
    cut = choose_prompt(
        x_TK.shape[1], slices=len(slices), block=tiles.block, count=tiles.count, rank=tiles.rank
    )
    parts = -(-tiles.block // cut.tokens)
    rank_CTLR = x_TK.new_empty((cut.splits, len(x_TK), len(slices), tiles.rank), dtype=torch.float32)
    groups = -(-len(slices) // cut.together) * -(-tiles.rank // cut.ranks)
    prompt_shrink_kernel[(tiles.count * parts, groups, cut.splits)](
        rank_CTLR,
        _counters(x_TK.device),
        x_TK,
        table.pool,
        table.rows_SL6,
        table.scaling_SL,
        tiles.places,
        tiles.count,
        len(x_TK),
        slices[0].slice,
        table.scaling_SL.shape[1],
        x_TK.shape[1],
        x_TK.stride(0),
        tiles.rank,
        UNIT=UNIT_BYTES // table.pool.element_size(),
        SLICES=len(slices),
        TOGETHER=cut.together,
        PARTS=parts,
        BLOCK_T=cut.tokens,
        BLOCK_R=cut.ranks,
        BLOCK_K=cut.block_k,
        K_SPLITS=cut.splits,
        num_warps=cut.warps,
        num_stages=cut.stages,
        **overlapping(),
    )
    return rank_CTLR[:1]


@cache
def _counters(device: torch.device) -> Tensor:
    """Of programs that have ended; zero between launches. What is split has fewer programs."""
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


@quick
@triton.jit(do_not_specialize=["first_slice", "tiles", "tokens"])
def prompt_shrink_kernel(
    rank_ptr,
    arrived_ptr,
    x_ptr,
    pool_ptr,
    rows_ptr,
    scaling_ptr,
    places_ptr,
    tiles,
    tokens,
    first_slice,
    table_slices,
    in_features,
    stride_x_t,
    buffer_rank,
    UNIT: tl.constexpr,
    SLICES: tl.constexpr,
    TOGETHER: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program has BLOCK_R ranks of each of TOGETHER slices, a part of a tile and a share of the inputs."""
    groups: tl.constexpr = (SLICES + TOGETHER - 1) // TOGETHER
    tile, begin_t = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS * BLOCK_T
    group, first_rank = tl.program_id(1) % groups * TOGETHER, tl.program_id(1) // groups * BLOCK_R
    slot = tl.load(places_ptr + tile).to(tl.int64)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64) + begin_t
    count = tl.load(places_ptr + 2 * tiles + tile) - begin_t
    entry = slot * table_slices + first_slice + group
    r_R = tl.arange(0, BLOCK_R * TOGETHER)
    l_R, i_R = r_R // BLOCK_R, first_rank + r_R % BLOCK_R
    rank_R = tl.zeros([BLOCK_R * TOGETHER], tl.int32)
    unit_R = tl.zeros([BLOCK_R * TOGETHER], tl.int64)
    scaling_R = tl.zeros([BLOCK_R * TOGETHER], tl.float32)
    most = 0
    for one in tl.static_range(TOGETHER):
        if one < SLICES:
            is_there = group + one < SLICES
            rank = tl.load(rows_ptr + (entry + one) * 6 + 2, mask=is_there, other=0).to(tl.int32)
            unit = tl.load(rows_ptr + (entry + one) * 6, mask=is_there, other=0)
            rank_R = tl.where(l_R == one, rank // 8, rank_R)
            unit_R = tl.where(l_R == one, unit, unit_R)
            scaling = tl.load(scaling_ptr + entry + one, mask=is_there, other=0.0)
            scaling_R = tl.where(l_R == one, scaling, scaling_R)
            most = tl.maximum(most, rank)
    rank_R = rank_R * 8  # so that the compiler sees whole vectors inside a rank
    wait_for_inputs(PDL)
    if (count <= 0) | (most <= first_rank):
        return
    t_T, k_K = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    inside_T, inside_R = t_T < count, i_R < rank_R
    x_T = x_ptr + (token + t_T) * stride_x_t
    a_R = pool_ptr + unit_R * UNIT + i_R.to(tl.int64) * in_features
    share = tl.cdiv(tl.cdiv(in_features, K_SPLITS), BLOCK_K) * BLOCK_K
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, in_features)
    acc_TR = tl.zeros([BLOCK_T, BLOCK_R * TOGETHER], tl.float32)
    for first in range(begin, end, BLOCK_K):
        inside_K = first + k_K < end
        x_TK = tl.load(
            x_T[:, None] + (first + k_K)[None, :], mask=inside_T[:, None] & inside_K[None, :], other=0.0
        )
        a_RK = tl.load(
            a_R[:, None] + (first + k_K)[None, :], mask=inside_R[:, None] & inside_K[None, :], other=0.0
        )
        acc_TR = tl.dot(x_TK, tl.trans(a_RK), acc_TR)
    acc_TR *= scaling_R[None, :]
    place_R = (group + l_R) * buffer_rank + i_R
    place_TR = rank_ptr + ((token + t_T) * SLICES * buffer_rank)[:, None] + place_R[None, :]
    # Zeros, too, where a rank ends before the widest: so that whole vectors are written.
    inside_TR = inside_T[:, None] & ((i_R < buffer_rank) & (group + l_R < SLICES))[None, :]
    stride = tokens.to(tl.int64) * SLICES * buffer_rank
    tl.store(place_TR + tl.program_id(2) * stride, acc_TR, mask=inside_TR)
    if K_SPLITS > 1:
        tl.debug_barrier()
        counter_ptr = arrived_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == K_SPLITS - 1:
            tl.store(counter_ptr, 0)
            acc_TR = tl.zeros([BLOCK_T, BLOCK_R * TOGETHER], tl.float32)
            for part in tl.static_range(K_SPLITS):
                # From L2, where the others' parts are.
                acc_TR += tl.load(place_TR + part * stride, mask=inside_TR, other=0.0, cache_modifier=".cg")
            tl.store(place_TR, acc_TR, mask=inside_TR)
