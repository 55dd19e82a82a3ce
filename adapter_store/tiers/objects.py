"""Reads objects of the disk tier, mistrusting them: a disk may lose or change what it was given."""

from collections.abc import Iterator
from contextlib import contextmanager

import blake3
import grpc

from adapter_store.concurrency.crew import Crew, Urgency
from adapter_store.formats.layout import PackLayout
from adapter_store.packs.reading import OpenedAdapter, check_adapter, open_adapter
from adapter_store.packs.recipe import Recipe, recipe_of
from adapter_store.packs.scanning import Look
from adapter_store.tiers.disk import DiskTier
from rpc.errors import LorikeetError, data_loss, failed_precondition

# What was checked when the adapter was loaded, whatever the layout was.
_DAMAGE = ("BAD_CONFIG", "BAD_FILE", "NOT_FINITE")
_OF_A_LOAD = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)

# From here on it pays to hash with many threads.
_LARGE_BYTES = 8 << 20


def open_object(disk: DiskTier, digest: str, layout: PackLayout) -> OpenedAdapter:
    """Opens an object and checks that it fits a layout; the plan then has the digest.

    Raises:
        LorikeetError: DATA_LOSS when the object is gone or damaged; FAILED_PRECONDITION when it does not fit.
    """
    with _damage_said(disk, digest):
        opened = open_adapter(disk.object_path(digest), layout)
    opened.plan.manifest.digest = digest
    return opened


def fill_from_object(
    disk: DiskTier,
    digest: str,
    opened: OpenedAdapter,
    target: memoryview,
    crew: Crew,
    urgency: Urgency,
    look: Look | None = None,
) -> Recipe:
    """Packs an opened object, checking that it still is what its digest says. Raises LorikeetError.

    Returns how to do so again; `look`: see `PackFiller.fill`.
    """
    with _damage_said(disk, digest):
        checked = check_adapter(opened, target, crew=crew, urgency=urgency, look=look)
    if checked.digest != digest:
        raise _set_aside(disk, digest)
    return recipe_of(checked.plan)


def refill_from_object(
    disk: DiskTier,
    digest: str,
    recipe: Recipe,
    checksum: bytes,
    target: memoryview,
    crew: Crew,
    urgency: Urgency,
) -> bool:
    """Packs an object by a recipe. False where that does not bring a pack of this checksum: it is worth
    nothing then, and what is there instead, damage or the same content in other files, is told by opening it.
    """
    try:
        recipe.fill(disk.object_path(digest), target, crew=crew, urgency=urgency)
    except (FileNotFoundError, LorikeetError):
        return False
    return checksum_of(target, recipe.manifest, urgency) == checksum


def checksum_of(pack: memoryview, manifest: bytes, urgency: Urgency | None = None) -> bytes:
    """BLAKE3 of a pack and of what is said of it, such as scalings, serialised by `manifest_bytes`; by many
    threads where it is large and somebody waits for it.
    """
    is_large = len(pack) >= _LARGE_BYTES and urgency
    hasher = blake3.blake3(pack, max_threads=blake3.blake3.AUTO if is_large else 1)
    return hasher.update(manifest).digest()


@contextmanager
def _damage_said(disk: DiskTier, digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _lost(digest, "is gone from") from error
    except LorikeetError as error:
        if error.reason in _DAMAGE:
            raise _set_aside(disk, digest) from error
        if error.code in _OF_A_LOAD:
            # Whoever asks for the adapter now did not choose it for this executor.
            raise failed_precondition(
                "ADAPTER_DOES_NOT_FIT_BASE",
                "the adapter was loaded for another base, dtype or limit than the executor has now: "
                f"{error.message}; load one that fits, or start the executor as it was",
                digest=digest,
            ) from error
        raise


def _set_aside(disk: DiskTier, digest: str) -> LorikeetError:
    # Out of the way, so that loading the adapter again repairs it.
    disk.discard(disk.set_aside(digest))
    return _lost(digest, "was damaged on")


def _lost(digest: str, what: str) -> LorikeetError:
    return data_loss(
        "ADAPTER_LOST",
        f"adapter {digest} {what} the store's disk: load it again from its source",
        digest=digest,
    )
