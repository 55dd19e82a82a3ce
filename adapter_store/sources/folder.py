"""Adapters in folders under the configured roots, with the files that PEFT saved."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_store.formats.safetensors_files import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, parse_index
from adapter_store.formats.strict_json import printable
from adapter_store.tiers.files import copy_bytes, disk_errors
from rpc.errors import LorikeetError, aborted, invalid_argument, not_found, permission_denied

_MAX_INDEX_BYTES = 16 << 20
# All are open at once while they are copied, and a process may have few open files.
_MAX_SHARDS = 128
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Files that a trainer may save beside an adapter and that would change how prompts are made.
_PROMPT_FILES = ("chat_template.jinja", "chat_template.json", "added_tokens.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """An adapter folder outside the store: name and real path of each file; all lie under roots."""

    files: tuple[tuple[str, Path], ...]
    notes: tuple[str, ...]


class FolderReader:
    """A folder as a `SourceReader`."""

    def __init__(self, source: str, roots: Sequence[Path]) -> None:
        self.source = source
        self._roots = roots

    def copy(self, staged: Path, max_bytes: int, progress: Callable[[int, int], None]) -> tuple[str, ...]:
        """See `SourceReader.copy`."""
        found = resolve_source(self.source, self._roots)
        copy_source(found, staged, max_bytes, progress)
        return found.notes


def resolve_source(source: str, roots: Sequence[Path]) -> AdapterSource:
    """Finds the files of an adapter.

    Args:
        source: a folder, absolute or below one of the roots. Links are followed as long as they stay below
            roots.
        roots: the only folders that anything is read from.

    Raises:
        LorikeetError: INVALID_ARGUMENT, UNIMPLEMENTED, PERMISSION_DENIED or NOT_FOUND, saying what to do.
    """
    if not roots:
        raise permission_denied(
            "NO_ROOTS",
            "the store has no folders that adapters may be loaded from: start it with roots "
            "(lorikeet serve --adapter-root, lorikeet store --roots)",
        )
    folder = _find_folder(source, roots)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise permission_denied(
            "UNREADABLE", f"{source}: the store cannot list it ({error.strerror})"
        ) from error
    if CONFIG_NAME not in names:
        raise not_found("NO_CONFIG", f"{source}: no {CONFIG_NAME} there; give the folder that PEFT saved")
    weights = _weight_files(folder, source, names, roots)
    files = tuple((name, _real_file(folder / name, source, roots)) for name in (CONFIG_NAME, *weights))
    notes = tuple(
        f"{name} of the adapter's folder is not used: prompts are made by the base's tokenizer and template"
        for name in _PROMPT_FILES
        if name in names
    )
    return AdapterSource(files=files, notes=notes)


def copy_source(
    source: AdapterSource, target: Path, max_bytes: int, progress: Callable[[int, int], None]
) -> None:
    """Copies an adapter's files into a folder of ours.

    Raises:
        LorikeetError: INVALID_ARGUMENT when it is too large, ABORTED when it changes meanwhile,
            RESOURCE_EXHAUSTED when the disk is full.
    """
    opened: list[tuple[str, int, int]] = []
    try:
        for name, path in source.files:
            opened.append((name, *_open_regular(path)))
        total = sum(size for _, _, size in opened)
        if total > max_bytes:
            raise invalid_argument(
                "ADAPTER_TOO_LARGE",
                f"the adapter's files have {total} bytes; the store takes up to {max_bytes}",
            )
        done = 0

        def advance(step: int) -> None:
            nonlocal done
            done += step
            progress(done, total)

        for name, descriptor, size in opened:
            with disk_errors(target), (target / name).open("wb", buffering=0) as file:
                copied = copy_bytes(descriptor, file.fileno(), size, advance)
            if copied != size or os.fstat(descriptor).st_size != size:
                raise aborted("SOURCE_CHANGED", f"{name} changed while it was copied: load it again")
    finally:
        for _, descriptor, _ in opened:
            os.close(descriptor)


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


def _weight_files(folder: Path, source: str, names: Sequence[str], roots: Sequence[Path]) -> list[str]:
    if SINGLE_NAME in names and INDEX_NAME in names:
        raise invalid_argument(
            "AMBIGUOUS_WEIGHTS",
            f"{source} has both {SINGLE_NAME} and {INDEX_NAME}: remove the one that is old",
        )
    if SINGLE_NAME in names:
        return [SINGLE_NAME]
    if INDEX_NAME in names:
        data = _read_index(_real_file(folder / INDEX_NAME, source, roots))
        shards = sorted(set(parse_index(data).values()))
        if len(shards) > _MAX_SHARDS:
            raise invalid_argument(
                "TOO_MANY_FILES", f"{source} has {len(shards)} weight files; up to {_MAX_SHARDS} are read"
            )
        return [INDEX_NAME, *shards]
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise invalid_argument(
            "PICKLE",
            f"{source}: {printable(pickles[0])} is a pickle, which can run code when it is read; where you "
            "trust it, load it with PEFT and save it again with save_pretrained, which writes safetensors",
        )
    hint = " (an adapter in parts needs its index too)" if any(".safetensors" in n for n in names) else ""
    raise not_found("NO_WEIGHTS", f"{source}: no {SINGLE_NAME} there{hint}")


def _real_file(path: Path, source: str, roots: Sequence[Path]) -> Path:
    real = _real(path)
    if not _is_below(real, roots):
        raise permission_denied("OUTSIDE_ROOTS", f"{source}: {path.name} is a link out of the store's roots")
    if not os.path.exists(real):
        raise not_found("NO_FILE", f"{source}: {path.name} is missing")
    return real


def _read_index(path: Path) -> bytes:
    descriptor, size = _open_regular(path)
    with open(descriptor, "rb") as file:
        if size > _MAX_INDEX_BYTES:
            raise invalid_argument("BAD_FILE", f"{INDEX_NAME} is larger than {_MAX_INDEX_BYTES} bytes")
        return file.read(_MAX_INDEX_BYTES)


def _open_regular(path: Path) -> tuple[int, int]:
    # Opening a pipe would wait for its writer; a link put there since it was resolved is not followed.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise permission_denied("UNREADABLE", f"{path.name}: the store may not read it") from error
    except OSError as error:
        raise _not_regular(path) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor, status.st_size


def _not_regular(path: Path) -> LorikeetError:
    return invalid_argument("BAD_FILE", f"{path.name} is not a regular file")


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise invalid_argument("BAD_SOURCE", f"{path.name} cannot be resolved: {error.strerror}") from error


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)
