"""How a shrink and an expand are cut into programs: measured on an H100.

Few tokens wait for memory: programs have all their weights on their way at once, and few large ones are
better than many small ones, each of which reads addresses and splits of sums again. Many tokens are computed
in loops.
"""

from typing import NamedTuple

_FEW_TOKENS, _VERY_MANY_TOKENS = 256, 4096
_SHARE_OF_K = 1024
_LOOPED_SHARE_OF_K = 512
_MOST_SPLITS, _MOST_LOOPED_SPLITS = 32, 16
_PROGRAMS = 264  # that occupy a GPU
# Tiles from which on programs of an expand may be fewer and larger, of wide ranks, too.
_MANY_TILES, _VERY_MANY_TILES = 8, 64


class Cut(NamedTuple):
    """A program of a shrink computes `block_r` ranks, `block_k` inputs at a time, all of its inputs if
    `is_one_pass`; one of an expand `block_n` outputs, `block_e` ranks at a time. Inputs are split at most
    `most_splits` times; `is_summed`: into no more splits than occupy the GPU, which are summed at once.
    """

    block_r: int
    block_k: int
    most_splits: int
    is_one_pass: bool
    is_summed: bool
    block_e: int
    block_n: int

    def splits(self, programs: int) -> int:
        """Of the inputs, where each split has that many programs. Those that depend on the batch are powers
        of two, since each other number is a kernel to be compiled while streams wait.
        """
        if not self.is_summed:
            return self.most_splits
        wanted = min(self.most_splits, max(1, _PROGRAMS // programs))
        return 1 << (wanted.bit_length() - 1)


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
        is_wide = is_one_pass and not is_added and count >= _VERY_MANY_TILES and 32 < rank <= wide
        block_n = 128 if block == 64 else 512 if block == wide == 16 or is_wide else 256
    return Cut(
        block_r=16 if few else wide,
        block_k=block_k,
        most_splits=min(_MOST_SPLITS if is_one_pass else _MOST_LOOPED_SPLITS, -(-inputs // share)),
        is_one_pass=is_one_pass,
        is_summed=not few,
        block_e=16 if fixed_order else wide,
        block_n=block_n,
    )


class GatedCut(NamedTuple):
    """A program of `gated.silu_mul` has `columns` of gate and of up, of up to `tokens`, `ranks` at a time."""

    tokens: int
    columns: int
    ranks: int
    warps: int


def choose_gated(tokens: int, *, block: int, rank: int) -> GatedCut:
    """For tiles of up to `block` tokens, ranks up to `rank`."""
    wide = min(64, 1 << (max(rank, 16) - 1).bit_length())
    if wide > 16:
        return GatedCut(tokens=min(block, 64), columns=64, ranks=wide, warps=4)
    if tokens > _VERY_MANY_TOKENS:
        return GatedCut(tokens=min(block, 32), columns=128, ranks=wide, warps=4)
    if block == 64:
        return GatedCut(tokens=64, columns=32, ranks=wide, warps=4)
    return GatedCut(tokens=16, columns=128, ranks=wide, warps=4)


def expands_with_silu(tokens: int, *, block: int, count: int, rank: int) -> bool:
    """Whether `gated.silu_mul` is faster than an expand ahead of gate and up's product. With few tokens, few
    in each tile, or wide ranks in small tiles it waits longer for lora_b than what it saves.
    """
    return tokens > _FEW_TOKENS and count * block <= 2 * tokens and (block == 64 or rank <= 16)
