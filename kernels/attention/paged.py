"""Paged attention in Triton. Semantics: those of `reference`.

A program computes one tile of queries for one KV head: the queries of all heads of its group stand in the
rows of one block, so that each key is read once (grouped-query attention, Ainslie et al. 2023), with a
running softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022). For decoding, keys are split
over programs and their results combined in a fixed order (Flash-Decoding, Dao et al. 2023).

Legend: T tokens, H query heads, K KV heads, D head dimension, P pages, S tokens of a page, M rows of a
block (queries x heads of a group), N keys of a block.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.tiles import QueryTiles
from kernels.launch import overlapping, quick, wait_for_inputs

_LOG2_E = 1.4426950408889634


def attend(
    out_TE: Tensor,
    q_THD: Tensor,
    kv_PS2KD: Tensor,
    page_table_RC: Tensor,
    tiles: QueryTiles,
    *,
    scale: float,
    window: int | None = None,
    splits: int = 1,
    blocks: "Blocks | None" = None,
) -> None:
    """Shapes as in `reference`; q may have any strides but a contiguous last dimension, kv is contiguous.

    `splits` programs share a tile's keys; more than one needs tiles of one query. Programs start in the
    tiles' order, so that long ones should come first. `blocks` instead of those chosen by measurement.
    Raises ValueError for shapes that do not fit.
    """
    heads, head_dim = q_THD.shape[1:]
    page_size, kv_heads = kv_PS2KD.shape[1], kv_PS2KD.shape[3]
    if q_THD.stride(2) != 1 or not kv_PS2KD.is_contiguous() or out_TE.stride(1) != 1:
        raise ValueError("queries and output need a contiguous last dimension, pages to be contiguous")
    if heads % kv_heads or kv_PS2KD.shape[4] != head_dim or out_TE.shape != (len(q_THD), heads * head_dim):
        raise ValueError(f"shapes do not fit: {q_THD.shape=}, {kv_PS2KD.shape=}, {out_TE.shape=}")
    if splits != 1 and (tiles.queries != 1 or splits & (splits - 1)):
        raise ValueError(f"{splits} splits of tiles of {tiles.queries} queries: give a power of two, 1 query")
    if not tiles.count:
        return
    blocks = blocks or Blocks.choose(heads // kv_heads, head_dim, tiles.queries, q_THD.dtype)
    group_block, head_block = _power_of_two(heads // kv_heads), max(16, _power_of_two(head_dim))
    partial = lse = out_TE
    if splits > 1:
        partial = q_THD.new_empty((tiles.count, heads, splits, head_dim), dtype=torch.float32)
        lse = q_THD.new_empty((tiles.count, heads, splits), dtype=torch.float32)
    _attend_kernel[(tiles.count * kv_heads, splits)](
        out_TE,
        partial,
        lse,
        q_THD,
        kv_PS2KD,
        page_table_RC,
        tiles.places,
        tiles.count,
        out_TE.stride(0),
        q_THD.stride(0),
        q_THD.stride(1),
        page_table_RC.stride(0),
        scale * _LOG2_E,
        window or 0,
        PAGE=page_size,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        GROUP_BLOCK=group_block,
        HEAD_BLOCK=head_block,
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        SPLITS=splits,
        # Float32 without tensor cores: tf32 keeps 10 bits, too few to be compared with the CPU.
        PRECISION="ieee" if q_THD.dtype == torch.float32 else "tf32",
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **overlapping(),
    )
    if splits > 1:
        _combine_kernel[(tiles.count, heads)](
            out_TE,
            partial,
            lse,
            tiles.places,
            tiles.count,
            out_TE.stride(0),
            HEADS=heads,
            HEAD_DIM=head_dim,
            HEAD_BLOCK=head_block,
            SPLITS=splits,
            num_warps=4 if splits >= 8 else 1,
            **overlapping(),
        )


def queries_per_tile(group: int, head_dim: int, dtype: torch.dtype) -> int:
    """How many queries a tile of a chunk takes, all heads of a group together filling a block."""
    rows = 32 if dtype == torch.float32 else 64
    return max(1, rows // _power_of_two(group))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


class Blocks(NamedTuple):
    """Sizes of a program: `m` rows (queries x heads of a group), `n` keys at a time. Tensor cores want at
    least 16 of each.
    """

    m: int
    n: int
    warps: int
    stages: int

    @classmethod
    def choose(cls, group: int, head_dim: int, queries: int, dtype: torch.dtype) -> "Blocks":
        m = max(16, _power_of_two(queries) * _power_of_two(group))
        wide = dtype == torch.float32 or head_dim > 128
        return cls(m=m, n=32 if wide else 64, warps=8 if m >= 128 else 4, stages=2)


@triton.jit
def _fold(scores_MN, v_ND, largest_M, anchor_M, total_M, acc_MD, PRECISION: tl.constexpr):
    """One more block of keys: sums that were relative to `largest` become relative to `anchor`."""
    weights_MN = tl.exp2(scores_MN - anchor_M[:, None])
    kept_M = tl.exp2(largest_M - anchor_M)
    total_M = total_M * kept_M + tl.sum(weights_MN, 1)
    acc_MD = acc_MD * kept_M[:, None]
    return total_M, tl.dot(weights_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision=PRECISION)


@quick
@triton.jit(do_not_specialize=["tiles"])
def _attend_kernel(
    out_ptr,
    partial_ptr,
    lse_ptr,
    q_ptr,
    kv_ptr,
    page_table_ptr,
    places_ptr,
    tiles,
    stride_out_t,
    stride_q_t,
    stride_q_h,
    stride_table_r,
    scale_log2,
    window,
    PAGE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_inputs(PDL)
    tile, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    row = tl.load(places_ptr + tile).to(tl.int64)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    position = tl.load(places_ptr + 2 * tiles + tile)
    count = tl.load(places_ptr + 3 * tiles + tile)

    m_M = tl.arange(0, BLOCK_M)
    d_D = tl.arange(0, HEAD_BLOCK)
    query_M, head_M = m_M // GROUP_BLOCK, m_M % GROUP_BLOCK
    valid_M = (query_M < count) & (head_M < GROUP)
    head_M += kv_head * GROUP
    valid_MD = valid_M[:, None] & (d_D < HEAD_DIM)[None, :]
    q_offsets_M = (token + query_M) * stride_q_t + head_M * stride_q_h
    q_MD = tl.load(q_ptr + q_offsets_M[:, None] + d_D[None, :], mask=valid_MD, other=0.0)

    end = position + count
    first = 0
    if window > 0:
        first = tl.maximum(position - window + 1, 0)
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(end - first, SPLITS), BLOCK_N) * BLOCK_N
        first += split * share
        end = tl.minimum(first + share, end)
    position_M = position + query_M

    largest_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)
    acc_MD = tl.zeros([BLOCK_M, HEAD_BLOCK], tl.float32)
    kv_ptr += kv_head * HEAD_DIM
    page_ptr = page_table_ptr + row * stride_table_r
    # All queries see whole blocks of keys, up to the first query's own.
    masked_from = first
    if window == 0:
        masked_from += tl.maximum(tl.minimum(position + 1, end) - first, 0) // BLOCK_N * BLOCK_N
        for begin in range(first, masked_from, BLOCK_N):
            key_N = begin + tl.arange(0, BLOCK_N)
            page_N = tl.load(page_ptr + key_N // PAGE)
            kv_N = kv_ptr + (page_N.to(tl.int64) * PAGE + key_N % PAGE) * (2 * KV_HEADS * HEAD_DIM)
            if HEAD_DIM == HEAD_BLOCK:
                k_ND = tl.load(kv_N[:, None] + d_D[None, :])
                v_ND = tl.load(kv_N[:, None] + KV_HEADS * HEAD_DIM + d_D[None, :])
            else:
                inside_D = (d_D < HEAD_DIM)[None, :]
                k_ND = tl.load(kv_N[:, None] + d_D[None, :], mask=inside_D, other=0.0)
                v_ND = tl.load(kv_N[:, None] + KV_HEADS * HEAD_DIM + d_D[None, :], mask=inside_D, other=0.0)
            scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale_log2
            new_M = tl.maximum(largest_M, tl.max(scores_MN, 1))
            total_M, acc_MD = _fold(scores_MN, v_ND, largest_M, new_M, total_M, acc_MD, PRECISION)
            largest_M = new_M
    for begin in range(masked_from, end, BLOCK_N):
        key_N = begin + tl.arange(0, BLOCK_N)
        inside_N = key_N < end
        page_N = tl.load(page_ptr + key_N // PAGE, mask=inside_N, other=0)
        kv_N = kv_ptr + (page_N.to(tl.int64) * PAGE + key_N % PAGE) * (2 * KV_HEADS * HEAD_DIM)
        inside_ND = inside_N[:, None] & (d_D < HEAD_DIM)[None, :]
        # What a page's former owner left behind, even NaN, is never read.
        k_ND = tl.load(kv_N[:, None] + d_D[None, :], mask=inside_ND, other=0.0)
        v_ND = tl.load(kv_N[:, None] + KV_HEADS * HEAD_DIM + d_D[None, :], mask=inside_ND, other=0.0)
        scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale_log2
        visible_MN = inside_N[None, :] & (key_N[None, :] <= position_M[:, None])
        if window > 0:
            visible_MN &= key_N[None, :] > position_M[:, None] - window
        scores_MN = tl.where(visible_MN, scores_MN, float("-inf"))
        new_M = tl.maximum(largest_M, tl.max(scores_MN, 1))
        # Nothing seen yet: subtract 0 instead of -inf, so that weights are 0, not NaN.
        anchor_M = tl.where(new_M == float("-inf"), 0.0, new_M)
        total_M, acc_MD = _fold(scores_MN, v_ND, largest_M, anchor_M, total_M, acc_MD, PRECISION)
        largest_M = new_M

    out_MD = acc_MD / tl.where(total_M > 0, total_M, 1.0)[:, None]
    if SPLITS == 1:
        offsets_M = (token + query_M) * stride_out_t + head_M * HEAD_DIM
        tl.store(
            out_ptr + offsets_M[:, None] + d_D[None, :], out_MD.to(out_ptr.dtype.element_ty), mask=valid_MD
        )
    else:
        place_M = (tile.to(tl.int64) * KV_HEADS * GROUP + head_M) * SPLITS + split
        tl.store(partial_ptr + place_M[:, None] * HEAD_DIM + d_D[None, :], out_MD, mask=valid_MD)
        lse_M = tl.where(total_M > 0, largest_M + tl.log2(tl.where(total_M > 0, total_M, 1.0)), float("-inf"))
        tl.store(lse_ptr + place_M, lse_M, mask=valid_M)


@quick
@triton.jit(do_not_specialize=["tiles"])
def _combine_kernel(
    out_ptr,
    partial_ptr,
    lse_ptr,
    places_ptr,
    tiles,
    stride_out_t,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_inputs(PDL)
    tile, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    count = tl.load(places_ptr + 3 * tiles + tile)
    place = (tile.to(tl.int64) * HEADS + head) * SPLITS
    s_S, d_D = tl.arange(0, SPLITS), tl.arange(0, HEAD_BLOCK)
    valid_D = (d_D < HEAD_DIM) & (count > 0)
    lse_S = tl.load(lse_ptr + place + s_S, mask=(s_S < SPLITS) & (count > 0), other=float("-inf"))
    largest = tl.max(lse_S, 0)
    weight_S = tl.exp2(lse_S - tl.where(largest == float("-inf"), 0.0, largest))
    partial_SD = tl.load(
        partial_ptr + (place + s_S)[:, None] * HEAD_DIM + d_D[None, :],
        mask=(lse_S > float("-inf"))[:, None] & valid_D[None, :],
        other=0.0,
    )
    total = tl.sum(weight_S, 0)
    out_D = tl.sum(partial_SD * weight_S[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + token * stride_out_t + head * HEAD_DIM + d_D,
        out_D.to(out_ptr.dtype.element_ty),
        mask=valid_D,
    )
