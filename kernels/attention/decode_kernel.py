"""The programs of `decode`.

Each takes the queries of one KV head of one row, and a share of the row's older keys. These were written in
steps before, so that the first of them are on their way while the projections are still computed; places,
page table and rotary tables, too, are older than the kernel before. The program that has the row's end makes
the new key and value from the projections, stores them for later steps, and begins its running softmax with
them: nobody reads from the pages what this launch writes. Where programs share a row, the last of them to end
adds up what all have left, in the order of the keys, so that it does not matter which it is (Flash-Decoding,
Dao et al. 2023).

Legend: M rows of a block, of which the heads of a group are the first; N keys of a block; F half a head's
dimension, 1F the same for all rows; G heads of a group; C splits that are added up at a time; D a head's
dimension.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl

from kernels.fused.programs import load_sum, norm_heads, rotate_heads
from kernels.launch import quick, wait_for_inputs

# A split has at least this many keys: below, adding up costs more than it brings.
_FEWEST_KEYS = tl.constexpr(64)
_PAGE_OF_KEYS = tl.constexpr(16)


@quick
@triton.jit(do_not_specialize=["tiles", "splits"])
def decode_kernel(
    out_ptr,
    partial_ptr,
    lse_ptr,
    arrived_ptr,
    qkv_ptr,
    kv_ptr,
    page_table_ptr,
    places_ptr,
    kv_tokens_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    tiles,
    stride_part,
    stride_out_t,
    stride_table_r,
    scale_log2,
    window,
    splits,
    PAGE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_SHARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NORM: tl.constexpr,
    PARTS: tl.constexpr,
    REGISTERS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    HEAD_DIM: tl.constexpr = 2 * HALF
    TOKEN: tl.constexpr = 2 * KV_HEADS * HEAD_DIM
    program, split = tl.program_id(0), tl.program_id(1)
    tile, kv_head = program // KV_HEADS, program % KV_HEADS
    row = tl.load(places_ptr + tile).to(tl.int64)
    token = tl.load(places_ptr + tiles + tile).to(tl.int64)
    position = tl.load(places_ptr + 2 * tiles + tile)
    count = tl.load(places_ptr + 3 * tiles + tile)
    new_place = tl.load(kv_tokens_ptr + token).to(tl.int64)
    # Older keys are shared out; the last program that has some, or the first, has the new one, too.
    begin, end, active = 0, position, 1
    if window > 0:
        begin = tl.maximum(position - window + 1, 0)
    if IS_SHARED:
        share = tl.cdiv(tl.cdiv(position - begin, splits), _PAGE_OF_KEYS) * _PAGE_OF_KEYS
        share = tl.maximum(share, _FEWEST_KEYS)
        active = tl.maximum(tl.cdiv(position - begin, share), 1)
        begin += split * share
        end = tl.minimum(begin + share, position)
    is_last = split == active - 1
    if (count == 0) | (split >= active):
        wait_for_inputs(PDL)
        return

    m_M, n_N, f_F = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_HALF)
    page_ptr = page_table_ptr + row * stride_table_r
    k_ptr = kv_ptr + kv_head * HEAD_DIM
    v_ptr = k_ptr + TOKEN // 2
    place_N = _places(_pages(page_ptr, begin + n_N, end, PAGE), begin + n_N, PAGE, TOKEN)
    k_low_NF, k_high_NF = _read(k_ptr, place_N, begin + n_N < end, HALF, BLOCK_HALF)
    v_low_NF, v_high_NF = _read(v_ptr, place_N, begin + n_N < end, HALF, BLOCK_HALF)
    if REGISTERS:
        page_N = _pages(page_ptr, begin + BLOCK_N + n_N, end, PAGE)
    rotary = position.to(tl.int64) * HEAD_DIM
    cos_low_1F, cos_high_1F = _halves(cos_ptr + rotary, HALF, BLOCK_HALF)
    sin_low_1F, sin_high_1F = _halves(sin_ptr + rotary, HALF, BLOCK_HALF)
    if NORM:
        q_weight_low_1F, q_weight_high_1F = _halves(q_norm_ptr, HALF, BLOCK_HALF)
        k_weight_low_1F, k_weight_high_1F = _halves(k_norm_ptr, HALF, BLOCK_HALF)
    wait_for_inputs(PDL)

    dtype = kv_ptr.dtype.element_ty
    qkv_ptr += token * ((GROUP + 2) * KV_HEADS * HEAD_DIM)
    valid_MF = (m_M < GROUP)[:, None] & (f_F < HALF)[None, :]
    q_MF = qkv_ptr + (kv_head * GROUP + m_M)[:, None] * HEAD_DIM + f_F[None, :]
    q_low_MF = load_sum(q_MF, valid_MF, stride_part, dtype, PARTS)
    q_high_MF = load_sum(q_MF + HALF, valid_MF, stride_part, dtype, PARTS)
    new_1F = qkv_ptr + (GROUP * KV_HEADS + kv_head) * HEAD_DIM + f_F[None, :]
    new_valid_1F = (f_F < HALF)[None, :] & is_last
    low_1F = load_sum(new_1F, new_valid_1F, stride_part, dtype, PARTS)
    high_1F = load_sum(new_1F + HALF, new_valid_1F, stride_part, dtype, PARTS)
    value_low_1F = load_sum(new_1F + TOKEN // 2, new_valid_1F, stride_part, dtype, PARTS)
    value_high_1F = load_sum(new_1F + TOKEN // 2 + HALF, new_valid_1F, stride_part, dtype, PARTS)
    if NORM:
        q_low_MF, q_high_MF = norm_heads(
            q_low_MF, q_high_MF, q_weight_low_1F, q_weight_high_1F, eps, HALF, dtype
        )
        low_1F, high_1F = norm_heads(low_1F, high_1F, k_weight_low_1F, k_weight_high_1F, eps, HALF, dtype)
    q_low_MF, q_high_MF = rotate_heads(q_low_MF, q_high_MF, cos_low_1F, cos_high_1F, sin_low_1F, sin_high_1F)
    q_low_MF, q_high_MF = q_low_MF.to(dtype), q_high_MF.to(dtype)
    low_1F, high_1F = rotate_heads(low_1F, high_1F, cos_low_1F, cos_high_1F, sin_low_1F, sin_high_1F)
    low_1F, high_1F = low_1F.to(dtype), high_1F.to(dtype)
    stored_1F = new_valid_1F & (new_place >= 0)
    new_kv_1F = k_ptr + new_place * TOKEN + f_F[None, :]
    tl.store(new_kv_1F, low_1F, mask=stored_1F)
    tl.store(new_kv_1F + HALF, high_1F, mask=stored_1F)
    tl.store(new_kv_1F + TOKEN // 2, value_low_1F.to(dtype), mask=stored_1F)
    tl.store(new_kv_1F + TOKEN // 2 + HALF, value_high_1F.to(dtype), mask=stored_1F)

    largest_M = tl.sum(q_low_MF.to(tl.float32) * low_1F.to(tl.float32), 1)
    largest_M += tl.sum(q_high_MF.to(tl.float32) * high_1F.to(tl.float32), 1)
    largest_M = tl.where(is_last, largest_M * scale_log2, float("-inf"))
    total_M = tl.zeros([BLOCK_M], tl.float32) + is_last.to(tl.float32)
    low_MF = tl.zeros([BLOCK_M, BLOCK_HALF], tl.float32) + value_low_1F
    high_MF = tl.zeros([BLOCK_M, BLOCK_HALF], tl.float32) + value_high_1F
    # Every block has a key that is seen, so that the largest score is finite from then on.
    if REGISTERS:
        for first in range(begin, end, BLOCK_N):
            next_N = first + BLOCK_N + n_N
            place_N = _places(page_N, next_N, PAGE, TOKEN)
            page_N = _pages(page_ptr, next_N + BLOCK_N, end, PAGE)
            weights_MN, kept_M, total_M, largest_M = _weigh(
                q_low_MF,
                q_high_MF,
                k_low_NF,
                k_high_NF,
                first + n_N < end,
                scale_log2,
                total_M,
                largest_M,
                PRECISION,
            )
            k_low_NF, k_high_NF = _read(k_ptr, place_N, next_N < end, HALF, BLOCK_HALF)
            low_MF, high_MF = _add(low_MF, high_MF, kept_M, weights_MN, v_low_NF, v_high_NF, PRECISION)
            v_low_NF, v_high_NF = _read(v_ptr, place_N, next_N < end, HALF, BLOCK_HALF)
    else:
        for first in tl.range(begin + BLOCK_N, end, BLOCK_N, num_stages=2):
            key_N = first + n_N
            place_N = _places(_pages(page_ptr, key_N, end, PAGE), key_N, PAGE, TOKEN)
            later_k_low_NF, later_k_high_NF = _read(k_ptr, place_N, key_N < end, HALF, BLOCK_HALF)
            later_v_low_NF, later_v_high_NF = _read(v_ptr, place_N, key_N < end, HALF, BLOCK_HALF)
            weights_MN, kept_M, total_M, largest_M = _weigh(
                q_low_MF,
                q_high_MF,
                later_k_low_NF,
                later_k_high_NF,
                key_N < end,
                scale_log2,
                total_M,
                largest_M,
                PRECISION,
            )
            low_MF, high_MF = _add(
                low_MF, high_MF, kept_M, weights_MN, later_v_low_NF, later_v_high_NF, PRECISION
            )
        weights_MN, kept_M, total_M, largest_M = _weigh(
            q_low_MF,
            q_high_MF,
            k_low_NF,
            k_high_NF,
            begin + n_N < end,
            scale_log2,
            total_M,
            largest_M,
            PRECISION,
        )
        low_MF, high_MF = _add(low_MF, high_MF, kept_M, weights_MN, v_low_NF, v_high_NF, PRECISION)

    low_MF, high_MF = low_MF / total_M[:, None], high_MF / total_M[:, None]
    out_ptr += token * stride_out_t + kv_head * GROUP * HEAD_DIM
    if active == 1:
        out_MF = out_ptr + m_M[:, None] * HEAD_DIM + f_F[None, :]
        tl.store(out_MF, low_MF.to(dtype), mask=valid_MF)
        tl.store(out_MF + HALF, high_MF.to(dtype), mask=valid_MF)
    elif IS_SHARED:
        first_place = program.to(tl.int64) * splits * GROUP
        place_M = first_place + split * GROUP + m_M
        partial_MF = partial_ptr + place_M[:, None] * HEAD_DIM + f_F[None, :]
        tl.store(partial_MF, low_MF, mask=valid_MF)
        tl.store(partial_MF + HALF, high_MF, mask=valid_MF)
        tl.store(lse_ptr + place_M, largest_M + tl.log2(total_M), mask=m_M < GROUP)
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + program, 1, sem="acq_rel") == active - 1:
            tl.store(arrived_ptr + program, 0)
            _add_up(
                out_ptr,
                partial_ptr + first_place * HEAD_DIM,
                lse_ptr + first_place,
                active,
                GROUP,
                HEAD_DIM,
                GROUP_BLOCK,
                2 * BLOCK_HALF,
                BLOCK_C,
            )


@triton.jit
def _halves(ptr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    f_F = tl.arange(0, BLOCK_HALF)
    low_F = tl.load(ptr + f_F, mask=f_F < HALF, other=0.0).to(tl.float32)
    high_F = tl.load(ptr + HALF + f_F, mask=f_F < HALF, other=0.0).to(tl.float32)
    return low_F[None, :], high_F[None, :]


@triton.jit
def _pages(page_ptr, key_N, end, PAGE: tl.constexpr):
    return tl.load(page_ptr + key_N // PAGE, mask=key_N < end, other=0)


@triton.jit
def _places(page_N, key_N, PAGE: tl.constexpr, TOKEN: tl.constexpr):
    return (page_N.to(tl.int64) * PAGE + key_N % PAGE) * TOKEN


@triton.jit
def _read(ptr, place_N, inside_N, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Halves of keys or values. What a page's former owner left behind, even NaN, is never read."""
    f_F = tl.arange(0, BLOCK_HALF)
    inside_NF = inside_N[:, None] & (f_F < HALF)[None, :]
    low_NF = tl.load(ptr + place_N[:, None] + f_F[None, :], mask=inside_NF, other=0.0)
    high_NF = tl.load(ptr + HALF + place_N[:, None] + f_F[None, :], mask=inside_NF, other=0.0)
    return low_NF, high_NF


