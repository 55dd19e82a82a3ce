"""Attention over pages whose every output has the same bits whatever else is in the batch: the deterministic
mode's. Semantics: those of `reference`.

Keys are cut at multiples of `SEGMENT` from the sequence's start. A segment is computed by itself, block after
block, and merged into those before it, in order. Decoding rows give their segments to several programs and
merge what these leave; a tile of a chunk computes and merges all of its own. Both compute a block with the
same code and merge with the same function, in which each multiplication and addition is spelled out, so that
no compiler joins them here but not there. Blocks that a query does not see change nothing of its sums.

Legend: as in `paged`; G heads of a group.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.tiles import QueryTiles
from kernels.launch import overlapping, quick, wait_for_inputs

SEGMENT = 512
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
) -> None:
    """Shapes and meaning as in `paged.attend`: `splits` programs share a tile's segments, which needs tiles
    of one query. Raises ValueError for shapes that do not fit.
    """
    heads, head_dim = q_THD.shape[1:]
    page_size, kv_heads = kv_PS2KD.shape[1], kv_PS2KD.shape[3]
    if q_THD.stride(2) != 1 or not kv_PS2KD.is_contiguous() or out_TE.stride(1) != 1:
        raise ValueError("queries and output need a contiguous last dimension, pages to be contiguous")
    if heads % kv_heads or kv_PS2KD.shape[4] != head_dim or out_TE.shape != (len(q_THD), heads * head_dim):
        raise ValueError(f"shapes do not fit: {q_THD.shape=}, {kv_PS2KD.shape=}, {out_TE.shape=}")
    group, head_block = heads // kv_heads, max(16, _power_of_two(head_dim))
    if tiles.queries > queries_per_tile(group, q_THD.dtype) or (splits > 1 and tiles.queries > 1):
        raise ValueError(f"{tiles.queries} queries do not fit a tile of {splits} splits")
    if not tiles.count:
        return
    wide, is_merged = q_THD.dtype == torch.float32, tiles.queries > 1
    segments = -(-page_table_RC.shape[1] * page_size // SEGMENT)
    partial = stats = out_TE
    if not is_merged:
        partial = q_THD.new_empty((tiles.count, heads, segments, head_dim), dtype=torch.float32)
        stats = q_THD.new_empty((2, tiles.count, heads, segments), dtype=torch.float32)
    sizes = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "GROUP_BLOCK": _power_of_two(group),
        "HEAD_BLOCK": head_block,
        "SEGMENT": SEGMENT,
    }
    _segments_kernel[(tiles.count * kv_heads, 1 if is_merged else splits)](
        out_TE,
        partial,
        stats,
        q_THD,
        kv_PS2KD,
        page_table_RC,
        tiles.places,
        tiles.count,
        segments,
        out_TE.stride(0),
        q_THD.stride(0),
        q_THD.stride(1),
        page_table_RC.stride(0),
        scale * _LOG2_E,
        window or 0,
        splits,
        PAGE=page_size,
        **sizes,
        BLOCK_M=_rows(q_THD.dtype),
        BLOCK_N=32 if wide or head_dim > 128 else 64,
        IS_MERGED=is_merged,
        PRECISION="ieee" if wide else "tf32",
        num_warps=4,
        num_stages=2,
        **overlapping(),
    )
    if not is_merged:
        _merge_kernel[(tiles.count, kv_heads)](
            out_TE,
            partial,
            stats,
            tiles.places,
            tiles.count,
            segments,
            out_TE.stride(0),
            window or 0,
            **sizes,
            num_warps=4,
            **overlapping(),
        )


def queries_per_tile(group: int, dtype: torch.dtype) -> int:
    """How many queries fit a tile, all heads of a group together."""
    return max(1, _rows(dtype) // _power_of_two(group))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _rows(dtype: torch.dtype) -> int:
    return 32 if dtype == torch.float32 else 64


@triton.jit
def _merge(largest_M, total_M, acc_MD, other_M, other_total_M, other_acc_MD):
    """One more segment's largest score, sum of weights and weighted sum of values."""
    new_M = tl.maximum(largest_M, other_M)
    anchor_M = tl.where(new_M == float("-inf"), 0.0, new_M)
    kept_M, share_M = tl.exp2(largest_M - anchor_M), tl.exp2(other_M - anchor_M)
    total_M = tl.fma(total_M, kept_M, other_total_M * share_M)
    kept_MD = tl.broadcast_to(kept_M[:, None], acc_MD.shape)
    return new_M, total_M, tl.fma(acc_MD, kept_MD, other_acc_MD * share_M[:, None])


