"""Any pack that is no larger than what is neither leased nor pinned gets in, whatever lay where."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_store.tiers.arena import Arena
from adapter_store.tiers.arena_file import HEADER_BYTES, ArenaFile
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.pack import ArenaPack
from adapter_store.tiers.room import Range, cheapest_window, compaction
from lorikeet.v1 import layout_pb2

SIZE = 1 << 20
UNIT = 128


def key(number: int) -> PackKey:
    return PackKey(layout="0" * 64, digest=f"{number:064x}")


def taken(pack: ArenaPack) -> int:
    return -(-(HEADER_BYTES + pack.pack_bytes) // UNIT) * UNIT


def fill(arena: Arena, number: int, size: int) -> ArenaPack | None:
    pack = arena.begin(key(number), size)
    if pack is not None:
        with arena.view(pack) as view:
            view[:] = bytes([number % 251]) * size
        arena.publish(pack, layout_pb2.PackManifest())
    return pack


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=40),
    pinned=st.sets(st.integers(0, 39), max_size=6),
    wanted=st.floats(0, 1),
)
def test_whatever_is_no_larger_than_what_is_not_pinned_gets_in(sizes, pinned, wanted):
    with tempfile.TemporaryDirectory() as folder:
        file = ArenaFile.open(Path(folder), SIZE)
        try:
            arena = Arena(file)
            for number, size in enumerate(sizes):
                fill(arena, number, size)
            there = {int(pack.key.digest, 16) for pack in arena.packs} & pinned
            arena.set_pinned({key(number).digest for number in there})
            room = arena.capacity_bytes - sum(
                taken(pack) for pack in arena.packs if int(pack.key.digest, 16) in there
            )
            size = max(1, int(wanted * (room - HEADER_BYTES)))
            assert room > HEADER_BYTES
            assert fill(arena, 1000, size) is not None
            arena.check_integrity()
            for number in there:
                pack = arena.find(key(number))
                assert pack is not None, "a pinned pack was evicted"
                with arena.view(pack) as view:
                    assert bytes(view) == bytes([number % 251]) * sizes[number]
        finally:
            file.close()


def test_a_leased_pack_stays_and_its_end_makes_room(tmp_path):
    file = ArenaFile.open(tmp_path, SIZE)
    arena = Arena(file)
    third = arena.capacity_bytes // 3 // UNIT * UNIT - HEADER_BYTES
    _, middle, _ = (fill(arena, number, third) for number in range(3))
    assert middle is not None
    arena.lease(middle)
    place = middle.header_offset
    assert fill(arena, 9, 2 * third) is None
    assert len(arena.packs) == 3, "nothing was evicted in vain"
    arena.set_pinned({middle.key.digest})
    arena.release(middle)
    # Pinned, not leased: it moves, with a new generation, and a reader of the old place notices.
    generation = middle.generation
    assert fill(arena, 9, 2 * third) is not None
    assert middle.header_offset < place
    assert middle.generation > generation
    arena.check_integrity()
    file.close()


def test_the_cheapest_neighbours_go():
    def at(item: str, start: int, end: int, worth: float | None) -> Range[str]:
        return Range(item=item, start=start, end=end, worth=worth)

    ranges = [
        at("a", 0, 10, 1),
        at("b", 10, 20, 9),
        at("c", 20, 30, 2),
        at("d", 35, 45, 3),
        at("e", 45, 50, None),
    ]
    assert cheapest_window(ranges, 0, 60, 10) == ["a"]
    assert cheapest_window(ranges, 0, 60, 15) == ["c"]
    assert cheapest_window(ranges, 0, 60, 25) == ["c", "d"]
    assert cheapest_window(ranges, 0, 60, 46) is None


@pytest.mark.parametrize(("size", "moves"), [(20, [("b", 0)]), (21, None)])
def test_movable_packs_slide_down_around_what_is_held(size, moves):
    ranges = [
        Range(item="a", start=0, end=10, worth=1.0),
        Range(item="b", start=10, end=20, worth=None, is_movable=True),
        Range(item="c", start=30, end=40, worth=None),
    ]
    found = compaction(ranges, 0, 50, size)
    assert (found and [(move.item, move.start) for move in found]) == moves
