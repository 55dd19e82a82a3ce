"""From an adapter's folder to a checked adapter with an identity."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from adapter_store.concurrency.collecting import collection_put_off
from adapter_store.concurrency.crew import ALONE, Crew, Urgency
from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.formats.checks import match_adapter
from adapter_store.formats.layout import PackLayout, Slice
from adapter_store.formats.peft_config import PeftConfig, parse_peft_config
from adapter_store.formats.prompt_files import read_prompt_files
from adapter_store.formats.safetensors_files import CONFIG_NAME, Heads, TensorEntry, TensorFiles
from adapter_store.packs.filling import PackFiller
from adapter_store.packs.fits import Fit, Fits, Likeness
from adapter_store.packs.identity import Identity, TensorScan, identity_of
from adapter_store.packs.plan import PackPlan, plan_pack
from adapter_store.packs.scanning import Look
from lorikeet.v1 import layout_pb2
from rpc.errors import invalid_argument

_MAX_CONFIG_BYTES = 4 << 20

# Of this process: what config and headers mean depends on nothing else.
_FITS = Fits()


@dataclass(frozen=True, kw_only=True)
class OpenedAdapter:
    """An adapter whose headers fit a layout; its tensors have not been read. The plan has no digest yet."""

    fit: Fit
    notes: tuple[str, ...]
    files: TensorFiles
    plan: PackPlan
    chat_template: str | None

    @property
    def slices(self) -> tuple[AdaptedSlice, ...]:
        return self.fit.slices

    @property
    def pack_bytes(self) -> int:
        return self.plan.manifest.total_bytes

    @cached_property
    def identity(self) -> Identity:
        """See `Fit.identity`."""
        if self.chat_template is None:
            return self.fit.identity
        return identity_of(self.slices, self.chat_template)


@dataclass(frozen=True, kw_only=True)
class CheckedAdapter:
    """An adapter that fits a layout, every value of it. `slices` are in the layout's order."""

    digest: str
    slices: tuple[AdaptedSlice, ...]
    notes: tuple[str, ...]
    files: TensorFiles
    plan: PackPlan
    chat_template: str | None

    @property
    def manifest(self) -> layout_pb2.PackManifest:
        return self.plan.manifest

    @property
    def max_rank(self) -> int:
        return max(adapted.rank for adapted in self.slices)


@collection_put_off()
def open_adapter(folder: Path, layout: PackLayout) -> OpenedAdapter:
    """Checks a folder that we own against a layout, by config and headers alone, and plans its pack.

    Args:
        folder: holds adapter_config.json and safetensors files; nobody else may write to it.
        layout: what the adapter must fit.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, saying what is wrong, where, and what to do.
    """
    config = _config_bytes(folder / CONFIG_NAME)
    likeness = partial(Likeness, layout.digest, layout.max_rank, config)

    def entries(heads: Heads) -> Mapping[str, TensorEntry] | None:
        known = _FITS.find(likeness(heads))
        return None if known is None else known.entries

    files = TensorFiles(folder, entries)
    fit = _FITS.find(likeness(files.heads))
    if fit is None:
        fit = _FITS.keep(likeness(files.heads), _fit(config, files.entries, layout))
    prompts = read_prompt_files(folder, layout)
    manifest = layout_pb2.PackManifest()
    manifest.CopyFrom(fit.plan.manifest)
    return OpenedAdapter(
        fit=fit,
        notes=fit.notes + prompts.notes,
        files=files,
        plan=replace(fit.plan, manifest=manifest),
        chat_template=prompts.chat_template,
    )


def read_config(path: Path) -> PeftConfig:
    """An adapter's config, refused where it asks for what is not served whatever the weights are.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED.
    """
    return parse_peft_config(_config_bytes(path))


def _config_bytes(path: Path) -> bytes:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise invalid_argument("BAD_CONFIG", f"{CONFIG_NAME} is larger than {_MAX_CONFIG_BYTES} bytes")
    return path.read_bytes()


def _fit(config: bytes, entries: Mapping[str, TensorEntry], layout: PackLayout) -> Fit:
    match = match_adapter(entries, parse_peft_config(config), layout)
    plan = plan_pack("", match.slices, layout)
    return Fit(entries=entries, slices=match.slices, notes=match.notes, plan=plan)


def check_adapter(
    opened: OpenedAdapter,
    target: memoryview | None = None,
    *,
    crew: Crew = ALONE,
    urgency: Urgency | None = None,
    look: Look | None = None,
) -> CheckedAdapter:
    """Reads every tensor, computes the adapter's digest and, where there is a target, writes its pack.

    Args:
        target: `pack_bytes` bytes, worth nothing when this raises.
        crew: see `PackFiller`, also for `urgency`.
        look: see `PackFiller.fill`.

    Raises:
        LorikeetError: INVALID_ARGUMENT, naming the tensor that holds what cannot be served.
    """
    filler = PackFiller(opened.plan, opened.files, crew=crew, urgency=urgency)
    filler.fill(target, look=look)
    return identify_adapter(opened, filler.scans)


def identify_adapter(opened: OpenedAdapter, scans: Mapping[str, TensorScan]) -> CheckedAdapter:
    """The adapter that an opened one is by what its tensors, all of them, were found to hold."""
    digest = opened.identity.digest(scans)
    manifest = layout_pb2.PackManifest()
    manifest.CopyFrom(opened.plan.manifest)
    manifest.digest = digest
    return CheckedAdapter(
        digest=digest,
        slices=opened.slices,
        notes=opened.notes + _idle_notes(opened.slices, scans),
        files=opened.files,
        plan=replace(opened.plan, manifest=manifest),
        chat_template=opened.chat_template,
    )


def read_adapter(folder: Path, layout: PackLayout) -> CheckedAdapter:
    """Opens and checks at once, packing nothing. Raises LorikeetError."""
    return check_adapter(open_adapter(folder, layout))


def _idle_notes(slices: Sequence[AdaptedSlice], scans: Mapping[str, TensorScan]) -> tuple[str, ...]:
    """A note for each module that changes nothing; experts are told of by layer."""
    idle = [adapted.slice for adapted in slices if _is_idle(adapted, scans)]
    if len(idle) == len(slices):
        return ("the adapter changes nothing: every module has a zero lora_A, lora_B or scaling",)
    found, idle_experts = _by_layer(adapted.slice for adapted in slices), _by_layer(idle)
    notes = [f"{slice_.module}: changes" for slice_ in idle if not slice_.is_expert]
    notes += [f"{module}: {n} of {found[module]} projections change" for module, n in idle_experts.items()]
    return tuple(f"{note} nothing (a zero lora_A, lora_B or scaling)" for note in notes)


def _by_layer(slices: Iterable[Slice]) -> Counter[str]:
    """How many of them are of experts, by the experts' layer."""
    return Counter(slice_.module.rsplit(".", 2)[0] for slice_ in slices if slice_.is_expert)


def _is_idle(adapted: AdaptedSlice, scans: Mapping[str, TensorScan]) -> bool:
    a, b = adapted.lora_a, adapted.lora_b
    if a is None or b is None:
        return False
    a_scan, b_scan = scans[a.name], scans[b.name]
    is_zero = a_scan.is_zero or adapted.a_cut in a_scan.zero_cuts
    is_zero = is_zero or b_scan.is_zero or adapted.b_cut in b_scan.zero_cuts or adapted.scaling == 0
    return is_zero and [part for part, _ in adapted.tensors()] == ["lora_a", "lora_b"]
