"""Matches an adapter's tensors to places of the base model, and refuses what does not fit exactly."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_store.formats.layout import PackLayout, Slice
from adapter_store.formats.names import Part, TensorRole, role_of
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry
from adapter_store.formats.targets import is_targeted, names
from rpc.errors import LorikeetError, invalid_argument, unimplemented

_PATTERN_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptedSlice:
    """A slice with what an adapter brings for it; tensors as on disk.

    lora_a is [rank, inputs] and lora_b [outputs, rank], unless stored transposed; both are absent at rank 0.
    magnitude (of DoRA), lora_bias and bias are [outputs]; weight takes the place of the base's.
    """

    slice: Slice
    rank: int
    scaling: float
    lora_a: TensorEntry | None = None
    lora_b: TensorEntry | None = None
    magnitude: TensorEntry | None = None
    lora_bias: TensorEntry | None = None
    bias: TensorEntry | None = None
    weight: TensorEntry | None = None
    is_a_transposed: bool = False
    is_b_transposed: bool = False

    def tensors(self) -> Iterator[tuple[str, TensorEntry]]:
        """(part, tensor) of those that are there, in the order of a pack."""
        for part, entry in (
            ("lora_a", self.lora_a),
            ("lora_b", self.lora_b),
            ("magnitude", self.magnitude),
            ("lora_bias", self.lora_bias),
            ("bias", self.bias),
            ("weight", self.weight),
        ):
            if entry is not None:
                yield part, entry

    @property
    def has_shift(self) -> bool:
        """True when the executor derives a vector that it adds to the output besides gain and LoRA."""
        rescales_bias = self.magnitude is not None and self.slice.has_bias
        return self.lora_bias is not None or self.bias is not None or rescales_bias


@dataclass(frozen=True, kw_only=True)
class Match:
    """An adapter that fits: its slices in the layout's order, and what is worth knowing about the rest."""

    slices: tuple[AdaptedSlice, ...]
    notes: tuple[str, ...]


def match_adapter(entries: Mapping[str, TensorEntry], config: PeftConfig, layout: PackLayout) -> Match:
    """Finds the place of every tensor, by headers alone.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, naming the module or tensor that does not fit and
        why.
    """
    notes: list[str] = []
    parts: dict[str, dict[Part, TensorEntry]] = {}
    for name, entry in sorted(entries.items()):
        role = role_of(name)
        slice_ = _slice_of(role, entry, layout, config)
        if role.part is Part.BASE_COPY:
            _check_base_copy(slice_, entry, config, layout)
            notes.append(f"{role.module}: the copy of the base's weight was left out; the base's own is used")
        else:
            parts.setdefault(role.module, {})[role.part] = entry
    if not parts:
        raise invalid_argument("NO_TENSORS", "the adapter has no LoRA tensors at all")
    _check_targets(set(parts), config, layout)
    slices = [
        _adapt(slice_, parts[slice_.module], config, layout)
        for slice_ in layout.slices
        if slice_.module in parts
    ]
    notes += _base_note(config, layout)
    return Match(slices=tuple(slices), notes=tuple(notes))


def _slice_of(role: TensorRole, entry: TensorEntry, layout: PackLayout, config: PeftConfig) -> Slice:
    slice_ = layout.by_module.get(role.module)
    if slice_ is None:
        raise invalid_argument(
            "UNKNOWN_MODULE",
            f"{entry.name}: the base {layout.base_name!r} has no module {role.module} that can carry a LoRA"
            + _other_base(config, layout),
            module=role.module,
        )
    if role.part is Part.BASE_COPY and role.module.rpartition(".")[2] not in ("lm_head", "embed_tokens"):
        raise invalid_argument("UNKNOWN_TENSOR", f"{entry.name}: a copy of a base weight has no meaning here")
    if role.part is not Part.BASE_COPY and role.is_embedding != slice_.is_embedding:
        kind = "an embedding" if slice_.is_embedding else "a linear layer"
        raise invalid_argument("UNKNOWN_TENSOR", f"{entry.name}: {role.module} is {kind} of this base")
    return slice_


def _check_base_copy(slice_: Slice, entry: TensorEntry, config: PeftConfig, layout: PackLayout) -> None:
    rows, columns = (
        (slice_.inputs, slice_.outputs) if slice_.is_embedding else (slice_.outputs, slice_.inputs)
    )
    if entry.shape != (rows, columns):
        raise _wrong_shape(entry, f"[{rows}, {columns}]", config, layout)


