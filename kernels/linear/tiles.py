"""How products of few tokens are cut into programs: measured for an H100, a rule for what was not."""

from typing import NamedTuple


class Tile(NamedTuple):
    """A program computes `rows` outputs of `tokens` tokens, `block_k` inputs at a time; `splits` programs
    share the inputs. One token is computed without tensor cores.

    `rows` is a power of two or, where nothing is split, the sum of two: 128 programs of 192 rows keep as many
    processors busy where 192 of 128 rows would need a second round.
    """

    rows: int
    tokens: int
    block_k: int
    warps: int
    stages: int
    splits: int
    prefetch: int = 0
    """Columns of each row that are fetched into L2 before the input is there."""


MOST_TOKENS = 32
"""Up to which any product has a tile; beyond, those have that are known to be faster than cuBLAS."""

MOST_BLOCKS = 1 << 16
"""Of a product whose inputs are split."""

_PROGRAMS = 256

# (tokens, outputs, inputs) of Qwen3-8B, then of Qwen3-30B-A3B.
_H100 = {
    (1, 6144, 4096): Tile(2, 1, 2048, 8, 1, 1),
    (1, 4096, 4096): Tile(2, 1, 2048, 8, 1, 1),
    (1, 24576, 4096): Tile(2, 1, 2048, 8, 1, 1),
    (1, 4096, 12288): Tile(2, 1, 2048, 8, 1, 1),
    (1, 151936, 4096): Tile(4, 1, 1024, 8, 1, 1),
    (8, 6144, 4096): Tile(16, 16, 256, 4, 5, 1, 512),
    (8, 4096, 4096): Tile(32, 16, 256, 4, 5, 1, 512),
    (8, 24576, 4096): Tile(64, 16, 128, 4, 6, 1, 512),
    (8, 4096, 12288): Tile(64, 16, 256, 4, 4, 2, 512),
    (8, 151936, 4096): Tile(64, 16, 128, 4, 6, 1, 512),
    (16, 6144, 4096): Tile(48, 16, 256, 4, 5, 1, 512),
    (16, 4096, 4096): Tile(32, 16, 256, 4, 5, 1, 512),
    (16, 24576, 4096): Tile(64, 16, 128, 4, 6, 1, 512),
    (16, 4096, 12288): Tile(32, 16, 512, 4, 4, 1, 512),
    (16, 151936, 4096): Tile(64, 16, 128, 4, 6, 1, 512),
    (32, 6144, 4096): Tile(64, 32, 128, 4, 5, 1, 512),
    (32, 4096, 4096): Tile(64, 32, 128, 4, 5, 2, 512),
    (32, 24576, 4096): Tile(64, 32, 128, 4, 5, 1, 512),
    (32, 4096, 12288): Tile(64, 32, 128, 4, 5, 2, 512),
    (32, 151936, 4096): Tile(128, 32, 128, 8, 3, 1),
    (64, 6144, 4096): Tile(64, 64, 128, 4, 6, 1, 256),
    (64, 4096, 4096): Tile(64, 64, 128, 4, 4, 2, 256),
    (64, 4096, 12288): Tile(64, 64, 128, 4, 5, 2, 256),
    (64, 151936, 4096): Tile(128, 64, 128, 8, 4, 1),
    (128, 151936, 4096): Tile(128, 128, 128, 8, 3, 1),
    (1, 5120, 2048): Tile(2, 1, 1024, 4, 1, 1),
    (1, 2048, 4096): Tile(2, 1, 1024, 4, 1, 1),
    (1, 128, 2048): Tile(2, 1, 1024, 4, 1, 1),
    (8, 5120, 2048): Tile(64, 16, 128, 4, 5, 4, 512),
    (8, 2048, 4096): Tile(64, 16, 128, 4, 5, 8, 512),
    (8, 128, 2048): Tile(16, 16, 128, 4, 5, 8, 256),
    (32, 5120, 2048): Tile(32, 32, 128, 4, 5, 4, 512),
    (32, 2048, 4096): Tile(64, 32, 128, 4, 5, 4, 512),
    (32, 128, 2048): Tile(16, 32, 128, 4, 5, 4, 512),
}


_H100_GATED = {
    (8, 24576, 4096): Tile(192, 16, 128, 4, 4, 1, 256),
    (64, 24576, 4096): Tile(192, 64, 128, 8, 3, 1, 256),
    (128, 24576, 4096): Tile(192, 128, 64, 8, 4, 1, 256),
}
"""Where these are better than the others, or there are none."""


def choose(tokens: int, outputs: int, inputs: int, *, gated: bool = False) -> Tile | None:
    """None where cuBLAS should compute: for no tokens, and for many. A gated product's tile may have splits,
    and then its parts are summed and gated after it.
    """
    size = next((size for size in (1, 8, 16, 32, 64, 128) if 0 < tokens <= size), None)
    if size is None:
        return None
    shape = size, outputs, inputs
    known = _H100_GATED.get(shape) if gated else None
    known = known or _H100.get(shape)
    if known is not None or size > MOST_TOKENS:
        return known
    if size == 1:
        return Tile(4, 1, 1024, 4, 1, 1)
    blocks, splits = -(-outputs // 64), 1
    while blocks * splits < _PROGRAMS and inputs // (2 * splits) >= 512 and splits < 8:
        splits *= 2
    return Tile(64, max(16, size), 128, 4, 4, splits, 512 if inputs >= 512 * splits else 0)
