"""Makes packs: from an adapter that was just checked, or from one that lies in the disk tier."""

from collections.abc import Callable
from typing import BinaryIO

from adapter_store.formats.layout import PackLayout
from adapter_store.formats.packing import write_pack
from adapter_store.formats.plan import PackPlan, plan_pack
from adapter_store.formats.reading import CheckedAdapter, read_adapter
from adapter_store.tiers.disk import DiskTier, StoredPack
from rpc.errors import LorikeetError, data_loss


def store_pack(
    disk: DiskTier,
    checked: CheckedAdapter,
    plan: PackPlan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoredPack:
    """Packs a checked adapter into the disk tier. Raises LorikeetError."""

    def write(file: BinaryIO) -> str:
        return write_pack(
            plan,
            checked.files,
            file.write,
            lambda done: progress(done, plan.manifest.total_bytes),
        )

    return disk.write_pack(plan.manifest, write)


def rebuild_pack(disk: DiskTier, digest: str, layout: PackLayout) -> StoredPack:
    """Packs an object of the disk tier, checking again that it is what its digest says and fits this layout.

    Raises:
        LorikeetError: DATA_LOSS when the object is gone or damaged; what `read_adapter` and `plan_pack` raise
            when it does not fit.
    """
    try:
        checked = read_adapter(disk.object_path(digest), layout)
    except FileNotFoundError as error:
        raise _lost(digest, "is gone from") from error
    except LorikeetError as error:
        # These were checked when the adapter was loaded, whatever the layout was.
        if error.reason in ("BAD_CONFIG", "BAD_FILE", "NOT_FINITE"):
            raise _set_aside(disk, digest) from error
        raise
    if checked.digest != digest:
        raise _set_aside(disk, digest)
    return store_pack(disk, checked, plan_pack(digest, checked.slices, layout))


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
