"""Reading somebody else's memory: headers, bounds, generations."""

import struct
from pathlib import Path

import pytest

from executor.adapters.arena_view import ArenaView, StalePackError


def arena(folder: Path, generation: int, magic: bytes = b"LRKTPACK") -> Path:
    path = folder / "arena"
    path.write_bytes(struct.pack("<8sQ112x", magic, generation) + b"w" * 128 + bytes(256))
    return path


def test_a_pack_is_seen_without_a_copy(tmp_path: Path) -> None:
    path = arena(tmp_path, 4)
    view = ArenaView(path, 512)
    view.check(0, 4)
    pack = view.pack(128, 128)
    assert pack.tobytes() == b"w" * 128
    assert not pack.flags.writeable
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<Q", 5))
        file.seek(128)
        file.write(b"x")
    assert pack[0] == ord("x")
    with pytest.raises(StalePackError):
        view.check(0, 4)


@pytest.mark.parametrize(
    ("generation", "magic", "granted"), [(4, b"LRKTPACK", 6), (5, b"LRKTPACK", 5), (4, b"SOMETHNG", 4)]
)
def test_another_content_is_stale(tmp_path: Path, generation: int, magic: bytes, granted: int) -> None:
    view = ArenaView(arena(tmp_path, generation, magic), 512)
    with pytest.raises(StalePackError):
        view.check(0, granted)


@pytest.mark.parametrize("offset", [-128, 448, 1 << 60])
def test_a_header_outside_is_stale(tmp_path: Path, offset: int) -> None:
    with pytest.raises(StalePackError):
        ArenaView(arena(tmp_path, 4), 512).check(offset, 4)


@pytest.mark.parametrize(("offset", "size"), [(0, 128), (128, 385), (1 << 60, 128), (128, -1)])
def test_a_pack_outside_is_stale(tmp_path: Path, offset: int, size: int) -> None:
    with pytest.raises(StalePackError):
        ArenaView(arena(tmp_path, 4), 512).pack(offset, size)


def test_a_file_shorter_than_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="512 bytes where the store announced 1024"):
        ArenaView(arena(tmp_path, 4), 1024)
    with pytest.raises(OSError, match="arena"):
        ArenaView(tmp_path / "elsewhere" / "arena", 512)
