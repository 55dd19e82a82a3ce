"""How products of few tokens are cut into programs where adapters are computed beside them: measured for an
H100, a rule for what was not.
"""

from typing import NamedTuple

from kernels.linear.tiles import MOST_TOKENS, Tile

__all__ = ["MOST_RANK", "MOST_TOKENS", "Beside", "choose"]

MOST_RANK = 256


class Beside(NamedTuple):
    """The product's tile; lora_a's inputs are cut into `chunks`, lora_b's outputs into `span` a program. Of
    one token, a chunk is as large as the tile's block.
    """

    tile: Tile
    chunks: int
    span: int


# (tokens, outputs, inputs) of Qwen3-8B.
_H100 = {
    (1, 6144, 4096): Beside(Tile(4, 1, 1024, 4, 1, 1), 4, 128),
    (1, 4096, 4096): Beside(Tile(4, 1, 1024, 4, 1, 1), 4, 128),
    (1, 24576, 4096): Beside(Tile(4, 1, 1024, 4, 1, 1), 4, 128),
    (1, 4096, 12288): Beside(Tile(2, 1, 2048, 4, 1, 1), 6, 128),
    (8, 6144, 4096): Beside(Tile(64, 16, 128, 4, 4, 1, 512), 8, 128),
    (8, 4096, 4096): Beside(Tile(64, 16, 128, 4, 4, 4, 512), 8, 128),
    (8, 24576, 4096): Beside(Tile(64, 16, 128, 4, 6, 1, 512), 4, 512),
    (8, 4096, 12288): Beside(Tile(64, 16, 128, 4, 4, 4, 512), 8, 128),
    (32, 6144, 4096): Beside(Tile(64, 32, 128, 4, 4, 2, 512), 4, 512),
    (32, 4096, 4096): Beside(Tile(64, 32, 128, 4, 4, 2, 512), 8, 256),
    (32, 24576, 4096): Beside(Tile(64, 32, 128, 4, 4, 1, 512), 4, 512),
    (32, 4096, 12288): Beside(Tile(64, 32, 128, 4, 4, 2, 512), 4, 512),
}
# The same for ranks from 64 on, where that is another.
_H100_WIDE = {
    (32, 6144, 4096): Beside(Tile(64, 32, 128, 4, 3, 2, 512), 4, 512),
    (32, 4096, 4096): Beside(Tile(64, 32, 128, 4, 4, 2, 512), 4, 256),
    (32, 4096, 12288): Beside(Tile(64, 32, 128, 4, 4, 4, 512), 4, 512),
}
# And for many of these, since a span of which much is to be read waits for nothing else.
_H100_MANY = {
    (32, 6144, 4096): Beside(Tile(64, 32, 128, 4, 3, 2, 512), 4, 1024),
    (32, 24576, 4096): Beside(Tile(64, 32, 128, 4, 3, 1, 512), 4, 2048),
}
# And for so few that a slice's are one group: every program has a processor of its own.
_H100_FEW = {
    (8, 24576, 4096): Beside(Tile(64, 16, 128, 4, 6, 1, 512), 8, 512),
    (32, 6144, 4096): Beside(Tile(64, 32, 128, 4, 5, 1, 512), 4, 512),
    (32, 4096, 4096): Beside(Tile(64, 32, 128, 4, 5, 1, 512), 8, 256),
}
_FEW_PAIRS, _WIDE_RANK, _MANY_PAIRS = 64, 64, 1024
_PROGRAMS = 128


def choose(tokens: int, outputs: int, inputs: int, *, rank: int, tiles: int) -> Beside:
    """For 1 to `MOST_TOKENS` tokens in so many tiles of adapters of ranks up to `rank`."""
    size = 1 if tokens == 1 else 8 if tokens <= 16 else 32
    key = size, outputs, inputs
    found = _H100_FEW.get(key) if rank * tiles <= _FEW_PAIRS else None
    if found is None and rank >= _WIDE_RANK:
        found = (_H100_MANY.get(key) if rank * tiles >= _MANY_PAIRS else None) or _H100_WIDE.get(key)
    found = found or _H100.get(key)
    if found is not None:
        return found
    if size == 1:
        return Beside(Tile(4, 1, 1024, 4, 1, 1), -(-inputs // 1024), 128)
    blocks, splits = -(-outputs // 64), 1
    while blocks * splits < _PROGRAMS and inputs // (2 * splits) >= 512 and splits < 8:
        splits *= 2
    tile = Tile(64, 2 * size if size == 8 else size, 128, 4, 4, splits, 512 if inputs >= 512 * splits else 0)
    return Beside(tile, min(4, -(-inputs // 512)), 512)
