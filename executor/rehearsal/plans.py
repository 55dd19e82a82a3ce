"""Steps that between them launch what any step does. Which kernels they launch is not known here: it follows
from sizes, mixes of adapters and their ranks, by the functions that real steps go through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from executor.control.plan import BASE_SLOT, StepPlan
from executor.graphs.shapes import MOST_TOKENS, ROWS, TOKENS, sizes
from kernels.lora.tiles import BLOCKS

_LONGEST_KEYS = 4096
"""Of a decoding row: more are not split over more programs."""
_MOST_TILES = 512
"""Of adapters: more are not cut otherwise."""
_SHORT_CHUNK = 100
_USUAL_RANK = 16


class Row(NamedTuple):
    """Feeds `length` tokens from position `start` on, with the adapter in a slot."""

    length: int
    start: int = 1
    slot: int = BASE_SLOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of all steps: rows, tokens, tokens of a row, adapters at once."""

    rows: int
    tokens: int
    context: int
    slots: int
    page_size: int

    @property
    def prompt(self) -> int:
        """Tokens of the longest; one is left to generate, where there is room for it."""
        return max(1, self.context - 1)


def graphs(limits: Limits) -> Iterator[list[Row]]:
    """Steps of the base that have graphs."""
    for size in sizes(limits.rows):
        yield [Row(1)] * min(size, limits.rows)
    for tokens in _fitting(TOKENS, limits.tokens):
        for rows in (0, *_fitting(ROWS, limits.rows)):
            yield _with_prompts(limits, tokens, [Row(1)] * (rows - 1 if rows else 0))


