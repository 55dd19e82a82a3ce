import json

from cli.commands.top import rows
from lorikeet.v1 import adapters_pb2 as pb
from tests.support.cli_fake_server import DIGEST, fake_server
from tests.support.cli_runner import lorikeet

BUSY = pb.AdapterUsage(
    digest=DIGEST,
    names=["alice", "alice-old"],
    requests=40,
    generated_tokens=500,
    running=3,
    waiting=2,
    is_resident=True,
    pool_loads=4,  # some waited for the same
    pool_hits=30,
    slot_wait_seconds=1.25,
)
BASE = pb.AdapterUsage(requests=7)
MEMORY = pb.TierUsage(
    tier="memory", entries=5, bytes=1 << 20, capacity_bytes=4 << 20, hits=1, misses=3, loads=3, evictions=2
)


def test_top_prints_adapters_and_tiers_once() -> None:
    with fake_server() as server:
        server.statistics = pb.GetAdapterStatisticsResponse(adapters=[BUSY, BASE], tiers=[MEMORY])
        done = lorikeet("adapters", "top", "--target", server.target)
        as_json = lorikeet("adapters", "top", "--json", "--target", server.target)
    headings, *lines = done.out.splitlines()
    assert headings.split("\t")[:4] == ["ADAPTER", "WHERE", "RUN", "WAIT"]
    assert lines[0].split("\t") == ["alice +1", "pool", "3", "2", "40", "", "75 %", "1.25", "0.00", "0.00"]
    base = lines[1].split("\t")
    assert (base[:2], base[6]) == (["(base)", ""], "-")
    assert lines[3] == "memory:  5 adapters, 1.0 MiB of 4.0 MiB; hits 25 %, 3 loads, 2 evictions"
    assert json.loads(as_json.out)["adapters"][0]["names"] == ["alice", "alice-old"]


def test_rates_are_differences() -> None:
    later = pb.AdapterUsage()
    later.CopyFrom(BUSY)
    later.generated_tokens += 100
    before = pb.GetAdapterStatisticsResponse(adapters=[BUSY])
    (row,) = rows(pb.GetAdapterStatisticsResponse(adapters=[later]), before, 2.0)
    assert row[5] == "50"


def test_a_digest_without_a_name_shows_itself() -> None:
    usage = pb.AdapterUsage(digest=DIGEST)
    (row,) = rows(pb.GetAdapterStatisticsResponse(adapters=[usage]), None, 1.0)
    assert row[:2] == (f"b3:{DIGEST[:12]}", "disk")