@quick
@triton.jit(do_not_specialize=["tiles", "segments", "splits"])
def _segments_kernel(
    out_ptr,
    partial_ptr,
    stats_ptr,
    q_ptr,
    kv_ptr,
    page_table_ptr,
    places_ptr,
    tiles,
    segments,
    stride_out_t,
    stride_q_t,
    stride_q_h,
    stride_table_r,
    scale_log2,
    window,
    splits,
    PAGE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_MERGED: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_inputs(PDL)
    tile, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    row = tl.load(places_ptr + tile).to(tl.int64)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    position = tl.load(places_ptr + 2 * tiles + tile)
    count = tl.load(places_ptr + 3 * tiles + tile)

    m_M, d_D = tl.arange(0, BLOCK_M), tl.arange(0, HEAD_BLOCK)
    query_M, head_M = m_M // GROUP_BLOCK, m_M % GROUP_BLOCK
    valid_M = (query_M < count) & (head_M < GROUP)
    head_M += kv_head * GROUP
    position_M = position + query_M
    valid_MD = valid_M[:, None] & (d_D < HEAD_DIM)[None, :]
    q_offsets_M = (token + query_M) * stride_q_t + head_M * stride_q_h
    q_MD = tl.load(q_ptr + q_offsets_M[:, None] + d_D[None, :], mask=valid_MD, other=0.0)
    page_ptr = page_table_ptr + row * stride_table_r
    kv_ptr += kv_head * HEAD_DIM

    end = position + count
    first_segment = 0
    if window > 0:
        first_segment = tl.maximum(position - window + 1, 0) // SEGMENT
    all_largest_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    all_total_M = tl.zeros([BLOCK_M], tl.float32)
    all_acc_MD = tl.zeros([BLOCK_M, HEAD_BLOCK], tl.float32)
    for segment in range(first_segment + split, tl.cdiv(end, SEGMENT), splits):
        largest_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total_M = tl.zeros([BLOCK_M], tl.float32)
        acc_MD = tl.zeros([BLOCK_M, HEAD_BLOCK], tl.float32)
        for begin in range(segment * SEGMENT, tl.minimum((segment + 1) * SEGMENT, end), BLOCK_N):
            key_N = begin + tl.arange(0, BLOCK_N)
            inside_N = key_N < end
            page_N = tl.load(page_ptr + key_N // PAGE, mask=inside_N, other=0)
            kv_N = kv_ptr + (page_N.to(tl.int64) * PAGE + key_N % PAGE) * (2 * KV_HEADS * HEAD_DIM)
            inside_ND = inside_N[:, None] & (d_D < HEAD_DIM)[None, :]
            k_ND = tl.load(kv_N[:, None] + d_D[None, :], mask=inside_ND, other=0.0)
            v_ND = tl.load(kv_N[:, None] + KV_HEADS * HEAD_DIM + d_D[None, :], mask=inside_ND, other=0.0)
            scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale_log2
            visible_MN = inside_N[None, :] & (key_N[None, :] <= position_M[:, None])
            if window > 0:
                visible_MN &= key_N[None, :] > position_M[:, None] - window
            scores_MN = tl.where(visible_MN, scores_MN, float("-inf"))
            new_M = tl.maximum(largest_M, tl.max(scores_MN, 1))
            anchor_M = tl.where(new_M == float("-inf"), 0.0, new_M)
            weights_MN = tl.exp2(scores_MN - anchor_M[:, None])
            kept_M = tl.exp2(largest_M - anchor_M)
            total_M = tl.fma(total_M, kept_M, tl.sum(weights_MN, 1))
            acc_MD = acc_MD * kept_M[:, None]
            acc_MD = tl.dot(weights_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision=PRECISION)
            largest_M = new_M
        if IS_MERGED:
            all_largest_M, all_total_M, all_acc_MD = _merge(
                all_largest_M, all_total_M, all_acc_MD, largest_M, total_M, acc_MD
            )
        else:
            heads = KV_HEADS * GROUP
            place_M = (tile.to(tl.int64) * heads + head_M) * segments + segment
            tl.store(partial_ptr + place_M[:, None] * HEAD_DIM + d_D[None, :], acc_MD, mask=valid_MD)
            tl.store(stats_ptr + place_M, largest_M, mask=valid_M)
            tl.store(stats_ptr + tiles.to(tl.int64) * heads * segments + place_M, total_M, mask=valid_M)
    if IS_MERGED:
        out_MD = all_acc_MD / tl.where(all_total_M > 0, all_total_M, 1.0)[:, None]
        offsets_M = (token + query_M) * stride_out_t + head_M * HEAD_DIM
        out_ptrs = out_ptr + offsets_M[:, None] + d_D[None, :]
        tl.store(out_ptrs, out_MD.to(out_ptr.dtype.element_ty), mask=valid_MD)


@quick
@triton.jit(do_not_specialize=["tiles", "segments"])
def _merge_kernel(
    out_ptr,
    partial_ptr,
    stats_ptr,
    places_ptr,
    tiles,
    segments,
    stride_out_t,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_inputs(PDL)
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    position = tl.load(places_ptr + 2 * tiles + tile)
    count = tl.load(places_ptr + 3 * tiles + tile)
    g_G, d_D = tl.arange(0, GROUP_BLOCK), tl.arange(0, HEAD_BLOCK)
    head_G, heads = kv_head * GROUP + g_G, KV_HEADS * GROUP
    valid_G = (g_G < GROUP) & (count > 0)
    valid_GD = valid_G[:, None] & (d_D < HEAD_DIM)[None, :]
    first_segment = 0
    if window > 0:
        first_segment = tl.maximum(position - window + 1, 0) // SEGMENT
    largest_G = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total_G = tl.zeros([GROUP_BLOCK], tl.float32)
    acc_GD = tl.zeros([GROUP_BLOCK, HEAD_BLOCK], tl.float32)
    for segment in range(first_segment, tl.cdiv(position + count, SEGMENT)):
        place_G = (tile.to(tl.int64) * heads + head_G) * segments + segment
        other_GD = tl.load(partial_ptr + place_G[:, None] * HEAD_DIM + d_D[None, :], mask=valid_GD, other=0.0)
        other_G = tl.load(stats_ptr + place_G, mask=valid_G, other=float("-inf"))
        other_total_G = tl.load(
            stats_ptr + tiles.to(tl.int64) * heads * segments + place_G, mask=valid_G, other=0.0
        )
        largest_G, total_G, acc_GD = _merge(largest_G, total_G, acc_GD, other_G, other_total_G, other_GD)
    out_GD = acc_GD / tl.where(total_G > 0, total_G, 1.0)[:, None]
    offsets_G = token * stride_out_t + head_G * HEAD_DIM
    out_ptrs = out_ptr + offsets_G[:, None] + d_D[None, :]
    tl.store(out_ptrs, out_GD.to(out_ptr.dtype.element_ty), mask=valid_GD)