def adapted_graphs(limits: Limits) -> Iterator[list[Row]]:
    """Those with adapters, in few tiles and in many."""
    for size in sizes(limits.rows):
        most = min(size, limits.slots, limits.rows)
        for adapters in _counts(most):
            yield _adapted(adapters, adapters) + [Row(1)] * (min(size, limits.rows) - adapters)
        yield _adapted(min(size, limits.rows), most)
    for tokens in _fitting(TOKENS, limits.tokens):
        most = min(limits.rows - 1, tokens - 2, limits.slots)
        if most > 0:
            yield _with_prompts(limits, tokens, _adapted(most, most))
            yield _in_most_tiles(limits, tokens)
        for tiles in _counts(tokens // BLOCKS[0]):
            yield _with_prompts(limits, tokens, [], adapted=tiles * BLOCKS[0])


def large(limits: Limits, *, tokens: int = MOST_TOKENS + 100) -> Iterator[list[Row]]:
    """Steps of the base that are too large for graphs, with rows of any length among them."""
    if limits.tokens < tokens:
        return
    yield _with_prompts(limits, tokens, [])
    yield _with_prompts(limits, limits.tokens, [])
    for keys in _counts(min(limits.context - 2, _LONGEST_KEYS)):
        yield _with_prompts(limits, tokens, [Row(1, start=keys)])


def prompts(limits: Limits, slot: int = BASE_SLOT) -> Iterator[list[Row]]:
    """By themselves, of any length."""
    for tokens in _counts(min(limits.tokens, limits.prompt)):
        yield [Row(tokens, start=0, slot=slot)]


def spread(limits: Limits) -> Iterator[list[Row]]:
    """Steps of the base that decode few rows of any length, which then share a GPU's programs."""
    for rows in _counts(limits.rows):
        for keys in _counts(min(limits.context - 2, _LONGEST_KEYS)):
            yield [Row(1, start=keys)] * rows


def adapted_large(limits: Limits, *, tokens: int = MOST_TOKENS + 100) -> Iterator[list[Row]]:
    """Those with adapters, in tiles of each size, as many of them as there can be."""
    if limits.tokens < tokens:
        return
    most = min(limits.rows - 1, limits.slots)
    for length in (2, *(block + 1 for block in BLOCKS[:-2])):  # the shortest that a block is for
        for tiles in _counts(most):
            if tiles * length <= limits.tokens and length < limits.context:
                prompts = [Row(length, slot=slot) for slot in range(tiles)]
                yield _with_prompts(limits, max(tokens, tiles * length), prompts)
    block = BLOCKS[-1]
    for tiles in _counts(min(_MOST_TILES, limits.tokens // block)):
        yield _with_prompts(limits, max(tokens, tiles * block), [], adapted=tiles * block)
    yield _in_most_tiles(limits, limits.tokens)


def largest(limits: Limits, slot: int = BASE_SLOT) -> tuple[list[Row], list[Row], list[Row]]:
    """A step of prompts, as many tokens as there can be, one that decodes all rows after them, and one with a
    short chunk among decoding rows, which takes little but has kernels of its own.
    """
    lengths = np.ones(limits.rows, dtype=np.int64)
    # One row is long: what attention takes grows with it, and what scoring its prompt takes.
    lengths[0] += min((limits.tokens - limits.rows) // 4, limits.prompt - 1)
    lengths[1:] = min((limits.tokens - lengths[0]) // max(1, limits.rows - 1), limits.prompt)
    lengths[0] += min(limits.tokens - lengths.sum(), limits.prompt - lengths[0])
    chunk = max(1, min(_SHORT_CHUNK, limits.tokens - limits.rows + 1, limits.prompt))
    return (
        [Row(length, start=0, slot=slot) for length in lengths.tolist()],
        [Row(1, start=length, slot=slot) for length in lengths.tolist()],
        [Row(chunk, slot=slot), *[Row(1, slot=slot)] * (limits.rows - 1)],
    )


def ranks_of_largest(max_rank: int) -> list[int]:
    """Of adapters with which the largest steps are run at start: a usual one and the highest."""
    return sorted({min(_USUAL_RANK, max_rank), max_rank})


def step(rows: Sequence[Row]) -> StepPlan:
    """A plan whose rows' pages are nobody's: none is read. All rows are sampled."""
    none = np.empty(0, dtype=np.int32)
    lengths = np.array([row.length for row in rows])
    return StepPlan(
        step=0,
        installs=(),
        rows=np.arange(len(rows), dtype=np.int32),
        query_splits=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        input_ids=np.zeros(lengths.sum(), dtype=np.int32),
        start_positions=np.array([row.start for row in rows], dtype=np.int32),
        slots=np.array([row.slot for row in rows], dtype=np.int32),
        samples=np.ones(len(rows), dtype=np.bool_),
        page_rows=none,
        page_columns=none,
        page_ids=none,
    )


def _adapted(rows: int, adapters: int) -> list[Row]:
    """Decoding rows that share so many adapters."""
    return [Row(1, slot=row % adapters) for row in range(rows)]


def _in_most_tiles(limits: Limits, tokens: int) -> list[Row]:
    """A step of so many tokens in which all have adapters, and rows that decode one each."""
    prompts = -(-tokens // limits.prompt)
    rows = max(0, min(limits.rows - prompts, tokens - 2, limits.slots))
    return _with_prompts(limits, tokens, _adapted(rows, rows), adapted=tokens - rows)


def _with_prompts(limits: Limits, tokens: int, rows: list[Row], *, adapted: int = 0) -> list[Row]:
    """Rows, and prompts of the base so that a step has so many tokens; `adapted` of them have an adapter."""
    left = tokens - sum(row.length for row in rows)
    spans = [(adapted, 0), (left - adapted, BASE_SLOT)]
    for span, slot in spans:
        while span > 0:
            length = min(span, limits.prompt)
            rows = [*rows, Row(length, start=0, slot=slot)]
            span -= length
    return rows[: limits.rows]


def _fitting(steps: Sequence[int], most: int) -> list[int]:
    """Those up to a limit, and the limit, where it comes before the last."""
    return [step for step in steps if step < most] + [most] * (most <= steps[-1])


def _counts(most: int) -> list[int]:
    """From 1: powers of two, and the most."""
    return [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most] * (most > 0)
