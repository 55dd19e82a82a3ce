"""What a load tells of an adapter, module by module; of experts, of all of a layer at once."""

from collections.abc import Iterable
from contextlib import closing

from adapter_store.catalog.versions import ModuleReport, Version
from adapter_store.concurrency.crew import ALONE, Crew
from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.packs.norms import delta_norms
from adapter_store.packs.reading import CheckedAdapter


def report_version(checked: CheckedAdapter, notes: tuple[str, ...], *, crew: Crew = ALONE) -> Version:
    """All that is known of a version. Reads its tensors, with the crew's help: for a worker thread, while the
    files are where they were opened.

    Args:
        notes: of its source.
    """
    with closing(checked.files):
        norms = delta_norms(checked.slices, checked.files, crew=crew)
    return Version(
        digest=checked.digest,
        pack_bytes=checked.manifest.total_bytes,
        max_rank=checked.max_rank,
        modules=_modules(zip(checked.slices, norms, strict=True)),
        notes=notes + checked.notes,
        has_chat_template=checked.chat_template is not None,
    )


def _modules(norms: Iterable[tuple[AdaptedSlice, float]]) -> tuple[ModuleReport, ...]:
    """One report for each module, and for the same projection of all experts that have it alike."""
    reports: list[ModuleReport] = []
    experts: dict[tuple[object, ...], tuple[int, list[float]]] = {}
    for adapted, norm in norms:
        report = ModuleReport(
            module=adapted.slice.module,
            rank=adapted.rank,
            scaling=adapted.scaling,
            delta_norm=norm,
            parts=adapted.parts,
        )
        if not adapted.slice.is_expert:
            reports.append(report)
            continue
        layer, _, name = adapted.slice.module.rsplit(".", 2)
        module = f"{layer}.*.{name}"
        key = module, report.rank, report.scaling, report.parts
        if key not in experts:
            experts[key] = len(reports), []
            reports.append(report)
        experts[key][1].append(norm)
    for (module, *_), (index, found) in experts.items():
        reports[index] = _of_experts(str(module), reports[index], found)
    return tuple(reports)


def _of_experts(module: str, one: ModuleReport, norms: list[float]) -> ModuleReport:
    return ModuleReport(
        module=module,
        rank=one.rank,
        scaling=one.scaling,
        delta_norm=max(norms),
        parts=one.parts,
        experts=len(norms),
        least_delta_norm=min(norms),
    )
