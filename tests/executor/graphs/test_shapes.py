"""Shapes that batches are padded to: few, and hardly larger than the batch."""

import pytest

from executor.graphs.shapes import (
    MOST_TOKENS,
    LoraShape,
    StepShape,
    block_of,
    covers,
    decoding,
    least,
    mixed,
    rank_of,
    sizes,
    tiles_of,
)


def test_padding_is_at_most_a_third_and_of_many_tokens_an_eighth() -> None:
    shapes = set()
    for tokens in range(1, MOST_TOKENS + 1):
        shape = mixed(tokens, 1, decodes=True, most_rows=128, queries=16)
        assert shape is not None
        shapes.add(shape)
        assert tokens <= shape.tokens
        assert tokens <= 32 or shape.tokens * 2 <= tokens * 3
        assert tokens <= 256 or shape.tokens * 8 <= tokens * 9
    assert len(shapes) == 26


def test_larger_steps_have_none() -> None:
    assert mixed(MOST_TOKENS + 1, 1, decodes=True, most_rows=128, queries=16) is None


def test_rows_end_at_the_most_that_run() -> None:
    rows = [mixed(100, rows, decodes=True, most_rows=48, queries=16) for rows in (0, 1, 8, 9, 33, 48)]
    assert [shape.rows for shape in rows if shape is not None] == [8, 8, 8, 32, 48, 48]


def test_chunks_of_eight_tokens_have_tiles_enough() -> None:
    """Whatever their lengths are, as long as they are eight on average."""
    for queries in (1, 3, 16, 32):
        for tokens in (16, 100, 1000):
            for chunks in {1, 2, tokens // 8}:
                shape = mixed(tokens, chunks, decodes=True, most_rows=128, queries=queries)
                assert shape is not None
                # One token each but for the last: every chunk but that wastes the rest of a tile.
                assert shape.chunks >= (chunks - 1) + -(-(tokens - chunks + 1) // queries)


def test_prompts_alone_have_no_more_tiles_than_they_may_need() -> None:
    shape = mixed(1000, 1, decodes=False, most_rows=128, queries=16)
    assert shape is not None
    assert (shape.decodes, shape.rows, shape.chunks) == (0, 8, 1024 // 16 + 8)


@pytest.mark.parametrize(("rank", "last"), [(16, 768), (64, 256), (256, 256)])
def test_tiles_are_large_where_adapters_would_be_read_often(rank: int, last: int) -> None:
    blocks = {}
    for tokens in range(1, MOST_TOKENS + 1):
        shape = mixed(tokens, 1, decodes=True, most_rows=8, queries=16)
        assert shape is not None
        blocks[tokens] = block_of(shape, rank)
    assert max(tokens for tokens, block in blocks.items() if block == 16) == last
    assert {block for tokens, block in blocks.items() if tokens > last} == {64}
    assert block_of(decoding(512), rank) == 16


def test_tiles_and_ranks_come_in_few_sizes() -> None:
    assert {tiles_of(count, 64) for count in range(1, 65)} == {1, 4, 8, 16, 32, 48, 64}
    assert tiles_of(2, 3) == 3, "a batch of three has at most three tiles"
    assert [rank_of(rank) for rank in (0, 8, 16, 24, 64, 72, 256, 264)] == [16, 16, 16, 64, 64, 256, 256, 512]
    assert least((2, 4), 9) == 12


def test_decoding_sizes_reach_the_most_rows() -> None:
    for rows in (1, 3, 24, 128, 300):
        assert sizes(rows)[-1] >= rows
        assert list(sizes(rows)) == sorted(set(sizes(rows)))


LORA = LoraShape(tiles=16, block=16, rank=16, routers=False, ends=False, beside=True)
CHUNKED = StepShape(tokens=320, rows=32, decodes=32, chunks=20, lora=LORA)


@pytest.mark.parametrize(
    "larger",
    [
        CHUNKED,
        CHUNKED._replace(tokens=480, rows=48, decodes=48, chunks=30, lora=LORA._replace(tiles=32)),
        CHUNKED._replace(lora=LORA._replace(beside=False)),
    ],
    ids=["itself", "all larger", "what may be beside products, after them"],
)
def test_a_graph_covers_what_is_no_larger_in_anything(larger: StepShape) -> None:
    assert covers(larger, CHUNKED)


@pytest.mark.parametrize(
    "other",
    [
        CHUNKED._replace(tokens=288),
        CHUNKED._replace(tokens=512),
        CHUNKED._replace(rows=8),
        CHUNKED._replace(decodes=0),
        CHUNKED._replace(chunks=19),
        CHUNKED._replace(lora=None),
        CHUNKED._replace(lora=LORA._replace(tiles=8)),
        CHUNKED._replace(lora=LORA._replace(block=64)),
        CHUNKED._replace(lora=LORA._replace(rank=64)),
        CHUNKED._replace(lora=LORA._replace(ends=True)),
        CHUNKED._replace(lora=LORA._replace(vectors=True)),
        decoding(320, LORA),
    ],
    ids=str,
)
def test_a_graph_covers_nothing_that_it_does_not_compute_or_that_is_much_less(other: StepShape) -> None:
    assert not covers(other, CHUNKED)


def test_what_cannot_be_beside_products_is_not() -> None:
    assert not covers(CHUNKED, CHUNKED._replace(lora=LORA._replace(beside=False)))


def test_few_tokens_may_be_padded_to_many_times_as_many() -> None:
    assert covers(decoding(256), decoding(1))
    assert not covers(decoding(272), decoding(8))
