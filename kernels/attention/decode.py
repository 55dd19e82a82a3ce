"""A decoding step's attention from the projections on, in one launch: norms and rotation of the queries and
of the new key, its and its value's place in the pages, and attention over the row.

Semantics: `fused.reference.rotate_store`, then `reference.attend`, for tiles of one query each.
"""

# pyright: reportCallIssue=false
# A checker knows the arguments of a kernel, but not those of its launch.

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention.decode_kernel import decode_kernel
from kernels.attention.tiles import QueryTiles
from kernels.launch import overlapping

_LOG2_E = 1.4426950408889634
_MANY_SPLITS = 8
_MOST_PARTIAL = 4096
"""Numbers that a program adds up at a time."""


class Blocks(NamedTuple):
    """A program takes `keys` at a time. What it has not begun with is read into registers, or else through
    shared memory, which takes longer to begin and less for each block.
    """

    keys: int
    warps: int
    registers: bool

    @classmethod
    def choose(cls, splits: int, head_dim: int, dtype: torch.dtype) -> "Blocks":
        """By measurement on an H100: many splits of a row have one block each."""
        keys, many = 32 if dtype == torch.float32 or head_dim > 128 else 64, splits >= _MANY_SPLITS
        return cls(keys=keys, warps=4 if many else 8, registers=many)


def attend(
    out_TE: Tensor,
    qkv_TP: Tensor,
    kv_PS2KD: Tensor,
    page_table_RC: Tensor,
    tiles: QueryTiles,
    kv_tokens_T: Tensor,
    rotary: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    scale: float,
    arrived: Tensor,
    window: int | None = None,
    splits: int = 1,
    blocks: Blocks | None = None,
) -> None:
    """Shapes as in `rotate_store` and `reference.attend`: qkv `[T, P]`, left as it is, or its float32 parts;
    kv_tokens integers `[T]`, -1 where nothing is stored; all contiguous but for out's rows.

    At most `splits` programs, a power of two, share a row. `arrived` are int32 zeros, one for each tile and
    KV head where there are splits; they are zero again at the end. Raises ValueError for what does not fit.
    """
    page_size, kv_heads, head_dim = kv_PS2KD.shape[1], *kv_PS2KD.shape[3:]
    heads, programs = out_TE.shape[1] // head_dim, tiles.count * kv_heads
    group = heads // kv_heads
    if heads % kv_heads or qkv_TP.shape[-2:] != (len(out_TE), (heads + 2 * kv_heads) * head_dim):
        raise ValueError(f"shapes do not fit: {out_TE.shape=}, {qkv_TP.shape=}, {kv_PS2KD.shape=}")
    if not all(part.is_contiguous() for part in (qkv_TP, kv_PS2KD, *rotary)) or out_TE.stride(1) != 1:
        raise ValueError("qkv, kv and the rotary tables must be contiguous, and so must out's rows")
    if tiles.queries != 1 or splits & (splits - 1) or (splits > 1 and len(arrived) < programs):
        raise ValueError(
            f"{splits} splits of {tiles.queries} queries with {len(arrived)} counters do not fit"
        )
    if not tiles.count:
        return
    partial = lse = out_TE
    if splits > 1:
        partial = out_TE.new_empty((programs, splits, group, head_dim), dtype=torch.float32)
        lse = out_TE.new_empty((programs, splits, group), dtype=torch.float32)
    blocks = blocks or Blocks.choose(splits, head_dim, kv_PS2KD.dtype)
    group_block, block_half = _power_of_two(group), max(16, _power_of_two(head_dim // 2))
    decode_kernel[(programs, splits)](
        out_TE,
        partial,
        lse,
        arrived,
        qkv_TP,
        kv_PS2KD,
        page_table_RC,
        tiles.places,
        kv_tokens_T,
        *rotary,
        *(norms or rotary),
        eps,
        tiles.count,
        qkv_TP.shape[-2] * qkv_TP.shape[-1],
        out_TE.stride(0),
        page_table_RC.stride(0),
        scale * _LOG2_E,
        window or 0,
        splits,
        PAGE=page_size,
        KV_HEADS=kv_heads,
        GROUP=group,
        HALF=head_dim // 2,
        GROUP_BLOCK=group_block,
        BLOCK_HALF=block_half,
        BLOCK_M=max(16, group_block),
        BLOCK_N=blocks.keys,
        IS_SHARED=splits > 1,
        BLOCK_C=_together(blocks, splits, group_block * 2 * block_half),
        NORM=norms is not None,
        PARTS=len(qkv_TP) if qkv_TP.dim() == 3 else 0,
        REGISTERS=blocks.registers,
        # Float32 without tensor cores: tf32 keeps 10 bits, too few to be compared with the CPU.
        PRECISION="ieee" if kv_PS2KD.dtype == torch.float32 else "tf32",
        num_warps=blocks.warps,
        num_stages=1,
        **overlapping(),
    )


def _together(blocks: Blocks, splits: int, numbers: int) -> int:
    """How many splits, of so many numbers each, are added up at a time; few values, for few kernels."""
    most = 1 if splits == 1 else _MANY_SPLITS if blocks.registers else _MANY_SPLITS // 2
    return max(1, min(most, _MOST_PARTIAL // numbers))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
