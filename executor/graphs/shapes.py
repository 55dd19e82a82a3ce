"""Which steps share a graph: batches are padded to few sizes.

A graph is recorded when its shape comes again, so that few shapes are few recordings; a shape that is larger
than its batch costs the GPU what the padding does. Weights are read once for all tokens, so that padding is
nearly free up to some 200 of them; beyond, a step takes as long as its tokens.
"""

from typing import NamedTuple

from kernels.lora.tiles import BLOCK

TOKENS = (16, 32, 48, 64, *range(96, 512, 32), *range(512, 1025, 64))
ROWS = (8, 32, 128, 512)
_RANKS = (16, 64, 256)
_TILES = (1, 4, 8, 16)
_LARGE_BLOCK = 64
_FEW_TOKENS, _MUCH_RANK = 256, 768 * 16
"""Up to so many tokens, or tokens times rank, small tiles of adapters are faster; measured for rank 16."""
_NEARLY_FREE, _HARDLY_MORE = 256, 1.5
"""Padded to so many tokens, or times its own, a step takes no longer than launched kernel by kernel."""
_SHORT_CHUNK = 8
"""Tokens of chunks on average for which there are tiles of attention enough."""

MOST_TOKENS = TOKENS[-1]
"""Of a step with chunks. Beyond, the GPU takes longer to compute than the host to launch."""


class LoraShape(NamedTuple):
    """What a graph with adapters is made for: that many tiles of up to `block` tokens, ranks up to `rank`,
    `routers` of experts and `ends` (embedding and head) that adapters change or not, whether adapters are
    computed `beside` the base's products, `vectors` (gains and shifts) that they have or not, and whether
    their experts share matrices.
    """

    tiles: int
    block: int
    rank: int
    routers: bool
    ends: bool
    beside: bool
    vectors: bool = False
    shares: bool = False


class StepShape(NamedTuple):
    """`tokens` of a step, `rows` that are sampled, `decodes` that decode, as many or none, and `chunks` tiles
    of attention for longer spans. Without chunks, every token is a row's and all are sampled.
    """

    tokens: int
    rows: int
    decodes: int
    chunks: int
    lora: LoraShape | None


def decoding(size: int, lora: LoraShape | None = None) -> StepShape:
    """Of `size` rows."""
    return StepShape(tokens=size, rows=size, decodes=size, chunks=0, lora=lora)


def mixed(tokens: int, rows: int, *, decodes: bool, most_rows: int, queries: int) -> StepShape | None:
    """The least that fits so many rows, of which some decode or none, with tiles of `queries` tokens for
    chunks; None where none does.
    """
    if tokens > MOST_TOKENS:
        return None
    size = least(TOKENS, tokens)
    rows = min(least(ROWS, rows), most_rows)
    # A row's last tile may have few tokens.
    chunks = size // queries + min(size // _SHORT_CHUNK, rows)
    return StepShape(tokens=size, rows=rows, decodes=rows if decodes else 0, chunks=chunks, lora=None)


def covers(larger: StepShape, shape: StepShape) -> bool:
    """Whether the graph of one shape computes steps of another, too, and in not much more time."""
    if not shape.tokens <= larger.tokens <= max(_HARDLY_MORE * shape.tokens, _NEARLY_FREE):
        return False
    theirs, ours = larger.lora, shape.lora
    if theirs is None or ours is None:
        is_alike = theirs is ours
    else:
        # What may be beside the base's products need not be.
        is_alike = theirs == ours._replace(
            tiles=max(ours.tiles, theirs.tiles), beside=ours.beside and theirs.beside
        )
    return (
        is_alike
        and shape.rows <= larger.rows
        and shape.decodes <= larger.decodes
        and shape.chunks <= larger.chunks
        and bool(shape.chunks) == bool(larger.chunks)
    )


def largest(most_rows: int, queries: int) -> StepShape:
    """Of those with chunks, but for adapters."""
    shape = mixed(MOST_TOKENS, most_rows, decodes=True, most_rows=most_rows, queries=queries)
    assert shape is not None
    return shape


def tiles_of(count: int, size: int) -> int:
    """How many tiles of adapters a graph of `size` tokens has for `count`."""
    return min(least(_TILES, count), size)


def rank_of(rank: int) -> int:
    """What rank a graph is made for that serves this one."""
    return least(_RANKS, rank)


def block_of(shape: StepShape, rank: int) -> int:
    """How many tokens a tile of adapters up to `rank` has at most. Each reads its adapter by itself, but a
    large one that has few tokens computes as if it had many.
    """
    is_large = shape.chunks and shape.tokens > max(_FEW_TOKENS, _MUCH_RANK // rank)
    return _LARGE_BLOCK if is_large else BLOCK


def sizes(rows: int) -> tuple[int, ...]:
    """Numbers of decoding rows that have a graph, up to `rows`: an eighth of a batch is padding at most, but
    for the smallest.
    """
    chosen, size = [], 1
    while size < rows:
        chosen.append(size)
        size += (
            1 if size < 2 else 2 if size < 4 else 4 if size < 16 else 8 if size < 64 else max(16, size // 8)
        )
    return (*chosen, size)


def least(steps: tuple[int, ...], number: int) -> int:
    """The least of few steps that a number fits in; beyond the last, its multiples."""
    return next((step for step in steps if step >= number), -(-number // steps[-1]) * steps[-1])
