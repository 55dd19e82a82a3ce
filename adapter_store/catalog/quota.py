"""How much names may hold: pure decisions over all pointers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapter_store.catalog.history import Pointer
from rpc.errors import LorikeetError, resource_exhausted


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the catalog allows. Of a `max_`, 0 is no limit.

    Args:
        keep_versions: earlier versions of a name that stay on disk, to roll back to.
        max_adapters: names in all.
        max_adapters_per_tenant: names of one tenant.
        max_bytes_per_tenant: packs that one tenant's names point to.
        max_pinned_bytes: packs that pinned names point to.
    """

    keep_versions: int = 1
    max_adapters: int = 0
    max_adapters_per_tenant: int = 0
    max_bytes_per_tenant: int = 0
    max_pinned_bytes: int = 0


def check_limits(
    limits: Limits, pointers: Mapping[str, Pointer], new: Pointer, pack_bytes: Callable[[str], int]
) -> None:
    """Whether a pointer may be added, or take the place of the one of its name.

    What takes no more than there was before passes, also where a limit was lowered below it.

    Args:
        pack_bytes: of any digest that is pointed to, and of the new one.

    Raises:
        LorikeetError: RESOURCE_EXHAUSTED; the reason names the limit.
    """
    old = pointers.get(new.name)
    others = len(pointers) - (old is not None)
    if old is None and 0 < limits.max_adapters <= others:
        raise _full("MAX_ADAPTERS", f"{others} adapters are loaded", limits.max_adapters)
    if limits.max_adapters_per_tenant or limits.max_bytes_per_tenant:
        theirs = [p for p in pointers.values() if p.name != new.name and p.tenant == new.tenant]
        _check_tenant(limits, theirs, old, new, pack_bytes)
    if new.pinned and (limit := limits.max_pinned_bytes):
        pinned = [p for p in pointers.values() if p.name != new.name and p.pinned]
        before = [*pinned, old] if old is not None and old.pinned else pinned
        wanted = _bytes([*pinned, new], pack_bytes)
        if wanted > limit and wanted > _bytes(before, pack_bytes):
            raise resource_exhausted(
                "PINNED_FULL",
                f"{wanted} bytes of adapters would be pinned in memory, {limit} may be: load it without "
                "pinning, or load another one without",
            )


def _check_tenant(
    limits: Limits,
    theirs: Sequence[Pointer],
    old: Pointer | None,
    new: Pointer,
    pack_bytes: Callable[[str], int],
) -> None:
    owner = f"tenant {new.tenant!r}" if new.tenant else "the tenant without a name"
    is_new_of_tenant = old is None or old.tenant != new.tenant
    if is_new_of_tenant and 0 < limits.max_adapters_per_tenant <= len(theirs):
        limit = limits.max_adapters_per_tenant
        raise _full("MAX_ADAPTERS_PER_TENANT", f"{owner} has {len(theirs)} adapters", limit)
    if limit := limits.max_bytes_per_tenant:
        before = [*theirs, old] if old is not None and old.tenant == new.tenant else theirs
        wanted = _bytes([*theirs, new], pack_bytes)
        if wanted > limit and wanted > _bytes(before, pack_bytes):
            raise _full("MAX_BYTES_PER_TENANT", f"{owner} would have {wanted} bytes of adapters", limit)


def _bytes(pointers: Iterable[Pointer], pack_bytes: Callable[[str], int]) -> int:
    # Names that share a digest share its pack.
    return sum(map(pack_bytes, {pointer.digest for pointer in pointers}))


def _full(reason: str, what: str, limit: int) -> LorikeetError:
    return resource_exhausted(
        reason, f"{what}, {reason.lower()} is {limit}: unload some, or ask for a higher limit"
    )
