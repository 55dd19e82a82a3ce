"""Which pairs of a batch share an adapter slot and an expert.

Legend: T tokens, N tiles of a batch.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A checker knows the arguments of a kernel, but not those of its launch, nor what device functions return.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import overlapping, quick, wait_for_inputs
from kernels.lora.tiles import Tiles
from kernels.moe.gpu_routing import Arrangement, arrange
from kernels.moe.gpu_vectors import MOST_TOKENS
from kernels.moe.routing import Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The runs of a batch: those of an arrangement, or without one, each pair.

    `block` is the most pairs of a run, `rank` the largest padded rank.
    """

    routing: Routing
    slots_T: Tensor
    arrangement: Arrangement | None
    block: int
    rank: int

    @property
    def count(self) -> int:
        if self.arrangement is None:
            return self.routing.experts_TX.numel()
        assert self.arrangement.runs_4M is not None
        return self.arrangement.runs_4M.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Experts, slots, order and runs, as kernels take them."""
        experts_TX, made = self.routing.experts_TX, self.arrangement
        if made is None:
            return experts_TX, self.slots_T, experts_TX, experts_TX
        assert made.runs_4M is not None
        return experts_TX, self.slots_T, made.order_P, made.runs_4M

    @property
    def block_r(self) -> int:
        return block_of_ranks(self.rank)


def block_of_ranks(rank: int) -> int:
    """Ranks of a block, which covers all up to 64."""
    return min(64, max(16, 1 << (rank - 1).bit_length()))


def runs_of(routing: Routing, experts: int, *, slots_T: Tensor, slots: int, rank: int) -> Runs:
    """Of a batch with at most `slots` different slots; `experts` is how many the layer has."""
    tokens, top_k = routing.experts_TX.shape
    run = run_block(tokens, top_k, experts)
    arrangement = None
    if tokens > MOST_TOKENS:
        arrangement = arrange(routing, experts, block=16, slots_T=slots_T, slots=slots + 1, run=run)
    return Runs(routing=routing, slots_T=slots_T, arrangement=arrangement, block=run, rank=rank)


def run_block(tokens: int, top_k: int, experts: int) -> int:
    """Pairs of a run at most: what an expert has where all are chosen alike and all tokens are one slot's."""
    share = tokens * top_k / experts
    return 16 if share <= 24 else 32 if share <= 256 else 64


def slots_of(tiles: Tiles, tokens: int) -> Tensor:
    """Each token's slot, int32 `[T]`; -1 for those of no tile."""
    slots_T = torch.empty(tokens, dtype=torch.int32, device=tiles.places.device)
    if tokens:
        _slots_kernel[(-(-tokens // 128),)](
            slots_T, tiles.places, tokens, tiles.count, BLOCK_T=128, BLOCK_N=32, num_warps=4, **overlapping()
        )
    return slots_T


@quick
@triton.jit(do_not_specialize=["tokens", "tiles"])
def _slots_kernel(
    slots_ptr, places_ptr, tokens, tiles, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr
):
    t_T, n_N = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_N)
    wait_for_inputs(PDL)
    slot_T = tl.full([BLOCK_T], -1, tl.int32)
    for tile in range(0, tiles, BLOCK_N):
        inside_N = tile + n_N < tiles
        place_N = places_ptr + tile + n_N
        slot_N = tl.load(place_N, mask=inside_N, other=-1)
        first_N = tl.load(place_N + tiles, mask=inside_N, other=0)
        count_N = tl.load(place_N + 2 * tiles, mask=inside_N, other=0)
        since_TN = t_T[:, None] - first_N[None, :]
        is_its_TN = (since_TN >= 0) & (since_TN < count_N[None, :])
        slot_T = tl.maximum(slot_T, tl.max(tl.where(is_its_TN, slot_N[None, :], -1), 1))
    tl.store(slots_ptr + t_T, slot_T, mask=t_T < tokens)
