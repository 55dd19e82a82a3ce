"""How a shrink and an expand are cut into programs: measured on an H100.

Few tokens wait for memory: programs have all their weights on their way at once, and few large ones are
better than many small ones, each of which reads addresses and splits of sums again. Many tokens are computed
in loops.
"""

from typing import NamedTuple

_BESIDE_TOKENS, _FEW_TOKENS = 32, 256
MOST_GATED_RANK = 64
"""Of gate and up that are expanded by their SiLU's step: wider ranks have not been tried."""
_SHARE_OF_K = 1024
_LOOPED_SHARE_OF_K = 512
_MOST_SPLITS, _MOST_LOOPED_SPLITS, _MOST_SPLITS_OF_PROMPTS = 32, 16, 16
_PROGRAMS = 264  # that occupy a GPU
# Tiles from which on programs of an expand may be fewer and larger, of wide ranks, too.
_MANY_TILES, _VERY_MANY_TILES = 8, 64
_NARROW_RANK = 16


class Cut(NamedTuple):
    """A program of a shrink computes `block_r` ranks, `block_k` inputs at a time, all of its inputs if
    `is_one_pass`; one of an expand `block_n` outputs, `block_e` ranks at a time. Inputs are split `splits`
    times; an expand sums the splits. What `is_pipelined` is shrunk as a prompt is, cut by `choose_prompt`:
    many tokens, or as much to be read of lora_a. What `is_streamed` is expanded by `streamed_expand`.
    """

    is_pipelined: bool
    is_streamed: bool
    block_r: int
    block_k: int
    splits: int
    is_one_pass: bool
    block_e: int
    block_n: int


class PromptCut(NamedTuple):
    """A program of a prompt's shrink has `ranks` ranks of each of `together` slices, of `tokens` tokens, of
    one of `splits` shares of the inputs, `block_k` at a time.
    """

    tokens: int
    ranks: int
    together: int
    block_k: int
    splits: int
    stages: int
    warps: int


def choose_prompt(inputs: int, *, slices: int, block: int, count: int, rank: int) -> PromptCut:
    """For `count` tiles of up to `block` tokens, ranks up to `rank`. Splits depend on the batch: they are
    powers of two, since each other number is a kernel to be compiled while streams wait.
    """
    wide = min(64, 1 << (max(rank, 16) - 1).bit_length())
    together = 1 << (slices - 1).bit_length() if wide == 16 else 1
    groups = -(-slices // together) * -(-rank // wide)
    tokens, block_k = min(block, 32), 128
    if block > tokens and count * 2 * groups > _PROGRAMS // 4:
        tokens = block  # programs of fewer tokens would be too many to split the inputs
    programs = count * -(-block // tokens) * groups
    splits = min(_MOST_SPLITS_OF_PROMPTS, max(1, _PROGRAMS // programs), -(-inputs // block_k))
    splits = 1 << (splits.bit_length() - 1)
    return PromptCut(tokens, wide, together, block_k, splits, stages=3, warps=4)


def choose(
    tokens: int,
    inputs: int,
    *,
    block: int,
    count: int,
    rank: int,
    halves: bool,
    fixed_order: bool,
    is_added: bool = True,
) -> Cut:
    """For `count` tiles of up to `block` tokens, ranks up to `rank`; `is_added`: to what a product left."""
    wide = min(64, 1 << (max(rank, 16) - 1).bit_length())
    few = tokens <= _FEW_TOKENS or fixed_order
    is_one_pass = block == 16 and few and halves and not fixed_order
    block_k, share = 128 if halves else 64, _LOOPED_SHARE_OF_K
    if is_one_pass:
        block_k = share = 1 << (max(_SHARE_OF_K, -(-inputs // _MOST_SPLITS)) - 1).bit_length()
    if fixed_order or (block < 64 and count < _MANY_TILES):
        block_n = 64
    else:
        block_n = 128 if block == 64 else 512 if block == wide == 16 else 256
    is_many = count >= _VERY_MANY_TILES
    is_much = tokens > _BESIDE_TOKENS and (rank > _NARROW_RANK or is_many)
    return Cut(
        is_pipelined=(tokens > _FEW_TOKENS or is_much) and halves and not fixed_order,
        is_streamed=is_much and is_many and is_one_pass and not is_added and 32 < rank <= wide,
        block_r=16 if few else wide,
        block_k=block_k,
        splits=min(_MOST_SPLITS if is_one_pass else _MOST_LOOPED_SPLITS, -(-inputs // share)),
        is_one_pass=is_one_pass,
        block_e=16 if fixed_order else wide,
        block_n=block_n,
    )


class GatedCut(NamedTuple):
    """A program of `gated.silu_mul` has `columns` of gate and of up, `blocks` times, of up to `tokens`."""

    tokens: int
    columns: int
    blocks: int
    stages: int
    warps: int


def choose_gated(*, block: int, rank: int) -> GatedCut:
    """For tiles of up to `block` tokens, ranks up to `rank`."""
    if rank <= 16:
        return GatedCut(tokens=min(block, 32), columns=64, blocks=4, stages=3, warps=4)
    if block > 16:
        return GatedCut(tokens=32, columns=64, blocks=8, stages=3, warps=4)
    return GatedCut(tokens=16, columns=128, blocks=4, stages=2, warps=4)