@triton.jit
def _weigh(
    q_low_MF,
    q_high_MF,
    k_low_NF,
    k_high_NF,
    inside_N,
    scale_log2,
    total_M,
    largest_M,
    PRECISION: tl.constexpr,
):
    """A block's weights relative to the largest score so far, what is kept of those before, and both sums."""
    scores_MN = tl.dot(q_low_MF, tl.trans(k_low_NF), input_precision=PRECISION)
    scores_MN = tl.dot(q_high_MF, tl.trans(k_high_NF), scores_MN, input_precision=PRECISION)
    scores_MN = tl.where(inside_N[None, :], scores_MN * scale_log2, float("-inf"))
    new_M = tl.maximum(largest_M, tl.max(scores_MN, 1))
    weights_MN = tl.exp2(scores_MN - new_M[:, None])
    kept_M = tl.exp2(largest_M - new_M)
    return weights_MN, kept_M, total_M * kept_M + tl.sum(weights_MN, 1), new_M


@triton.jit
def _add(low_MF, high_MF, kept_M, weights_MN, v_low_NF, v_high_NF, PRECISION: tl.constexpr):
    low_MF, high_MF = low_MF * kept_M[:, None], high_MF * kept_M[:, None]
    weights_MN = weights_MN.to(v_low_NF.dtype)
    low_MF = tl.dot(weights_MN, v_low_NF, low_MF, input_precision=PRECISION)
    return low_MF, tl.dot(weights_MN, v_high_NF, high_MF, input_precision=PRECISION)


