import os
import random
import shutil
from collections import Counter

import pytest

from adapter_store.tiers.arena import Arena, ArenaPack
from adapter_store.tiers.arena_file import ArenaError, ArenaFile
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError

SIZE = 1 << 20
MANIFEST = layout_pb2.PackManifest()


def key(number: int, layout: int = 0) -> PackKey:
    return PackKey(layout=f"{layout:064x}", digest=f"{number:064x}")


def put(arena: Arena, number: int, size: int = 1000) -> ArenaPack:
    pack = arena.begin(key(number), size)
    assert pack is not None
    with arena.view(pack) as view:
        view[:] = bytes([number % 251]) * size
    arena.publish(pack, MANIFEST)
    return pack


@pytest.fixture
def file(tmp_path):
    file = ArenaFile.open(tmp_path, SIZE)
    yield file
    file.close()


def reader(file: ArenaFile, offset: int) -> int:
    """The generation as an executor reads it, through the file."""
    data = file.path.read_bytes()
    assert data[offset : offset + 8] == b"LRKTPACK"
    return int.from_bytes(data[offset + 8 : offset + 16], "little")


def test_the_header_tells_a_reader_what_happens(file):
    arena = Arena(file)
    pack = arena.begin(key(1), 1000)
    assert pack is not None
    assert pack.header_offset % 128 == 0
    assert pack.pack_offset == pack.header_offset + 128
    assert pack.generation % 2 == 0
    assert reader(file, pack.header_offset) == pack.generation - 1
    arena.publish(pack, MANIFEST)
    assert reader(file, pack.header_offset) == pack.generation
    arena.drop(pack.key)
    assert reader(file, pack.header_offset) == pack.generation + 1
    again = put(arena, 1)
    assert again.header_offset == pack.header_offset
    assert again.generation > pack.generation
    assert file.path.stat().st_size == SIZE


def test_a_leased_pack_stays_and_is_freed_with_its_last_lease(file):
    arena = Arena(file)
    pack = put(arena, 1)
    arena.lease(pack)
    arena.lease(pack)
    arena.drop(pack.key)
    assert arena.find(key(1)) is None
    assert reader(file, pack.header_offset) == pack.generation
    again = put(arena, 1)
    assert again.header_offset != pack.header_offset
    arena.release(pack)
    arena.check_integrity()
    assert arena.statistics().packs == 2
    arena.release(pack)
    assert arena.statistics().packs == 1
    assert reader(file, pack.header_offset) == pack.generation + 1
    with pytest.raises(AssertionError):
        arena.release(pack)


def test_the_least_recently_used_pack_leaves_first(file):
    arena = Arena(file)
    size = arena.statistics().capacity_bytes // 512 * 128 - 128
    packs = [put(arena, number, size) for number in range(4)]
    arena.lease(packs[0])
    arena.release(packs[0])
    put(arena, 4, size)
    assert [arena.find(key(number)) is not None for number in range(5)] == [True, False, True, True, True]
    assert arena.statistics().evictions == 1


def test_leased_packs_are_never_evicted(file):
    arena = Arena(file)
    size = arena.statistics().capacity_bytes // 512 * 128 - 128
    packs = [put(arena, number, size) for number in range(4)]
    for pack in packs:
        arena.lease(pack)
    assert arena.begin(key(9), size) is None
    arena.release(packs[2])
    assert put(arena, 9, size).header_offset == packs[2].header_offset


def test_nothing_is_evicted_in_vain(file):
    arena = Arena(file)
    size = arena.statistics().capacity_bytes // 512 * 128 - 128
    packs = [put(arena, number, size) for number in range(4)]
    arena.lease(packs[1])
    assert arena.begin(key(9), 3 * size) is None
    assert arena.statistics().packs == 4
    assert arena.begin(key(9), 2 * size) is not None


def test_a_pack_larger_than_the_arena_is_refused(file):
    with pytest.raises(LorikeetError) as caught:
        Arena(file).begin(key(1), SIZE)
    assert (caught.value.code.name, caught.value.reason) == ("FAILED_PRECONDITION", "ARENA_TOO_SMALL")
    assert "larger arena_bytes" in caught.value.message


def test_packs_outlive_the_store(tmp_path):
    file = ArenaFile.open(tmp_path, SIZE)
    arena = Arena(file)
    kept, leased, dropped = (put(arena, number, 3000) for number in (1, 2, 3))
    arena.lease(leased)
    arena.drop(dropped.key)
    writing = arena.begin(key(4), 500)
    assert writing is not None
    name = file.path
    file.close()

    file = ArenaFile.open(tmp_path, SIZE)
    assert file.path == name
    arena = Arena(file)
    arena.check_integrity()
    assert {pack.key for pack in arena.packs} == {key(1), key(2)}
    found = arena.find(key(1))
    assert found is not None
    assert (found.header_offset, found.generation) == (kept.header_offset, kept.generation)
    assert found.manifest is None
    with arena.view(found) as view:
        assert bytes(view) == bytes([1]) * 3000
    # What an executor may still be reading stays, until it is claimed and released or the grace ends.
    arena.drop(key(2))
    assert arena.statistics().unclaimed == 1
    assert reader(file, leased.header_offset) == leased.generation
    arena.end_grace()
    assert arena.statistics().packs == 1
    assert put(arena, 7).generation > writing.generation
    file.close()