def _check_targets(present: set[str], config: PeftConfig, layout: PackLayout) -> None:
    deadline = time.monotonic() + _PATTERN_SECONDS

    def tick() -> None:
        if time.monotonic() > deadline:
            raise invalid_argument("PATTERN_TOO_COMPLEX", "the config's patterns take too long to match")

    targeted: set[str] = set()
    for slice_ in layout.slices:
        if is_targeted(config, slice_.module):
            targeted.add(slice_.module)
        tick()
    if missing := sorted(targeted - present):
        raise invalid_argument(
            "MISSING_TENSORS",
            f"{missing[0]}: target_modules names it but the adapter has no tensors for it"
            + (f" (nor for {len(missing) - 1} other modules)" if len(missing) > 1 else ""),
            module=missing[0],
        )
    if config.ties_embeddings and any(names("embed_tokens", module) for module in targeted):
        targeted.add("lm_head")
    if stray := sorted(present - targeted):
        raise invalid_argument(
            "UNTARGETED_MODULE",
            f"{stray[0]}: the adapter has tensors for it, but its config does not target it "
            "(PEFT would drop them)",
            module=stray[0],
        )
    if not isinstance(config.target_modules, str):
        for target in config.target_modules:
            if not any(names(target, module) for module in layout.by_module):
                raise invalid_argument(
                    "UNKNOWN_TARGET",
                    f"target_modules: {target[:100]!r} names nothing that {layout.base_name!r} can adapt",
                    option="target_modules",
                )
    for option, key in config.unused_patterns(sorted(present), tick):
        raise invalid_argument(
            "UNUSED_PATTERN",
            f"{option}: {key[:100]!r} decides nothing for any module of this adapter; correct or remove it",
            option=option,
        )


def _adapt(
    slice_: Slice, parts: Mapping[Part, TensorEntry], config: PeftConfig, layout: PackLayout
) -> AdaptedSlice:
    for part in (Part.A, Part.B):
        if part not in parts:
            other = next(iter(parts.values()))
            raise invalid_argument(
                "MISSING_PARTNER", f"{slice_.module}: {other.name} has no {part.value}", module=slice_.module
            )
    lora_a, lora_b = parts[Part.A], parts[Part.B]
    for entry in (lora_a, lora_b):
        if entry.dtype not in NUMPY_DTYPES:
            raise unimplemented(
                "UNSUPPORTED_DTYPE",
                f"{entry.name} is {entry.dtype}; save the adapter as float32, bfloat16 or float16",
                module=slice_.module,
            )
    if len(lora_a.shape) != 2 or lora_a.shape[1] != slice_.inputs:
        raise _wrong_shape(lora_a, f"[rank, {slice_.inputs}]", config, layout)
    rank = lora_a.shape[0]
    if lora_b.shape != (slice_.outputs, rank):
        raise _wrong_shape(lora_b, f"[{slice_.outputs}, {rank}]", config, layout)
    _check_rank(slice_.module, rank, config, layout)
    scaling = config.scaling_of(slice_.module, rank)
    if not np.isfinite(np.float32(scaling)):
        raise invalid_argument("BAD_SCALING", f"{slice_.module}: the scaling {scaling} is no float32")
    return AdaptedSlice(slice=slice_, rank=rank, scaling=scaling, lora_a=lora_a, lora_b=lora_b)


def _check_rank(module: str, rank: int, config: PeftConfig, layout: PackLayout) -> None:
    if rank != config.rank_of(module):
        raise invalid_argument(
            "RANK_MISMATCH",
            f"{module}: its tensors have rank {rank}, its config says {config.rank_of(module)}",
            module=module,
        )
    if rank > layout.max_rank:
        raise invalid_argument(
            "RANK_TOO_LARGE",
            f"{module}: rank {rank} is above the executor's maximum of {layout.max_rank}; "
            "restart the executor with a larger one",
            module=module,
        )


def _wrong_shape(entry: TensorEntry, needed: str, config: PeftConfig, layout: PackLayout) -> LorikeetError:
    return invalid_argument(
        "WRONG_SHAPE",
        f"{entry.name} is {list(entry.shape)}, this base needs {needed}" + _other_base(config, layout),
        tensor=entry.name,
    )


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].lower()


def _other_base(config: PeftConfig, layout: PackLayout) -> str:
    if not config.base_model or _last_part(config.base_model) == _last_part(layout.base_name):
        return ""
    return f"; the adapter was trained on {config.base_model!r}, this server runs {layout.base_name!r}"


def _base_note(config: PeftConfig, layout: PackLayout) -> list[str]:
    # Names prove nothing (a folder may be called anything), so a base of the same shapes is let through, but
    # said.
    difference = _other_base(config, layout)
    return [difference.removeprefix("; ") + "; all shapes fit"] if difference else []