@triton.jit
def _add_up(
    out_ptr,
    partial_ptr,
    lse_ptr,
    active,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What all splits have left, from L2, where it is."""
    g_G, d_D = tl.arange(0, GROUP_BLOCK), tl.arange(0, HEAD_BLOCK)
    inside_D = d_D < HEAD_DIM
    largest_G = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total_G = tl.zeros([GROUP_BLOCK], tl.float32)
    acc_GD = tl.zeros([GROUP_BLOCK, HEAD_BLOCK], tl.float32)
    for first in range(0, active, BLOCK_C):
        s_C = first + tl.arange(0, BLOCK_C)
        inside_C1 = (s_C < active)[:, None]
        # Heads beyond the group read the last one's, and are not written.
        place_CG = s_C[:, None] * GROUP + tl.minimum(g_G, GROUP - 1)[None, :]
        lse_CG = tl.load(lse_ptr + place_CG, mask=inside_C1, other=float("-inf"), cache_modifier=".cg")
        partial_CGD = tl.load(
            partial_ptr + place_CG[:, :, None] * HEAD_DIM + d_D[None, None, :],
            mask=inside_C1[:, :, None] & inside_D[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_G = tl.maximum(largest_G, tl.max(lse_CG, 0))
        kept_G, weight_CG = tl.exp2(largest_G - new_G), tl.exp2(lse_CG - new_G[None, :])
        total_G = total_G * kept_G + tl.sum(weight_CG, 0)
        acc_GD = acc_GD * kept_G[:, None] + tl.sum(partial_CGD * weight_CG[:, :, None], 0)
        largest_G = new_G
    out_GD = (acc_GD / total_G[:, None]).to(out_ptr.dtype.element_ty)
    out_ptrs = out_ptr + g_G[:, None] * HEAD_DIM + d_D[None, :]
    tl.store(out_ptrs, out_GD, mask=(g_G < GROUP)[:, None] & inside_D[None, :])
