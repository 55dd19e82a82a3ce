"""Routing in Triton: the choice of experts, and the order in which their products are computed.

Semantics: `routing.route`, and for `arrange` those of `Arrangement`. Nothing waits for the host, and what
comes out depends on the routing alone.

Legend: T tokens, E experts, X experts of a token, P = T x X pairs (p = t * X + x), N tiles, M runs.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.moe.gpu_turns import Sharing, store_token_turns, store_turns
from kernels.moe.routing import RouterForm, Routing

_MOST_PAIRS_AT_ONCE = 2048
_MANY_PAIRS = 1024


class Arrangement(NamedTuple):
    """Pairs sorted by expert, those of an expert in their own order, cut into tiles of one expert.

    order int32 `[P]`: pairs, at the end those of expert -1 in no order that counts. tiles int32 `[5, N]`:
    expert, first place in `order`, number of pairs (0 makes a tile that does nothing), at most `block`, and
    zeros for each product's programs to count with. runs int32 `[4, M]`: the first three of pairs that share
    a slot too, and the slot; at most `run` pairs each. Or turns int32 `[P]`, by place: which of the adapter
    slots that its tile has is the pair's, -1 of none; and met int32 `[N, 1 + S]`: how many slots a tile has,
    and those.
    Running example: experts [[2, 0], [2, 1]], slots (-1, 5), blocks of 16 make order [1, 3, 0, 2], tiles
    [[0, 1, 2], [0, 1, 2], [1, 1, 2], ...] and runs [[0, 1, 2, 2], [0, 1, 2, 3], [1, 1, 1, 1],
    [-1, 5, -1, 5]], or turns [-1, 0, -1, 0] and met [[0, .], [1, 5], [1, 5]].
    """

    order_P: Tensor
    tiles_5N: Tensor
    block: int
    runs_4M: Tensor | None = None
    run: int = 0
    turns_P: Tensor | None = None
    met_NS: Tensor | None = None


def route(logits_TE: Tensor, *, top_k: int, form: RouterForm, places_T: Tensor | None = None) -> Routing:
    """See `kernels.moe.route`; of equal logits, the first expert. Logits that are not numbers choose last."""
    tokens, experts = logits_TE.shape
    if logits_TE.stride(1) != 1 or not 0 < top_k <= experts:
        raise ValueError(f"logits need a contiguous last dimension, of {experts} experts {top_k} are chosen")
    experts_TX = torch.empty(tokens, top_k, dtype=torch.int32, device=logits_TE.device)
    weights_TX = torch.empty(tokens, top_k, dtype=torch.float32, device=logits_TE.device)
    if tokens:
        block = 1 << (experts - 1).bit_length()
        _route_kernel[(tokens,)](
            experts_TX,
            weights_TX,
            logits_TE,
            experts_TX if places_T is None else places_T,
            logits_TE.stride(0),
            EXPERTS=experts,
            TOP_K=top_k,
            BLOCK_E=block,
            BLOCK_X=1 << (top_k - 1).bit_length(),
            NORMALISED=form is RouterForm.NORMALISED,
            HAS_PLACES=places_T is not None,
            num_warps=max(1, min(4, block // 128)),
            **overlapping(),
        )
    return Routing(experts_TX=experts_TX, weights_TX=weights_TX)


def arrange(
    routing: Routing,
    experts: int,
    *,
    block: int,
    slots_T: Tensor | None = None,
    slots: int = 0,
    run: int = 0,
    sharing: Sharing | None = None,
) -> Arrangement:
    """Sort pairs and cut tiles; with each token's slot (int32 `[T]`, sorted), at most `slots` different ones,
    -1 included, runs of up to `run` pairs too, or turns."""
    experts_TX = routing.experts_TX
    tokens, top_k = experts_TX.shape
    pairs, device = experts_TX.numel(), experts_TX.device
    tiles = min(pairs, experts + pairs // block)
    runs = min(pairs, experts * slots + pairs // run) if run else 0
    has_turns = slots_T is not None and not run
    order_P = torch.empty(pairs, dtype=torch.int32, device=device)
    tiles_5N = torch.empty(5 * tiles + 1, dtype=torch.int32, device=device)[:-1].view(5, tiles)
    runs_4M = torch.empty(4, runs, dtype=torch.int32, device=device)
    tokens_too = tokens if sharing is not None else 0
    token_tiles = -(-tokens_too // block)
    turns_P = torch.empty(pairs + tokens_too if has_turns else 0, dtype=torch.int32, device=device)
    met_NS = torch.empty(tiles + token_tiles if has_turns else 0, slots, dtype=torch.int32, device=device)
    if not experts_TX.is_contiguous():
        raise ValueError("experts must be contiguous")
    if pairs:
        _arrange_kernel[(experts,)](
            order_P,
            tiles_5N,
            runs_4M,
            turns_P,
            met_NS,
            experts_TX,
            experts_TX if slots_T is None else slots_T,
            experts_TX if sharing is None else sharing.rows_SL6,
            routing.weights_TX if sharing is None else sharing.scaling_SL,
            pairs,
            tiles,
            token_tiles,
            runs,
            slots,
            0 if sharing is None else sharing.first_slice,
            0 if sharing is None else sharing.rows_SL6.shape[1],
            TOP_K=top_k,
            TILE=block,
            RUN=max(run, 1),
            BLOCK_E=1 << (experts - 1).bit_length(),
            BLOCK_P=max(16, min(_MOST_PAIRS_AT_ONCE, 1 << (pairs - 1).bit_length())),
            BLOCK_T=max(16, min(_MOST_PAIRS_AT_ONCE, 1 << (tokens - 1).bit_length())) if run else 16,
            HAS_RUNS=run > 0,
            HAS_TURNS=has_turns,
            SHARES=sharing is not None,
            num_warps=8 if pairs > _MANY_PAIRS and slots_T is None else 4,
            **overlapping(),
        )
    if has_turns:
        return Arrangement(order_P, tiles_5N, block, turns_P=turns_P, met_NS=met_NS)
    return Arrangement(order_P, tiles_5N, block, runs_4M if run else None, run)


@quick
@triton.jit
def _route_kernel(
    experts_ptr,
    weights_ptr,
    logits_ptr,
    places_ptr,
    stride_t,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_X: tl.constexpr,
    NORMALISED: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    PDL: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    e_E, x_X = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_X)
    inside_E, least = e_E < EXPERTS, -3.0e38
    wait_for_inputs(PDL)
    logits_E = tl.load(logits_ptr + token * stride_t + e_E, mask=inside_E, other=0.0).to(tl.float32)
    # Below every number, but above what is no expert or already chosen.
    logits_E = tl.where(logits_E > least, logits_E, least)
    left_E = tl.where(inside_E, logits_E, float("-inf"))
    largest = tl.max(left_E, 0)
    total = tl.sum(tl.exp(left_E - largest), 0)
    chosen_X, expert_X = tl.zeros([BLOCK_X], tl.float32), tl.zeros([BLOCK_X], tl.int32)
    for x in tl.static_range(TOP_K):
        value, expert = tl.max(left_E, 0, return_indices=True, return_indices_tie_break_left=True)
        chosen_X = tl.where(x_X == x, tl.exp(value - largest), chosen_X)
        expert_X = tl.where(x_X == x, expert, expert_X)
        left_E = tl.where(e_E == expert, float("-inf"), left_E)
    if NORMALISED:
        total = tl.sum(chosen_X, 0)
    if HAS_PLACES:
        expert_X = tl.where(tl.load(places_ptr + token) < 0, -1, expert_X)
    place_X = token * TOP_K + x_X
    tl.store(experts_ptr + place_X, expert_X, mask=x_X < TOP_K)
    tl.store(weights_ptr + place_X, chosen_X / total, mask=x_X < TOP_K)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


_NUMBERS = ["pairs", "tiles", "token_tiles", "runs", "slots", "first_slice", "table_slices"]


@quick
@triton.jit(do_not_specialize=_NUMBERS)
def _arrange_kernel(
    order_ptr,
    tiles_ptr,
    runs_ptr,
    turns_ptr,
    met_ptr,
    experts_ptr,
    slots_ptr,
    rows_ptr,
    scaling_ptr,
    pairs,
    tiles,
    token_tiles,
    runs,
    slots,
    first_slice,
    table_slices,
    TOP_K: tl.constexpr,
    TILE: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    HAS_TURNS: tl.constexpr,
    SHARES: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program has one expert. All count all pairs, so that none waits for another."""
    expert = tl.program_id(0)
    e_E, p_P, t_T = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_T)
    wait_for_inputs(PDL)
    counts_E = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, pairs, BLOCK_P):
        expert_P = tl.load(experts_ptr + first + p_P, mask=first + p_P < pairs, other=-1)
        counts_E += tl.histogram(tl.maximum(expert_P, 0), BLOCK_E, mask=expert_P >= 0)
    count = tl.sum(tl.where(e_E == expert, counts_E, 0), 0)
    begin = tl.sum(tl.where(e_E < expert, counts_E, 0), 0)

    tiles_E = tl.cdiv(counts_E, TILE)
    tile = tl.sum(tl.where(e_E < expert, tiles_E, 0), 0)
    for done in range(0, count, TILE):
        place_ptr = tiles_ptr + tile + done // TILE
        tl.store(place_ptr, expert)
        tl.store(place_ptr + tiles, begin + done)
        tl.store(place_ptr + 2 * tiles, tl.minimum(count - done, TILE))
        tl.store(place_ptr + 3 * tiles, 0)
        tl.store(place_ptr + 4 * tiles, 0)
    if expert == 0:
        for first in range(tl.sum(tiles_E, 0), tiles, BLOCK_E):
            tl.store(tiles_ptr + 2 * tiles + first + e_E, e_E * 0, mask=first + e_E < tiles)

    placed = begin
    for first in range(0, pairs, BLOCK_P):
        expert_P = tl.load(experts_ptr + first + p_P, mask=first + p_P < pairs, other=-1)
        is_mine_P = (expert_P == expert).to(tl.int32)
        place_P = placed + tl.cumsum(is_mine_P, 0) - is_mine_P
        tl.store(order_ptr + place_P, first + p_P, mask=is_mine_P > 0)
        placed += tl.sum(is_mine_P, 0)

    if HAS_TURNS:
        tl.debug_barrier()  # the order that this program has stored is read back
        for done in range(0, count, TILE):
            store_turns(
                order_ptr, turns_ptr, met_ptr + (tile + done // TILE) * slots, slots_ptr, begin + done,
                tl.minimum(count - done, TILE), expert, rows_ptr, scaling_ptr, first_slice, table_slices,
                TOP_K, TILE, SHARES,
            )  # fmt: skip
    if SHARES:
        for index in range(expert, token_tiles, tl.num_programs(0)):
            store_token_turns(
                turns_ptr + pairs, met_ptr + (tiles + index) * slots, slots_ptr, index * TILE,
                pairs // TOP_K, rows_ptr, scaling_ptr, first_slice, table_slices, TILE,
            )  # fmt: skip
        if expert == 0:
            tl.store(tiles_ptr + 5 * tiles, 0)
    if HAS_RUNS:
        # Each expert has room for as many runs as it can have.
        room_E = tl.minimum(counts_E, slots + counts_E // RUN)
        run = tl.sum(tl.where(e_E < expert, room_E, 0), 0)
        end = run + tl.sum(tl.where(e_E == expert, room_E, 0), 0)
        tl.debug_barrier()  # the order that this program has stored is read back
        run_begin = 0  # place, within the expert, at which the run that goes on has begun
        for first in range(0, count, BLOCK_T):
            i_T = first + t_T
            here_T, before_T, after_T = i_T < count, i_T > 0, i_T + 1 < count
            place_T = order_ptr + begin + i_T
            slot_T = tl.load(slots_ptr + tl.load(place_T, mask=here_T, other=0) // TOP_K)
            last_T = tl.load(slots_ptr + tl.load(place_T - 1, mask=here_T & before_T, other=0) // TOP_K)
            next_T = tl.load(slots_ptr + tl.load(place_T + 1, mask=after_T, other=0) // TOP_K)
            begins_T = here_T & ((i_T == 0) | (slot_T != last_T))
            begin_T = tl.associative_scan(tl.where(begins_T, i_T, run_begin), 0, _larger)
            within_T = (i_T - begin_T) % RUN
            is_first_T = (here_T & (within_T == 0)).to(tl.int32)
            ends_T = here_T & ((within_T == RUN - 1) | (i_T == count - 1) | (slot_T != next_T))
            run_T = run + tl.cumsum(is_first_T, 0) - 1
            tl.store(runs_ptr + run_T, expert + 0 * i_T, mask=is_first_T > 0)
            tl.store(runs_ptr + runs + run_T, begin + i_T, mask=is_first_T > 0)
            tl.store(runs_ptr + 2 * runs + run_T, within_T + 1, mask=ends_T)
            tl.store(runs_ptr + 3 * runs + run_T, slot_T, mask=is_first_T > 0)
            run += tl.sum(is_first_T, 0)
            run_begin = tl.max(begin_T, 0)
        for first in range(run, end, BLOCK_E):
            tl.store(runs_ptr + 2 * runs + first + e_E, e_E * 0, mask=first + e_E < end)
        if expert == 0:
            for first in range(tl.sum(room_E, 0), runs, BLOCK_E):
                tl.store(runs_ptr + 2 * runs + first + e_E, e_E * 0, mask=first + e_E < runs)
