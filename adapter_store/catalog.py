"""Names and the versions that they point to. Decides; what must be written down is somebody else's work."""

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from adapter_store.formats.strict_json import printable
from rpc.digests import is_digest
from rpc.errors import LorikeetError, invalid_argument, not_found

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_TOKEN_PREFIX = b"names:"
_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleReport:
    module: str
    rank: int
    scaling: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """What is known of a digest. `pack_bytes` are for the layout that it was loaded for."""

    digest: str
    pack_bytes: int
    max_rank: int
    modules: tuple[ModuleReport, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """A name and the version that it means since `revision`."""

    name: str
    digest: str
    source: str
    revision: int
    load_time_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One step of the catalog, decided but not yet done: write it down, then `apply` it.

    Exactly one of `pointer` (a name moves or appears) and `removed` (a name goes) is set.
    """

    revision: int
    pointer: Pointer | None = None
    version: Version | None = None
    removed: str | None = None
    # A digest that no name points to any more after this step.
    retired: str | None = None


class Catalog:
    """The names at one revision.

    Args:
        revision: counts changes over the whole life of the data folder.
        pointers: all names.
        versions: of all digests that are pointed to, or retiring.
        retiring: digests that no name points to and that executors may still hold.
    """

    def __init__(
        self,
        *,
        revision: int = 0,
        pointers: Iterable[Pointer] = (),
        versions: Iterable[Version] = (),
        retiring: Iterable[str] = (),
    ) -> None:
        self._revision = revision
        self._pointers = {pointer.name: pointer for pointer in pointers}
        self._versions = {version.digest: version for version in versions}
        self._retiring = set(retiring)

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def retiring(self) -> frozenset[str]:
        return frozenset(self._retiring)

    @property
    def digests(self) -> frozenset[str]:
        """All digests whose files are kept."""
        return frozenset(self._versions)

    def knows(self, digest: str) -> bool:
        """True for a digest that can be leased: a name points to it, or it is retiring."""
        return digest in self._versions

    def version(self, digest: str) -> Version:
        return self._versions[digest]

    def pointers(self) -> list[Pointer]:
        """All names, sorted."""
        return sorted(self._pointers.values(), key=lambda pointer: pointer.name)

    def get(self, name: str) -> Pointer:
        """Raises LorikeetError: NOT_FOUND."""
        pointer = self._pointers.get(name)
        if pointer is None:
            raise unknown_name(name)
        return pointer

    def resolve(self, adapter: str) -> str:
        """The digest of a name, or of "b3:" and a digest. Raises LorikeetError: NOT_FOUND."""
        if adapter.startswith("b3:"):
            digest = adapter.removeprefix("b3:")
            if is_digest(digest) and self.knows(digest):
                return digest
            raise not_found("UNKNOWN_DIGEST", f"no adapter with digest {printable(digest, 80)} is loaded")
        return self.get(adapter).digest

    def page(self, size: int, token: str) -> tuple[list[Pointer], str]:
        """A page of names and the token of the next. Raises LorikeetError: INVALID_ARGUMENT."""
        if size > _LARGEST_PAGE:
            raise invalid_argument(
                "PAGE_SIZE", f"page_size is {size}; at most {_LARGEST_PAGE} are given at once"
            )
        pointers = self.pointers()
        start = bisect_right(pointers, _read_token(token), key=lambda pointer: pointer.name) if token else 0
        page = pointers[start : start + (size or _DEFAULT_PAGE)]
        more = start + len(page) < len(pointers)
        return page, _write_token(page[-1].name) if more else ""

    def plan_point(self, name: str, version: Version, source: str, now_ns: int) -> Change | None:
        """Decides how a name comes to mean a version; None when it does already."""
        old = self._pointers.get(name)
        if old is not None and old.digest == version.digest:
            return None
        revision = self._revision + 1
        pointer = Pointer(
            name=name, digest=version.digest, source=source, revision=revision, load_time_ns=now_ns
        )
        return Change(revision=revision, pointer=pointer, version=version, retired=self._orphan(old))

    def plan_remove(self, name: str) -> Change:
        """Decides how a name goes. Raises LorikeetError: NOT_FOUND."""
        old = self.get(name)
        return Change(revision=self._revision + 1, removed=name, retired=self._orphan(old))

    def apply(self, change: Change) -> None:
        """Takes a planned step, once it is written down."""
        assert change.revision == self._revision + 1, "a change was planned before another was applied"
        self._revision = change.revision
        if change.pointer is not None and change.version is not None:
            self._pointers[change.pointer.name] = change.pointer
            self._versions[change.version.digest] = change.version
            self._retiring.discard(change.version.digest)
        if change.removed is not None:
            del self._pointers[change.removed]
        if change.retired is not None:
            self._retiring.add(change.retired)

    def forget(self, digest: str) -> None:
        """A retiring digest is gone."""
        self._retiring.remove(digest)
        del self._versions[digest]

    def check_integrity(self) -> None:
        """Asserts that every digest is pointed to or retiring, and never both."""
        pointed = {pointer.digest for pointer in self._pointers.values()}
        assert pointed | self._retiring == set(self._versions)
        assert not pointed & self._retiring
        assert all(0 < pointer.revision <= self._revision for pointer in self._pointers.values())

    def _orphan(self, old: Pointer | None) -> str | None:
        if old is None:
            return None
        others = (p.digest for p in self._pointers.values() if p.name != old.name)
        return None if old.digest in others else old.digest


def check_name(name: str) -> None:
    """Raises LorikeetError, INVALID_ARGUMENT, for what cannot be an adapter's name."""
    if not _NAME.fullmatch(name):
        raise invalid_argument(
            "BAD_NAME",
            f"{printable(name, 150)!r} is not a name: use up to 128 letters, digits, '.', '_', '-' and '/', "
            "starting with a letter or digit",
        )


def unknown_name(name: str) -> LorikeetError:
    """The error for a name that nothing is loaded under."""
    return not_found(
        "ADAPTER_NOT_FOUND",
        f"no adapter is loaded as {printable(name, 150)!r}: load it, or list what there is",
        adapter=printable(name),
    )


def _write_token(name: str) -> str:
    return base64.urlsafe_b64encode(_TOKEN_PREFIX + name.encode()).decode()


def _read_token(token: str) -> str:
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        name = data.removeprefix(_TOKEN_PREFIX).decode()
    except (binascii.Error, ValueError):
        data, name = b"", ""
    if not data.startswith(_TOKEN_PREFIX) or not _NAME.fullmatch(name):
        raise invalid_argument("PAGE_TOKEN", "page_token is not one that this list returned")
    return name
