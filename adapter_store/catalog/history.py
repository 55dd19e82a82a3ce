"""What a name points to and what it pointed to before: pure decisions on one name."""

from dataclasses import dataclass, replace

from adapter_store.formats.strict_json import printable
from rpc.digests import is_digest
from rpc.errors import aborted, failed_precondition, invalid_argument

NOTHING = "none"
"""As an expected digest: the name must not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """A version that a name pointed to before."""

    digest: str
    source: str
    load_time_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """A name and the version that it means since `revision`; it can go back to `previous`, latest first."""

    name: str
    digest: str
    source: str
    revision: int
    load_time_ns: int
    tenant: str = ""
    pinned: bool = False
    previous: tuple[Earlier, ...] = ()

    @property
    def as_earlier(self) -> Earlier:
        return Earlier(digest=self.digest, source=self.source, load_time_ns=self.load_time_ns)

    @property
    def digests(self) -> frozenset[str]:
        """All that it refers to."""
        return frozenset((self.digest, *(earlier.digest for earlier in self.previous)))


def succeed(old: Pointer | None, new: Pointer, keep: int) -> Pointer:
    """The pointer `new` with the history of the one before it.

    Args:
        keep: most earlier versions.
    """
    if old is None:
        return new
    if old.digest == new.digest:
        return replace(new, previous=old.previous)
    before = (old.as_earlier, *(e for e in old.previous if e.digest != new.digest))
    return replace(new, previous=before[:keep])


def roll_back(pointer: Pointer, digest: str, revision: int, keep: int) -> Pointer:
    """Back to the latest earlier version, or to one of them by its digest.

    The version left stays in the history (unless `keep` is 0), so that one can return to it.

    Raises:
        LorikeetError: INVALID_ARGUMENT, or FAILED_PRECONDITION when no such version is kept.
    """
    if digest:
        check_digest("digest", digest)
    found = next((e for e in pointer.previous if digest in ("", e.digest)), None)
    if found is None:
        kept = ", ".join(e.digest for e in pointer.previous)
        lacks = f"does not keep {digest}, but {kept}" if kept else "has no earlier version to go back to"
        raise failed_precondition(
            "VERSION_NOT_KEPT",
            f"{pointer.name} {lacks}: load the one that you want from its source (the store keeps as many as "
            "its keep_versions says, and drops the oldest when its disk_bytes are full)",
        )
    new = Pointer(
        name=pointer.name,
        digest=found.digest,
        source=found.source,
        revision=revision,
        load_time_ns=found.load_time_ns,
        tenant=pointer.tenant,
        pinned=pointer.pinned,
    )
    return succeed(pointer, new, keep)


def check_expected(name: str, expected: str, current: str) -> None:
    """Checks a precondition.

    Args:
        expected: a digest, "none" or empty for no condition.
        current: what the name points to; empty for nothing.

    Raises:
        LorikeetError: INVALID_ARGUMENT, or ABORTED when the name points elsewhere.
    """
    if not expected:
        return
    if expected != NOTHING:
        check_digest("expected_digest", expected)
    if expected != (current or NOTHING):
        raise aborted(
            "DIGEST_CHANGED",
            f"{printable(name, 150)} points to {current or 'nothing'}, not to the expected "
            f"{'nothing' if expected == NOTHING else expected}: somebody else moved it; look at it again",
            expected_digest=expected,
            digest=current or NOTHING,
        )


def check_digest(field: str, digest: str) -> None:
    """Raises LorikeetError, INVALID_ARGUMENT, for what cannot be a digest."""
    if not is_digest(digest):
        none = ", or none for a name that must not exist" if field == "expected_digest" else ""
        raise invalid_argument(
            "BAD_DIGEST", f"{field} is {printable(digest, 80)!r}: give 64 hex digits, all of them{none}"
        )
