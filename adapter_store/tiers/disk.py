"""The disk tier: adapters and packs by digest. What has its final name is whole, whenever the store is
killed.

    data_dir/incoming/   being written, or on its way out; emptied at start
    data_dir/objects/<digest>/   an adapter as it was loaded: adapter_config.json and safetensors files
    data_dir/packs/<layout digest>/<digest>.pack and .manifest

An object is the truth and is synced before it gets its name. A pack can be made again from its object, so it
carries a checksum instead of being synced.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from adapter_store.tiers.files import disk_errors, sync_file
from adapter_store.tiers.key import PackKey
from lorikeet.v1 import layout_pb2
from rpc.digests import is_digest

_CHECKSUM_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class StoredPack:
    """A pack on disk: its file, where its tensors lie, and the BLAKE3 (hex) that its bytes must have."""

    path: Path
    manifest: layout_pb2.PackManifest
    checksum: str


@dataclass(frozen=True, kw_only=True)
class DiskStatistics:
    objects: int
    packs: int
    incoming: int


class DiskTier:
    """Names, writes and removes the files of one data folder.

    Safe to use from several threads for different digests; who may remove a digest is decided elsewhere.

    Raises:
        BlockingIOError: another store uses this data folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._incoming = data_dir / "incoming"
        self._objects = data_dir / "objects"
        self._packs = data_dir / "packs"
        for folder in (self._incoming, self._objects, self._packs):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise

    def close(self) -> None:
        os.close(self._lock)

    def sweep(self, digests: Collection[str], layouts: Collection[str]) -> list[str]:
        """At start: removes leftovers and whatever belongs to no digest or layout of these.

        Returns the digests of these whose object is missing.
        """
        for folder in (self._incoming, self._objects, self._packs):
            for path in folder.iterdir():
                keep = digests if folder == self._objects else layouts if folder == self._packs else ()
                if path.name not in keep:
                    _delete(path)
        for path in self._packs.glob("*/*"):
            if path.stem not in digests or path.suffix not in (".pack", ".manifest"):
                _delete(path)
        return sorted(digest for digest in digests if not self.object_path(digest).is_dir())

    def object_path(self, digest: str) -> Path:
        assert is_digest(digest)
        return self._objects / digest

    def stage(self) -> Path:
        """A new empty folder to write an object into, ours alone."""
        folder = self._incoming / uuid.uuid4().hex
        with disk_errors(self._incoming):
            folder.mkdir()
        return folder

    def discard(self, path: Path) -> None:
        """Deletes what `stage` or `set_aside` returned."""
        _delete(path)

    def commit_object(self, staged: Path, digest: str) -> None:
        """Gives a staged object its name, durably. The same content may be there already."""
        target = self.object_path(digest)
        if target.is_dir():
            _delete(staged)
            return
        with disk_errors(self._objects):
            for path in [*staged.iterdir(), staged]:
                sync_file(path)
            staged.rename(target)
            sync_file(self._objects)

    def find_pack(self, key: PackKey) -> StoredPack | None:
        """A pack with a sound manifest and the right size, its bytes unread; None when it must be made."""
        manifest_path, pack_path = self._pack_paths(key)
        try:
            data = manifest_path.read_bytes()
            size = pack_path.stat().st_size
            manifest = layout_pb2.PackManifest.FromString(data[_CHECKSUM_BYTES:])
        except (FileNotFoundError, DecodeError):
            return None
        if (manifest.digest, manifest.layout_digest) != (key.digest, key.layout):
            return None
        if size != manifest.total_bytes:
            return None
        return StoredPack(path=pack_path, manifest=manifest, checksum=data[:_CHECKSUM_BYTES].hex())

    def write_pack(self, manifest: layout_pb2.PackManifest, write: Callable[[BinaryIO], str]) -> StoredPack:
        """Stores a pack: `write` gets a file to write its bytes to and returns their BLAKE3 (hex)."""
        key = PackKey(layout=manifest.layout_digest, digest=manifest.digest)
        manifest_path, pack_path = self._pack_paths(key)
        scratch = self._incoming / uuid.uuid4().hex
        with disk_errors(self._packs):
            try:
                pack_path.parent.mkdir(exist_ok=True)
                with scratch.open("wb") as file:
                    checksum = write(file)
                # A manifest stands for a whole pack: it goes first and comes last.
                manifest_path.unlink(missing_ok=True)
                scratch.rename(pack_path)
                scratch.write_bytes(bytes.fromhex(checksum) + manifest.SerializeToString())
                scratch.rename(manifest_path)
            finally:
                scratch.unlink(missing_ok=True)
        return StoredPack(path=pack_path, manifest=manifest, checksum=checksum)

    def forget_pack(self, key: PackKey) -> None:
        """Removes a pack that proved to be damaged."""
        for path in self._pack_paths(key):
            path.unlink(missing_ok=True)

    def set_aside(self, digest: str) -> Path:
        """Takes an object and its packs out of the tier, at once; `discard` of the result frees the bytes."""
        trash = self._incoming / uuid.uuid4().hex
        trash.mkdir()
        packs = [path for suffix in ("manifest", "pack") for path in self._packs.glob(f"*/{digest}.{suffix}")]
        for number, path in enumerate([*packs, self.object_path(digest)]):
            if path.exists():
                path.rename(trash / str(number))
        return trash

    def statistics(self) -> DiskStatistics:
        """Counts what lies there; lists folders, so not for every request."""
        return DiskStatistics(
            objects=sum(1 for _ in self._objects.iterdir()),
            packs=sum(1 for _ in self._packs.glob("*/*.pack")),
            incoming=sum(1 for _ in self._incoming.iterdir()),
        )

    def _pack_paths(self, key: PackKey) -> tuple[Path, Path]:
        assert is_digest(key.digest)
        assert is_digest(key.layout)
        folder = self._packs / key.layout
        return folder / f"{key.digest}.manifest", folder / f"{key.digest}.pack"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
