"""Names and versions as rows of the database."""

import json
import math
from dataclasses import asdict

from adapter_store.catalog.history import Earlier, Pointer
from adapter_store.catalog.versions import ModuleReport, Version

POINTER_COLUMNS = "name, digest, source, revision, load_time_ns, tenant, pinned, previous"
VERSION_COLUMNS = "digest, pack_bytes, max_rank, report"


def write_pointer(pointer: Pointer) -> tuple[object, ...]:
    """In the order of POINTER_COLUMNS."""
    previous = json.dumps([asdict(earlier) for earlier in pointer.previous], separators=(",", ":"))
    placed = (pointer.name, pointer.digest, pointer.source, pointer.revision, pointer.load_time_ns)
    return *placed, pointer.tenant, pointer.pinned, previous


def read_pointer(
    name: str,
    digest: str,
    source: str,
    revision: int,
    load_time_ns: int,
    tenant: str,
    pinned: int,
    previous: str,
) -> Pointer:
    """From what `write_pointer` made."""
    return Pointer(
        name=name,
        digest=digest,
        source=source,
        revision=revision,
        load_time_ns=load_time_ns,
        tenant=tenant,
        pinned=bool(pinned),
        previous=tuple(Earlier(**earlier) for earlier in json.loads(previous)),
    )


def write_version(version: Version) -> tuple[str, int, int, str]:
    """In the order of VERSION_COLUMNS."""
    report = json.dumps(
        {
            "modules": [_write_module(module) for module in version.modules],
            "notes": version.notes,
            "has_chat_template": version.has_chat_template,
        },
        separators=(",", ":"),
    )
    return version.digest, version.pack_bytes, version.max_rank, report


def _write_module(report: ModuleReport) -> list[object]:
    norm = None if math.isnan(report.delta_norm) else report.delta_norm
    row: list[object] = [report.module, report.rank, report.scaling, norm, report.parts]
    return [*row, report.experts, report.least_delta_norm] if report.experts else row


def _read_module(
    module: str,
    rank: int,
    scaling: float,
    delta_norm: float | None = None,
    parts: tuple[str, ...] = (),
    experts: int = 0,
    least_delta_norm: float = math.nan,
) -> ModuleReport:
    return ModuleReport(
        module=module,
        rank=rank,
        scaling=scaling,
        delta_norm=math.nan if delta_norm is None else delta_norm,
        parts=tuple(parts),
        experts=experts,
        least_delta_norm=least_delta_norm,
    )


def read_version(digest: str, pack_bytes: int, max_rank: int, report: str) -> Version:
    """From what `write_version`, also of an older release, made."""
    content = json.loads(report)
    return Version(
        digest=digest,
        pack_bytes=pack_bytes,
        max_rank=max_rank,
        modules=tuple(_read_module(*module) for module in content["modules"]),
        notes=tuple(content["notes"]),
        has_chat_template=content.get("has_chat_template", False),
    )
