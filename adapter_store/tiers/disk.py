"""The disk tier: adapters by digest. What has its final name is whole, whenever the store is killed.

    data_dir/incoming/   being written, or on its way out; emptied at start
    data_dir/objects/<digest>/   an adapter as it was loaded: adapter_config.json and safetensors files

An object is the truth and is synced before it gets its name. Packs are made from it; they are not kept here.
"""

import fcntl
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapter_store.tiers.files import disk_errors, sync_file
from rpc.digests import is_digest
from rpc.errors import resource_exhausted

log = logging.getLogger(__name__)

# Of a path, where no later try helps, as room on a full disk does.
_NEVER_WRITABLE = (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError)


@dataclass(frozen=True, kw_only=True)
class DiskStatistics:
    """Objects and their bytes; folders that are being written or deleted. A capacity of 0 is no quota."""

    objects: int
    used_bytes: int
    capacity_bytes: int
    incoming: int


def open_disk(data_dir: Path, *, quota_bytes: int) -> "DiskTier":
    """Makes the folder where it is not there.

    Raises:
        ValueError: another store uses it, or somebody else; or it is no place for a folder.
        OSError: it cannot be written to now. All say what to do.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_is_ours(data_dir)
        return DiskTier(data_dir, quota_bytes=quota_bytes)
    except BlockingIOError as error:
        raise ValueError(f"another store uses {data_dir}: stop it, or choose another --data-dir") from error
    except OSError as error:
        kind = ValueError if isinstance(error, _NEVER_WRITABLE) else OSError
        raise kind(
            f"adapters cannot be kept in {data_dir} ({error.strerror}: {error.filename}): make room, let "
            "this user write to it, or choose another --data-dir"
        ) from error


def _check_is_ours(data_dir: Path) -> None:
    # What is in these folders and not in the catalog is deleted at start.
    if any((data_dir / name).exists() for name in ("lock", "catalog.sqlite3")):
        return
    for name in ("incoming", "objects", "packs"):
        folder = data_dir / name
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"{data_dir} is no store's folder, and has files in {name} that one would delete: choose a "
                "folder of its own with --data-dir"
            )


class DiskTier:
    """Names, writes and removes the files of one data folder.

    Safe to use from several threads for different digests; who may remove a digest is decided elsewhere.

    Args:
        quota_bytes: most bytes of all objects; 0 leaves it to the disk.

    Raises:
        BlockingIOError: another store uses this data folder.
    """

    def __init__(self, data_dir: Path, *, quota_bytes: int = 0) -> None:
        self._data_dir = data_dir
        self._incoming = data_dir / "incoming"
        self._objects = data_dir / "objects"
        for folder in (self._incoming, self._objects):
            folder.mkdir(parents=True, exist_ok=True)
        self._quota = quota_bytes
        self._mutex = threading.Lock()
        self._moving: set[Path] = set()
        self._lock = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise
        self._sizes = _Sizes()
        for path in self._objects.iterdir():
            if path.is_dir():
                self._sizes.put(path.name, folder_bytes(path))

    def close(self) -> None:
        os.close(self._lock)

    def sweep(self, digests: Collection[str]) -> list[str]:
        """At start: removes leftovers and whatever belongs to none of these digests.

        Returns the digests of these whose object is missing.
        """
        for folder in (self._incoming, self._objects):
            for path in folder.iterdir():
                if folder == self._incoming or path.name not in digests:
                    _delete(path)
                    self._sizes.drop(path.name)
        # Earlier releases kept packs, too.
        shutil.rmtree(self._data_dir / "packs", ignore_errors=True)
        return sorted(digest for digest in digests if not self.object_path(digest).is_dir())

    def object_path(self, digest: str) -> Path:
        assert is_digest(digest)
        return self._objects / digest

    def stage(self) -> Path:
        """A new empty folder to write an object into, ours alone."""
        with disk_errors(), self._new_incoming() as folder:
            folder.mkdir()
        return folder

    def discard(self, path: Path) -> None:
        """Deletes what `stage` or `set_aside` returned; what cannot go now counts until the next start
        does it."""
        try:
            _delete(path)
        except OSError as error:
            # Not raised: it is the end of something whose own outcome is what matters.
            log.warning("left to the next start, as it cannot be deleted now: %s", error)
            return
        with self._mutex:
            self._moving.discard(path)

    def bytes_of(self, digest: str) -> int:
        """A probe: of an object; 0 when it is not there."""
        with self._mutex:
            return self._sizes.of.get(digest, 0)

    def missing_bytes(self, staged: Path, digest: str) -> int:
        """A probe: by how much a staged object would exceed the quota."""
        if not self._quota:
            return 0
        size = folder_bytes(staged)
        with self._mutex:
            return 0 if digest in self._sizes.of else max(0, self._sizes.total + size - self._quota)

    def commit_object(self, staged: Path, digest: str) -> bool:
        """Gives a staged object its name, durably. False where the same content is there already, perhaps in
        other files.

        Raises:
            LorikeetError: RESOURCE_EXHAUSTED when the disk or the quota is full.
        """
        target = self.object_path(digest)
        if target.is_dir():
            self.discard(staged)
            return False
        size = folder_bytes(staged)
        self._take(digest, size)
        try:
            with disk_errors():
                for path in [*staged.iterdir(), staged]:
                    sync_file(path)
                staged.rename(target)
                sync_file(self._objects)
        except BaseException:
            # It may have its name already, and that is not durable.
            with suppress(OSError):
                target.rename(staged)
            with self._mutex:
                self._sizes.drop(digest)
            raise
        with self._mutex:
            self._moving.discard(staged)
        return True

    def set_aside(self, digest: str) -> Path:
        """Takes an object out of the tier, at once; `discard` of the result frees the bytes."""
        # First: once its name is free, a load may give it to the same content, which counts.
        with self._mutex:
            size = self._sizes.drop(digest)
        try:
            # It may be lost, or somebody else was faster.
            with self._new_incoming() as trash, suppress(FileNotFoundError):
                # Nothing is made anew: on a full disk that could fail.
                self.object_path(digest).rename(trash)
        except OSError:
            with self._mutex:
                self._sizes.put(digest, size)
            raise
        return trash

    def statistics(self) -> DiskStatistics:
        """Counts; looks at no folder."""
        with self._mutex:
            return DiskStatistics(
                objects=len(self._sizes.of),
                used_bytes=self._sizes.total,
                capacity_bytes=self._quota,
                incoming=len(self._moving),
            )

    def _take(self, digest: str, size: int) -> None:
        with self._mutex:
            used = self._sizes.total
            if self._quota and used + size > self._quota:
                raise resource_exhausted(
                    "DISK_QUOTA",
                    f"the adapter takes {size} bytes on the store's disk, and {used} of {self._quota} are "
                    "taken: unload adapters, or start the store with a larger disk_bytes",
                )
            self._sizes.put(digest, size)

    @contextmanager
    def _new_incoming(self) -> Iterator[Path]:
        """A name for a folder, which counts until it is discarded; not where the block fails to make one."""
        folder = self._incoming / uuid.uuid4().hex
        with self._mutex:
            self._moving.add(folder)
        try:
            yield folder
        except OSError:
            with self._mutex:
                self._moving.discard(folder)
            raise


class _Sizes:
    """Bytes of each object, by digest, and of all. Whoever calls holds the tier's lock."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self.total = 0

    def put(self, digest: str, size: int) -> None:
        self.drop(digest)
        self.of[digest] = size
        self.total += size

    def drop(self, digest: str) -> int:
        """Returns what it had, 0 where it was not there."""
        size = self.of.pop(digest, 0)
        self.total -= size
        return size


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        # A folder of files, as all of ours are: at a fifth of rmtree's cost.
        for name in os.listdir(path):
            os.unlink(path / name)
        os.rmdir(path)
    except OSError:
        shutil.rmtree(path)
