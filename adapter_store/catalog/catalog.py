"""Names and the versions that they point to. Decides; what must be written down is somebody else's work."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from adapter_store.catalog.adapter_names import unknown_digest, unknown_name
from adapter_store.catalog.history import Pointer, check_expected, roll_back, succeed
from adapter_store.catalog.page_tokens import read_token, write_token
from adapter_store.catalog.quota import Limits, check_limits
from adapter_store.catalog.versions import Version
from rpc.digests import is_digest
from rpc.errors import invalid_argument, permission_denied

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One step of the catalog, decided but not yet done: write it down, then `apply` it.

    Exactly one of `pointer` (a name appears, moves, or changes how it is kept) and `removed` (a name goes) is
    set; `version` is what the pointer points to.
    """

    revision: int
    pointer: Pointer | None = None
    version: Version | None = None
    removed: str | None = None
    # Digests that must leave executors and memory after this step, since no name points to them.
    retired: tuple[str, ...] = ()


class Catalog:
    """The names at one revision.

    Args:
        revision: counts changes over the whole life of the data folder.
        pointers: all names.
        versions: of all digests that are pointed to, kept as an earlier version, or retiring.
        retiring: digests that no name points to and that executors may still hold.
        limits: what may be loaded, and how much of the past is kept.
    """

    def __init__(
        self,
        *,
        revision: int = 0,
        pointers: Iterable[Pointer] = (),
        versions: Iterable[Version] = (),
        retiring: Iterable[str] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._revision = revision
        self._pointers = {pointer.name: pointer for pointer in pointers}
        # How many names point to each digest, and how many do or can go back to it.
        self._pointed = Counter(pointer.digest for pointer in self._pointers.values())
        self._referred = Counter(digest for pointer in self._pointers.values() for digest in pointer.digests)
        self._pinned = self._find_pinned()
        self._versions = {version.digest: version for version in versions}
        self._retiring = set(retiring)
        self._limits = limits

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

    @property
    def pinned(self) -> frozenset[str]:
        """Digests that stay in memory."""
        return self._pinned

    def knows(self, digest: str) -> bool:
        """True for a digest that can be leased: a name points to it, or it is retiring."""
        return digest in self._retiring or self.is_pointed_to(digest)

    def is_pointed_to(self, digest: str) -> bool:
        return self._pointed[digest] > 0

    def keeps(self, digest: str) -> bool:
        """True for a digest whose files stay: it can be leased, or a name can go back to it."""
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

    def owned(self, name: str, tenant: str) -> Pointer:
        """A name that a tenant may change; "" may change all.

        Frontends refuse this too, by the catalog that they know, which may be older.

        Raises LorikeetError: NOT_FOUND, also for another tenant's; PERMISSION_DENIED for everyone's.
        """
        pointer = self.get(name)
        if tenant in ("", pointer.tenant):
            return pointer
        if pointer.tenant:
            raise unknown_name(name)
        raise permission_denied(
            "SHARED_ADAPTER", f"{name} belongs to no tenant: only a token without a tenant may change it"
        )

    def resolve(self, adapter: str) -> str:
        """The digest of a name, or of "b3:" and a digest. Raises LorikeetError: NOT_FOUND."""
        if adapter.startswith("b3:"):
            digest = adapter.removeprefix("b3:")
            if is_digest(digest) and self.knows(digest):
                return digest
            raise unknown_digest(digest)
        return self.get(adapter).digest

    def page(self, size: int, token: str) -> tuple[list[Pointer], str]:
        """A page of names and the token of the next. Raises LorikeetError: INVALID_ARGUMENT."""
        if size > _LARGEST_PAGE:
            raise invalid_argument(
                "PAGE_SIZE", f"page_size is {size}; at most {_LARGEST_PAGE} are given at once"
            )
        pointers = self.pointers()
        start = bisect_right(pointers, read_token(token), key=lambda pointer: pointer.name) if token else 0
        page = pointers[start : start + (size or _DEFAULT_PAGE)]
        more = start + len(page) < len(pointers)
        return page, write_token(page[-1].name) if more else ""

    def find(self, name: str) -> Pointer | None:
        return self._pointers.get(name)

    def check_expected(self, name: str, expected: str) -> None:
        """Raises LorikeetError, ABORTED, unless a name points to the expected digest."""
        pointer = self._pointers.get(name)
        check_expected(name, expected, pointer.digest if pointer else "")

    def check_owner(self, name: str, tenant: str, *, for_everyone: bool = False) -> str:
        """The tenant of a name that is loaded for a tenant. A name keeps its owner until it is unloaded.

        Frontends refuse this too, by the catalog that they know: two loads of a new name both pass there.

        Args:
            for_everyone: what is loaded is of no tenant, and must not come under the name of one.

        Raises LorikeetError: PERMISSION_DENIED, for a name of another tenant or of none.
        """
        old = self._pointers.get(name)
        if old is None:
            return tenant
        if tenant not in ("", old.tenant):
            raise permission_denied(
                "NAME_TAKEN",
                f"{name} is not an adapter of that tenant: choose another name, or unload it first",
            )
        if for_everyone and old.tenant:
            raise permission_denied(
                "NAME_TAKEN", f"{name} is a tenant's adapter: choose another name, or unload it first"
            )
        return old.tenant

    def plan_point(
        self,
        name: str,
        version: Version,
        source: str,
        now_ns: int,
        *,
        expected: str = "",
        tenant: str = "",
        for_everyone: bool = False,
        pinned: bool | None = None,
    ) -> Change | None:
        """Decides how a name comes to mean a version; None when it does already.

        The same content, pinned or not as before, moves nothing.

        Args:
            tenant: whose the name becomes; whose it is already, or "", leaves it with its owner.
            for_everyone: see `check_owner`.
            pinned: None leaves it as it is.

        Raises:
            LorikeetError: ABORTED (it does not point to what was expected), PERMISSION_DENIED (it is not that
                tenant's), RESOURCE_EXHAUSTED (a limit).
        """
        tenant = self.check_owner(name, tenant, for_everyone=for_everyone)
        self.check_expected(name, expected)
        old = self._pointers.get(name)
        if pinned is None:
            pinned = old is not None and old.pinned
        revision = self._revision + 1
        if old is None or old.digest != version.digest:
            new = Pointer(
                name=name,
                digest=version.digest,
                source=source,
                revision=revision,
                load_time_ns=now_ns,
                tenant=tenant,
                pinned=pinned,
            )
        elif old.pinned != pinned:
            new = replace(old, revision=revision, pinned=pinned)
        else:
            return None
        new = succeed(old, new, self._limits.keep_versions)
        check_limits(
            self._limits,
            self._pointers,
            new,
            lambda digest: (version if digest == version.digest else self._versions[digest]).pack_bytes,
        )
        return Change(revision=revision, pointer=new, version=version, retired=self._orphans(old, new))

    def plan_rollback(
        self, name: str, digest: str = "", expected: str = "", tenant: str = ""
    ) -> Change | None:
        """Decides how a name goes back to its latest earlier version or a given one; None when it is there.

        Raises:
            LorikeetError: NOT_FOUND, PERMISSION_DENIED, ABORTED, FAILED_PRECONDITION (that version is not
                kept).
        """
        old = self.owned(name, tenant)
        self.check_expected(name, expected)
        if digest == old.digest:
            return None
        revision = self._revision + 1
        new = roll_back(old, digest, revision, self._limits.keep_versions)
        version = self._versions[new.digest]
        check_limits(self._limits, self._pointers, new, lambda digest: self._versions[digest].pack_bytes)
        return Change(revision=revision, pointer=new, version=version, retired=self._orphans(old, new))

    def plan_remove(self, name: str, expected: str = "", tenant: str = "") -> Change:
        """Decides how a name goes, and its earlier versions.

        Raises LorikeetError: NOT_FOUND, PERMISSION_DENIED (see `owned`), ABORTED.
        """
        old = self.owned(name, tenant)
        self.check_expected(name, expected)
        return Change(revision=self._revision + 1, removed=name, retired=self._orphans(old, None))

    def only_earlier(self) -> list[str]:
        """Digests that names can go back to and none points to, the one loaded longest ago first."""
        times: dict[str, int] = {}
        for pointer in self._pointers.values():
            for earlier in pointer.previous:
                times[earlier.digest] = max(earlier.load_time_ns, times.get(earlier.digest, 0))
        return sorted(times.keys() - self._pointed.keys(), key=lambda digest: (times[digest], digest))

    def plan_forget(self, digest: str) -> Change | None:
        """Decides how one of the names that can go back to a digest no longer can; None without any."""
        for old in self._pointers.values():
            previous = tuple(earlier for earlier in old.previous if earlier.digest != digest)
            if previous != old.previous:
                revision = self._revision + 1
                new = replace(old, revision=revision, previous=previous)
                version = self._versions[new.digest]
                return Change(
                    revision=revision, pointer=new, version=version, retired=self._orphans(old, new)
                )
        return None

    def apply(self, change: Change) -> None:
        """Takes a planned step, once it is written down."""
        assert change.revision == self._revision + 1, "a change was planned before another was applied"
        self._revision = change.revision
        old = self._take_away(change.pointer.name if change.pointer is not None else change.removed or "")
        if change.pointer is not None and change.version is not None:
            self._pointers[change.pointer.name] = change.pointer
            self._pointed[change.pointer.digest] += 1
            self._referred.update(change.pointer.digests)
            self._versions[change.version.digest] = change.version
            self._retiring.discard(change.version.digest)
        if any(pointer is not None and pointer.pinned for pointer in (old, change.pointer)):
            self._pinned = self._find_pinned()
        self._retiring.update(change.retired)

    def is_earlier(self, digest: str) -> bool:
        """True when a name can go back to it."""
        return self._referred[digest] > self._pointed[digest]

    def settle(self, digest: str) -> bool:
        """A retiring digest is in no executor any more. Returns whether its files stay, to go back to."""
        self._retiring.remove(digest)
        if self.is_earlier(digest):
            return True
        del self._versions[digest]
        return False

    def check_integrity(self) -> None:
        """Asserts that every digest is pointed to, kept or retiring, and never pointed to and retiring."""
        pointed = {pointer.digest for pointer in self._pointers.values()}
        referred = {digest for pointer in self._pointers.values() for digest in pointer.digests}
        assert referred | self._retiring == set(self._versions)
        assert not pointed & self._retiring
        assert self._pointed == Counter(pointer.digest for pointer in self._pointers.values())
        assert self._referred == Counter(
            digest for pointer in self._pointers.values() for digest in pointer.digests
        )
        assert self._pinned == self._find_pinned()
        for pointer in self._pointers.values():
            assert 0 < pointer.revision <= self._revision
            assert len(pointer.digests) == len(pointer.previous) + 1, "a version is in a history twice"

    def _find_pinned(self) -> frozenset[str]:
        return frozenset(pointer.digest for pointer in self._pointers.values() if pointer.pinned)

    def _take_away(self, name: str) -> Pointer | None:
        old = self._pointers.pop(name, None)
        if old is not None:
            _decrease(self._pointed, (old.digest,))
            _decrease(self._referred, old.digests)
        return old

    def _orphans(self, old: Pointer | None, new: Pointer | None) -> tuple[str, ...]:
        """What leaves with a pointer: its digest if no other name points to it, and what falls out of its
        history and nobody else refers to."""
        if old is None:
            return ()
        kept = new.digests if new is not None else frozenset[str]()
        orphans = {digest for digest in old.digests - kept if self._referred[digest] == 1}
        if (new is None or new.digest != old.digest) and self._pointed[old.digest] == 1:
            orphans.add(old.digest)
        return tuple(sorted(orphans - self._retiring))


def _decrease(counter: Counter[str], digests: Iterable[str]) -> None:
    for digest in digests:
        counter[digest] -= 1
        if not counter[digest]:
            del counter[digest]
