"""The arena's file: one shared mapping with an index of its own, so that a restarted store finds its packs
again.

    [superblock 128 bytes][records, 128 bytes each][room for packs: header 128 bytes, pack bytes; ...]

Only the store writes to it. Executors map it read-only and guard their copies by the generation in a pack's
header. A process that is killed leaves its stores to a shared mapping in program order, so a record is valid
once its state says so, and the state is written last.
"""

import errno
import fcntl
import mmap
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from adapter_store.tiers.key import PackKey

HEADER_BYTES = 128

_VERSION = 2
_SUPERBLOCK = struct.Struct("<8sIIQQ")
_SUPERBLOCK_MAGIC = b"LRKTAREN"
_RECORD_BYTES = 128
_RECORD = struct.Struct("<QQQ32s32s")
_CHECKSUM_BYTES = 32
_STATE_AT, _LEASES_AT, _RECORD_AT, _CHECKSUM_AT = 0, 4, 8, 96
_EMPTY, _WRITING, _STABLE = 0, 1, 2
_HEADER = struct.Struct("<8sQ")
_HEADER_MAGIC = b"LRKTPACK"
_BYTES_PER_RECORD = 16 << 10


class ArenaError(ValueError):
    """The arena cannot be made; the message says what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackRecord:
    """One pack of the arena as its index has it; `leases` are those granted when it was last written.

    `checksum` is the BLAKE3 of the pack's bytes, b"" until somebody has computed it.
    """

    slot: int
    key: PackKey
    header_offset: int
    pack_bytes: int
    generation: int
    leases: int
    checksum: bytes = b""


class ArenaFile:
    """Reads and writes the arena's bytes; decides nothing."""

    def __init__(self, path: Path, mapped: mmap.mmap, lock: int) -> None:
        self.path = path
        self.size = len(mapped)
        self._map = mapped
        self._lock = lock
        _, _, self.slots, _, self._generation = _SUPERBLOCK.unpack_from(mapped, 0)

    @classmethod
    def open(cls, folder: Path, size: int) -> Self:
        """Attaches the arena that a former store left in the folder, or makes a new one under a new name.

        Raises:
            ArenaError: the folder cannot be made, is in use by another store, or is too small.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(folder)
            lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ArenaError(
                f"cannot make the arena's folder {folder} ({error.strerror}): choose another with arena_dir, "
                "on a tmpfs such as /dev/shm"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path, mapped = _attach(folder, size) or _create(folder, size)
        except BlockingIOError as error:
            os.close(lock)
            raise ArenaError(
                f"another store uses the arena in {folder}: stop it, or choose another arena_dir"
            ) from error
        except BaseException:
            os.close(lock)
            raise
        return cls(path, mapped, lock)

    @property
    def room_start(self) -> int:
        """Where packs may begin."""
        return (1 + self.slots) * _RECORD_BYTES

    def view(self, offset: int, size: int) -> memoryview:
        """Writable bytes of the file. Release it before `close`."""
        return memoryview(self._map)[offset : offset + size]

    def take_generation(self) -> int:
        """A generation (even) that no header of this arena has ever had."""
        self._generation += 2
        _SUPERBLOCK.pack_into(
            self._map, 0, _SUPERBLOCK_MAGIC, _VERSION, self.slots, self.size, self._generation
        )
        return self._generation

    def generation_at(self, header_offset: int) -> int | None:
        """The generation in a header; None where there is no header."""
        magic, generation = _HEADER.unpack_from(self._map, header_offset)
        return generation if magic == _HEADER_MAGIC else None

    def begin_pack(self, record: PackRecord) -> None:
        """Marks a pack as being written: its header gets the odd number before its generation."""
        at = self._record_at(record.slot)
        self._set_state(record.slot, _EMPTY)
        _RECORD.pack_into(
            self._map,
            at + _RECORD_AT,
            record.generation,
            record.header_offset,
            record.pack_bytes,
            bytes.fromhex(record.key.digest),
            bytes.fromhex(record.key.layout),
        )
        self._set_checksum(record.slot, bytes(_CHECKSUM_BYTES))
        self.set_leases(record.slot, 0)
        self._set_state(record.slot, _WRITING)
        self.view(record.header_offset, HEADER_BYTES)[:] = bytes(HEADER_BYTES)
        self._set_generation(record.header_offset, record.generation - 1)

    def name_pack(self, slot: int, digest: str) -> None:
        """Says whose pack it is, while it is being written."""
        at = self._record_at(slot) + _RECORD_AT + 24
        self._map[at : at + 32] = bytes.fromhex(digest)

    def publish_pack(self, slot: int, header_offset: int, generation: int) -> None:
        """Marks a pack as stable."""
        self._set_generation(header_offset, generation)
        self._set_state(slot, _STABLE)

    def set_checksum(self, slot: int, checksum: bytes) -> None:
        """Remembers over a restart what the bytes of a stable pack must hash to."""
        assert len(checksum) == _CHECKSUM_BYTES
        self._set_checksum(slot, checksum)

    def free_pack(self, slot: int, header_offset: int, generation: int) -> None:
        """Marks a pack as gone, for its readers first."""
        self._set_generation(header_offset, generation + 1)
        self._set_state(slot, _EMPTY)

    def move(self, source: int, target: int, size: int) -> None:
        """Copies bytes within the file; the two places may overlap."""
        self._map.move(target, source, size)

    def set_leases(self, slot: int, leases: int) -> None:
        """Remembers over a restart how many holders a pack has."""
        struct.pack_into("<I", self._map, self._record_at(slot) + _LEASES_AT, leases)

    def scan(self) -> Iterator[PackRecord]:
        """The packs that a former store left whole; forgets those that it was writing or freeing."""
        whole = {record.slot: record for record in self.stable_packs()}
        for slot in range(self.slots):
            if slot in whole:
                yield whole[slot]
            elif self._state(slot) != _EMPTY:
                self._set_state(slot, _EMPTY)

    def stable_packs(self) -> Iterator[PackRecord]:
        """The packs whose record and header agree that they are whole. A probe."""
        for slot in range(self.slots):
            if self._state(slot) != _STABLE:
                continue
            at = self._record_at(slot)
            generation, offset, size, digest, layout = _RECORD.unpack_from(self._map, at + _RECORD_AT)
            inside = self.room_start <= offset <= offset + HEADER_BYTES + size <= self.size
            if inside and self.generation_at(offset) == generation:
                yield PackRecord(
                    slot=slot,
                    key=PackKey(layout=layout.hex(), digest=digest.hex()),
                    header_offset=offset,
                    pack_bytes=size,
                    generation=generation,
                    leases=struct.unpack_from("<I", self._map, at + _LEASES_AT)[0],
                    checksum=self._checksum(at),
                )

    def close(self) -> None:
        """Unmaps; the file stays for the next store."""
        self._map.close()
        os.close(self._lock)

    def _checksum(self, at: int) -> bytes:
        checksum = self._map[at + _CHECKSUM_AT : at + _CHECKSUM_AT + _CHECKSUM_BYTES]
        return checksum if any(checksum) else b""

    def _set_checksum(self, slot: int, checksum: bytes) -> None:
        at = self._record_at(slot) + _CHECKSUM_AT
        self._map[at : at + _CHECKSUM_BYTES] = checksum

    def _record_at(self, slot: int) -> int:
        return (1 + slot) * _RECORD_BYTES

    def _state(self, slot: int) -> int:
        return struct.unpack_from("<I", self._map, self._record_at(slot) + _STATE_AT)[0]

    def _set_state(self, slot: int, state: int) -> None:
        struct.pack_into("<I", self._map, self._record_at(slot) + _STATE_AT, state)

    def _set_generation(self, header_offset: int, generation: int) -> None:
        _HEADER.pack_into(self._map, header_offset, _HEADER_MAGIC, generation)


def _check_owner(folder: Path) -> None:
    # In a folder that everyone may write to, such as /dev/shm, somebody else may have been there first.
    status = folder.lstat()
    is_ours = status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
    if folder.parent.stat().st_mode & stat.S_ISVTX and not is_ours:
        raise ArenaError(f"{folder} is a link or belongs to another user: choose another arena_dir")


def _attach(folder: Path, size: int) -> tuple[Path, mmap.mmap] | None:
    """Maps the one arena of the right size, and removes whatever else a former store left."""
    found = None
    for path in sorted(folder.glob("arena-*")):
        mapped = None if found else _map_if_ours(path, size)
        if mapped is None:
            path.unlink()
        else:
            found = path, mapped
    return found


def _map_if_ours(path: Path, size: int) -> mmap.mmap | None:
    if path.suffix or path.stat().st_size != size:
        return None
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), size)
    magic, version, slots, written, _ = _SUPERBLOCK.unpack_from(mapped, 0)
    if (magic, version, slots, written) == (_SUPERBLOCK_MAGIC, _VERSION, _slots(size), size):
        return mapped
    mapped.close()
    return None


def _create(folder: Path, size: int) -> tuple[Path, mmap.mmap]:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise _too_small(folder, size, free)
    # A new name each time: an executor that still maps an older file must not take it for this one.
    path = folder / f"arena-{secrets.token_hex(4)}"
    unfinished = path.with_suffix(".new")
    with unfinished.open("w+b") as file:
        try:
            # Reserved now: a tmpfs that fills up later would end whoever writes to or reads from the map.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            unfinished.unlink()
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise _too_small(folder, size, free) from error
            raise
        mapped = mmap.mmap(file.fileno(), size)
    # Generations start at random, so that no byte of any pack is ever mistaken for the one that a holder
    # expects.
    _SUPERBLOCK.pack_into(
        mapped, 0, _SUPERBLOCK_MAGIC, _VERSION, _slots(size), size, 2 * secrets.randbits(60)
    )
    unfinished.rename(path)
    return path, mapped


def _slots(size: int) -> int:
    return max(64, size // _BYTES_PER_RECORD)


def _too_small(folder: Path, size: int, free: int) -> ArenaError:
    return ArenaError(
        f"the arena needs {size} bytes, {folder} has {free} left: choose a smaller arena_bytes, or give the "
        "file system more (a container's /dev/shm has 64 MB unless told otherwise: docker run --shm-size, or "
        "shm_size in a compose file)"
    )
