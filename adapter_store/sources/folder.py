"""Adapters in folders under the configured roots, with the files that PEFT saved."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_store.formats.prompt_files import PROMPT_FILES
from adapter_store.formats.safetensors_files import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, header_bytes
from adapter_store.packs.reading import read_config
from adapter_store.sources.files import (
    MAX_SMALL_BYTES,
    by_steps,
    check_config,
    check_size,
    prompt_notes,
    weight_files,
)
from adapter_store.tiers.files import copy_bytes, disk_errors
from rpc.errors import LorikeetError, aborted, invalid_argument, not_found, permission_denied, unavailable

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening a pipe would wait for its writer.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Of the machine or of a file system's server, whatever is asked for: it may work later.
_MAY_PASS = frozenset(
    (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN)
)

# From here on it pays to read headers on a thread of their own meanwhile.
_LARGE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """An adapter folder outside the store: name and real path of each file; all lie under roots."""

    files: tuple[tuple[str, Path], ...]
    roots: tuple[Path, ...]
    notes: tuple[str, ...]


class FolderReader:
    """A folder as a `SourceReader`."""

    is_remote = False

    def __init__(self, source: str, roots: Sequence[Path]) -> None:
        self.source = source
        self._roots = roots

    @property
    def place(self) -> str:
        """See `OutsideReader.place`: its root, as far as its name says that."""
        if os.path.isabs(self.source):
            path = Path(os.path.abspath(self.source))
            roots = [root for root in self._roots if path.is_relative_to(root)]
        else:
            roots = self._roots if len(self._roots) == 1 else ()
        # Roots may lie in each other.
        return str(min(roots, key=lambda root: len(root.parts))) if roots else "the store's roots"

    def is_there(self) -> bool:
        """Whether there is an adapter; its files are not looked into. Blocks. Raises as `copy`."""
        return CONFIG_NAME in _list(self.source, _find_folder(self.source, self._roots), self._roots)

    def copy(
        self,
        staged: Path,
        max_bytes: int,
        progress: Callable[[int, int], None],
        headers_there: Callable[[], object] = lambda: None,
    ) -> tuple[str, ...]:
        """See `SourceReader.copy`."""
        found = resolve_source(self.source, self._roots)
        copy_source(found, staged, max_bytes, progress, headers_there)
        return found.notes


def resolve_source(source: str, roots: Sequence[Path]) -> AdapterSource:
    """Finds the files of an adapter.

    Args:
        source: a folder, absolute or below one of the roots. Links are followed as long as they stay below
            roots.
        roots: the only folders that anything is read from.

    Raises:
        LorikeetError: INVALID_ARGUMENT, PERMISSION_DENIED or NOT_FOUND, saying what to do.
    """
    if not roots:
        raise permission_denied(
            "NO_ROOTS",
            "the store has no folders that adapters may be loaded from: start it with roots "
            "(lorikeet serve --adapter-root, lorikeet store --roots)",
        )
    folder = _find_folder(source, roots)
    names = _list(source, folder, roots)
    check_config(source, names)
    weights = weight_files(
        source, names, lambda: _read_small(_real_file(folder / INDEX_NAME, source, roots), roots)
    )
    prompts = [name for name in PROMPT_FILES if name in names]
    files = tuple(
        (name, _real_file(folder / name, source, roots)) for name in (CONFIG_NAME, *prompts, *weights)
    )
    return AdapterSource(files=files, roots=tuple(roots), notes=prompt_notes(names))


def copy_source(
    source: AdapterSource,
    target: Path,
    max_bytes: int,
    progress: Callable[[int, int], None],
    headers_there: Callable[[], object] = lambda: None,
) -> None:
    """Copies an adapter's files into a folder of ours, the weights last.

    Args:
        headers_there: called where one large file has all weights, once its header is there.

    Raises:
        LorikeetError: INVALID_ARGUMENT when it is too large, that and UNIMPLEMENTED for a large one whose
            config is refused, ABORTED when it changes meanwhile, RESOURCE_EXHAUSTED when the disk is full.
    """
    opened: list[tuple[str, int, os.stat_result]] = []
    try:
        for name, path in source.files:
            opened.append((name, *_open_regular(path, source.roots)))
        total = sum(status.st_size for _, _, status in opened)
        check_size(total, max_bytes)
        advance = by_steps(progress, total)
        for name, descriptor, status in opened:
            with disk_errors(), (target / name).open("wb", buffering=0) as file:
                rest = status.st_size
                if name == SINGLE_NAME and rest >= _LARGE_BYTES:
                    os.ftruncate(file.fileno(), rest)
                    rest -= copy_bytes(descriptor, file.fileno(), header_bytes(descriptor), advance)
                    headers_there()
                copy_bytes(descriptor, file.fileno(), rest, advance)
            if name == CONFIG_NAME and total >= _LARGE_BYTES:
                read_config(target / name)
        # All of them, at the end: one version's config must not come with another's weights.
        _check_unchanged(source, opened)
    except Exception:
        # Half of one version and half of another may be refused for anything.
        _check_unchanged(source, opened)
        raise
    finally:
        for _, descriptor, _ in opened:
            os.close(descriptor)


def _check_unchanged(source: AdapterSource, opened: Sequence[tuple[str, int, os.stat_result]]) -> None:
    for (name, _, status), (_, path) in zip(opened, source.files, strict=False):
        if not _is_unchanged(path, status):
            raise aborted("SOURCE_CHANGED", f"{name} changed while it was copied: load it again")


def _is_unchanged(path: Path, before: os.stat_result) -> bool:
    try:
        now = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return all(
        getattr(now, field) == getattr(before, field)
        for field in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


def _find_folder(source: str, roots: Sequence[Path]) -> Path:
    candidates = [Path(source)] if os.path.isabs(source) else [root / source for root in roots]
    allowed = [real for real in map(_real, candidates) if _is_below(real, roots)]
    if not allowed:
        # Said alike whether it exists or not: what lies outside the roots is nobody's business.
        listed = ", ".join(str(root) for root in roots)
        raise permission_denied(
            "OUTSIDE_ROOTS",
            f"{source} is not below a root of the store ({listed}): move it there, or start the server with "
            "one more root (lorikeet serve --adapter-root, lorikeet store --roots)",
        )
    for folder in allowed:
        # Not Path.is_dir, which raises where a part of the path is too long to exist.
        if os.path.isdir(folder):
            return folder
    raise not_found("NO_SOURCE", f"{source}: there is no such folder")


def _real_file(path: Path, source: str, roots: Sequence[Path]) -> Path:
    real = _real(path)
    if not _is_below(real, roots):
        raise permission_denied("OUTSIDE_ROOTS", f"{source}: {path.name} is a link out of the store's roots")
    if not os.path.exists(real):
        raise not_found("NO_FILE", f"{source}: {path.name} is missing")
    return real


def _read_small(path: Path, roots: Sequence[Path]) -> bytes:
    descriptor, status = _open_regular(path, roots)
    with open(descriptor, "rb") as file:
        if status.st_size > MAX_SMALL_BYTES:
            raise invalid_argument("BAD_FILE", f"{path.name} is larger than {MAX_SMALL_BYTES} bytes")
        return file.read(MAX_SMALL_BYTES)


def _open_regular(path: Path, roots: Sequence[Path]) -> tuple[int, os.stat_result]:
    try:
        descriptor = open_below(path, roots, _OPEN_FILE)
    except PermissionError as error:
        raise permission_denied("UNREADABLE", f"{path.name}: the store may not read it") from error
    except OSError as error:
        if error.errno in _MAY_PASS:
            raise _away(path.name, error) from error
        raise _not_regular(path) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor, status


def open_below(path: Path, roots: Sequence[Path], flags: int) -> int:
    """Opens a resolved path below a root, step by step and through no link.

    A part of it may have been swapped for a link since it was resolved; then OSError is raised.
    """
    real_root = next(real for real in map(_real, roots) if path.is_relative_to(real))
    descriptor = os.open(real_root, _OPEN_FOLDER)
    parts = path.relative_to(real_root).parts
    for number, part in enumerate(parts, start=1):
        try:
            following = os.open(part, flags if number == len(parts) else _OPEN_FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = following
    return descriptor


def _list(source: str, folder: Path, roots: Sequence[Path]) -> list[str]:
    try:
        descriptor = open_below(folder, roots, _OPEN_FOLDER)
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _MAY_PASS:
            raise _away(source, error) from error
        raise permission_denied(
            "UNREADABLE", f"{source}: the store cannot list it ({error.strerror})"
        ) from error


def _away(what: str, error: OSError) -> LorikeetError:
    return unavailable(
        "SOURCE_UNAVAILABLE",
        f"{what} cannot be read now ({error.strerror}): load it again; if that lasts, see to its file system "
        "and to the limits of the store's process",
    )


def _not_regular(path: Path) -> LorikeetError:
    return invalid_argument("BAD_FILE", f"{path.name} is not a regular file")


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise invalid_argument("BAD_SOURCE", f"{path.name} cannot be resolved: {error.strerror}") from error


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)
