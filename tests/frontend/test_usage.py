"""Counts by digest: exact for the busy, bounded for the rest."""

from frontend.usage import FIRST_TOKEN_BOUNDS, OTHERS, Usage, UsageTable


def _request(tokens: int = 1) -> Usage:
    return Usage(requests=1, prompt_tokens=10, generated_tokens=tokens)


def test_counts_add_up_by_digest():
    table = UsageTable()
    table.count("", _request(3), first_token_seconds=0.02)
    table.count("a", _request(4), first_token_seconds=None)
    table.count("a", _request(5), first_token_seconds=100.0)
    assert table.of("").generated_tokens == 3
    assert table.of("a") == Usage(requests=2, prompt_tokens=20, generated_tokens=9)
    assert table.of("never") == Usage()
    assert table.busiest(1) == [("a", table.of("a"))]
    assert table.first_token_counts[FIRST_TOKEN_BOUNDS.index(0.025)] == 1
    assert table.first_token_counts[-1] == 1
    assert sum(table.first_token_counts) == 2


def test_many_digests_are_folded_and_nothing_is_lost():
    table = UsageTable(most=10)
    for number in range(1000):
        table.count(f"rare{number}", _request(), first_token_seconds=None)
        table.count("busy", _request(), first_token_seconds=None)
        assert len(table.busiest(10**6)) <= 20
    assert table.of("busy").requests == 1000
    assert table.total().requests == 2000
    assert OTHERS not in dict(table.busiest(10**6))