def test_leases_are_claimed_after_a_restart(tmp_path):
    file = ArenaFile.open(tmp_path, SIZE)
    arena = Arena(file)
    pack = put(arena, 1)
    arena.lease(pack)
    file.close()
    file = ArenaFile.open(tmp_path, SIZE)
    arena = Arena(file)
    assert arena.claim(key(1), pack.header_offset, pack.generation + 2) is None
    assert arena.claim(key(2), pack.header_offset, pack.generation) is None
    claimed = arena.claim(key(1), pack.header_offset, pack.generation)
    assert claimed is not None
    assert (claimed.leases, claimed.unclaimed) == (1, 0)
    arena.end_grace()
    assert claimed.is_held
    arena.release(claimed)
    arena.check_integrity()
    file.close()


def test_another_size_makes_a_new_file_under_a_new_name(tmp_path):
    first = ArenaFile.open(tmp_path, SIZE)
    put(Arena(first), 1)
    first.close()
    second = ArenaFile.open(tmp_path, 2 * SIZE)
    assert second.path != first.path
    assert [path.name for path in tmp_path.glob("arena-*")] == [second.path.name]
    assert Arena(second).packs == []
    second.close()


def test_a_damaged_index_is_not_believed(tmp_path):
    file = ArenaFile.open(tmp_path, SIZE)
    arena = Arena(file)
    for number in range(20):
        put(arena, number)
    file.close()
    generator = random.Random(0)
    clean = file.path.read_bytes()
    survivors = Counter()
    for _ in range(200):
        data = bytearray(clean)
        for _ in range(20):
            data[generator.randrange(128, 64 * 128 + 3000)] = generator.randrange(256)
        file.path.write_bytes(data)
        reopened = ArenaFile.open(tmp_path, SIZE)
        again = Arena(reopened)
        again.check_integrity()
        survivors[len(again.packs)] += 1
        reopened.close()
    assert min(survivors) < 20


def test_one_store_at_a_time(tmp_path):
    file = ArenaFile.open(tmp_path, SIZE)
    with pytest.raises(ArenaError, match="another store uses the arena"):
        ArenaFile.open(tmp_path, SIZE)
    file.close()


def test_a_folder_that_somebody_else_put_there_is_not_used(tmp_path):
    shared = tmp_path / "shm"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "theirs").mkdir()
    (shared / "arena").symlink_to(tmp_path / "theirs")
    with pytest.raises(ArenaError, match="is a link or belongs to another user"):
        ArenaFile.open(shared / "arena", SIZE)
    (shared / "arena").unlink()
    ArenaFile.open(shared / "arena", SIZE).close()
    assert (shared / "arena").stat().st_mode & 0o077 == 0


def test_a_small_file_system_is_refused_with_advice(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 << 20))
    with pytest.raises(ArenaError, match=r"67108864 left: choose a smaller arena_bytes.*--shm-size"):
        ArenaFile.open(tmp_path, 65 << 20)
    assert list(tmp_path.glob("arena-*")) == []


@pytest.mark.skipif(
    os.getuid() != 0 and not os.path.isdir("/proc"), reason="needs a folder that cannot be made"
)
def test_a_folder_that_cannot_be_made_is_said():
    from pathlib import Path

    with pytest.raises(ArenaError, match="choose another with arena_dir"):
        ArenaFile.open(Path("/proc/lorikeet-arena"), SIZE)


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_never_moves_a_leased_pack(tmp_path, seed):
    generator = random.Random(seed)
    file = ArenaFile.open(tmp_path, SIZE)
    arena = Arena(file)
    held: list[ArenaPack] = []
    writing: list[ArenaPack] = []
    full = restarts = 0
    for step in range(1_500):
        number = generator.randrange(60)
        found = arena.find(key(number))
        choice = generator.random()
        if choice < 0.35 and found is None:
            pack = arena.begin(key(number), generator.randint(16, 400_000))
            full += pack is None
            if pack is not None:
                writing.append(pack)
        elif choice < 0.6 and writing:
            pack = writing.pop(generator.randrange(len(writing)))
            if generator.random() < 0.1:
                arena.abandon(pack)
            else:
                with arena.view(pack) as view:
                    view[:16] = pack.generation.to_bytes(16, "little")
                arena.publish(pack, MANIFEST)
        elif choice < 0.75 and found is not None and found.manifest is not None:
            arena.lease(found)
            held.append(found)
        elif choice < 0.9 and held:
            arena.release(held.pop(generator.randrange(len(held))))
        elif choice < 0.97 and found is not None and found not in writing:
            arena.drop(key(number))
        elif choice > 0.995 and step < 1_400:
            # Killed: what was being written is lost, what was leased stays until it is claimed.
            file.close()
            file = ArenaFile.open(tmp_path, SIZE)
            arena = Arena(file)
            claims = [arena.claim(p.key, p.header_offset, p.generation) for p in held]
            assert None not in claims
            held, writing = [pack for pack in claims if pack], []
            arena.end_grace()
            for pack in arena.packs:
                arena.mark_verified(pack, MANIFEST)
            restarts += 1
        arena.check_integrity()
        for pack in held:
            with arena.view(pack) as view:
                assert int.from_bytes(view[:16], "little") == pack.generation
            assert reader_quick(file, pack) == pack.generation
    assert full > 5
    assert restarts > 0
    for pack in held:
        arena.release(pack)
    for pack in writing:
        arena.abandon(pack)
    for pack in arena.packs:
        arena.drop(pack.key)
    assert arena.statistics().used_bytes == 0
    arena.check_integrity()
    file.close()


def reader_quick(file: ArenaFile, pack: ArenaPack) -> int | None:
    return file.generation_at(pack.header_offset)
