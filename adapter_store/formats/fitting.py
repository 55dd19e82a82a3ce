"""Fits the tensors of one module to its place in the base: shapes, dtypes, rank and scaling."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from adapter_store.formats.adapted import AdaptedSlice
from adapter_store.formats.layout import PackLayout, Slice
from adapter_store.formats.names import LORA_PARTS, Part
from adapter_store.formats.peft_config import PeftConfig
from adapter_store.formats.safetensors_files import NUMPY_DTYPES, TensorEntry
from rpc.errors import LorikeetError, invalid_argument, unimplemented


def fit_slice(
    slice_: Slice, parts: Mapping[Part, TensorEntry], path: str, config: PeftConfig, layout: PackLayout
) -> AdaptedSlice:
    """What a module's tensors make of its slice.

    Args:
        path: what the adapter's config knows the module by.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, naming the tensor that is missing or does not fit.
    """
    for entry in parts.values():
        check_dtype(entry, slice_.module)
    rank, scaling, a_transposed, b_transposed = 0, 0.0, False, False
    if not LORA_PARTS.isdisjoint(parts):
        _check_partners(slice_, parts, config)
        rank, a_transposed, b_transposed = _orientation(slice_, parts[Part.A], parts[Part.B], config, layout)
        _check_rank(slice_.module, rank, config.rank_of(path), layout)
        scaling = scaling_of(path, rank, config)
    for part in (Part.MAGNITUDE, Part.LORA_BIAS, Part.BIAS):
        if part in parts and parts[part].shape != (slice_.outputs,):
            raise wrong_shape(parts[part], f"[{slice_.outputs}]", config, layout)
    if Part.WEIGHT in parts:
        check_weight(slice_, parts[Part.WEIGHT], config, layout)
    return AdaptedSlice(
        slice=slice_,
        rank=rank,
        scaling=scaling,
        lora_a=parts.get(Part.A),
        lora_b=parts.get(Part.B),
        magnitude=parts.get(Part.MAGNITUDE),
        lora_bias=parts.get(Part.LORA_BIAS),
        bias=parts.get(Part.BIAS),
        weight=parts.get(Part.WEIGHT),
        is_a_transposed=a_transposed,
        is_b_transposed=b_transposed,
    )


def check_dtype(entry: TensorEntry, module: str) -> None:
    """Refuses what is not a LoRA's dtype: UNIMPLEMENTED."""
    if entry.dtype not in NUMPY_DTYPES:
        raise unimplemented(
            "UNSUPPORTED_DTYPE",
            f"{entry.name} is {entry.dtype}; save the adapter as float32, bfloat16 or float16",
            module=module,
        )


def scaling_of(path: str, rank: int, config: PeftConfig) -> float:
    """The scaling of what the config knows by `path`. Raises LorikeetError for one that is no float32."""
    scaling = config.scaling_of(path, rank)
    if not _is_float32(scaling):
        raise invalid_argument("BAD_SCALING", f"{path}: the scaling {scaling} is no float32")
    return scaling


@lru_cache(maxsize=64)  # most modules have the same
def _is_float32(value: float) -> bool:
    return bool(np.isfinite(np.float32(value)))


def check_weight(slice_: Slice, entry: TensorEntry, config: PeftConfig, layout: PackLayout) -> None:
    """Refuses a whole weight that has not the shape of the base's: INVALID_ARGUMENT."""
    if entry.shape == slice_.weight_shape:
        return
    error = wrong_shape(entry, str(list(slice_.weight_shape)), config, layout)
    if len(entry.shape) == 2 and entry.shape[1] == slice_.weight_shape[1]:
        raise invalid_argument(
            "WRONG_VOCABULARY",
            f"{error.message}; its vocabulary is not the base's, as after adding tokens",
            tensor=entry.name,
        )
    raise error


def wrong_shape(entry: TensorEntry, needed: str, config: PeftConfig, layout: PackLayout) -> LorikeetError:
    """The error for a tensor that does not fit, which says when the adapter names another base."""
    return invalid_argument(
        "WRONG_SHAPE",
        f"{entry.name} is {list(entry.shape)}, this base needs {needed}" + other_base(config, layout),
        tensor=entry.name,
    )


def other_base(config: PeftConfig, layout: PackLayout) -> str:
    """ "; the adapter was trained on ..." when its config names another base than this."""
    if not config.base_model or _last_part(config.base_model) == _last_part(layout.base_name):
        return ""
    return f"; the adapter was trained on {config.base_model!r}, this server runs {layout.base_name!r}"


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].lower()


def _check_partners(slice_: Slice, parts: Mapping[Part, TensorEntry], config: PeftConfig) -> None:
    needed = [Part.A, Part.B]
    for part, is_on, option in (
        (Part.MAGNITUDE, config.use_dora, "use_dora"),
        (Part.LORA_BIAS, config.lora_bias, "lora_bias"),
    ):
        if is_on:
            needed.append(part)
        elif part in parts:
            raise invalid_argument(
                "OPTION_MISMATCH",
                f"{parts[part].name}: the config does not set {option} (PEFT would drop this tensor)",
                option=option,
                module=slice_.module,
            )
    if config.lora_bias and slice_.is_embedding:
        raise invalid_argument(
            "OPTION_MISMATCH",
            f"{slice_.module}: an embedding cannot have lora_bias",
            option="lora_bias",
            module=slice_.module,
        )
    for part in needed:
        if part not in parts:
            other = next(entry for key, entry in parts.items() if key in LORA_PARTS)
            raise invalid_argument(
                "MISSING_PARTNER", f"{slice_.module}: {other.name} has no {part.value}", module=slice_.module
            )


def _orientation(
    slice_: Slice, lora_a: TensorEntry, lora_b: TensorEntry, config: PeftConfig, layout: PackLayout
) -> tuple[int, bool, bool]:
    """(rank, is_a_transposed, is_b_transposed): as in PEFT where that fits, else the one other way."""
    rank = lora_a.shape[0] if lora_a.shape else 0
    if (lora_a.shape, lora_b.shape) == ((rank, slice_.inputs), (slice_.outputs, rank)):
        return rank, False, False
    fitting = [
        (rank_a, a_transposed, b_transposed)
        for a_transposed, rank_a in _ranks(lora_a, slice_.inputs, 1)
        for b_transposed, rank_b in _ranks(lora_b, slice_.outputs, 0)
        if rank_a == rank_b
    ]
    if len(fitting) == 1 or (fitting and fitting[0][1:] == (False, False)):
        return fitting[0]
    if fitting:
        raise invalid_argument(
            "AMBIGUOUS_SHAPE",
            f"{lora_b.name} is {list(lora_b.shape)}, transposed, and {lora_a.name} is square, so that "
            "nothing tells which way it lies: save both as PEFT does",
            module=slice_.module,
        )
    if not _ranks(lora_a, slice_.inputs, 1):
        raise wrong_shape(lora_a, f"[rank, {slice_.inputs}]", config, layout)
    rank = _ranks(lora_a, slice_.inputs, 1)[0][1]
    raise wrong_shape(lora_b, f"[{slice_.outputs}, {rank}]", config, layout)


def _ranks(entry: TensorEntry, width: int, axis: int) -> list[tuple[bool, int]]:
    """(is_transposed, rank) of each way in which a tensor has its `width` along the `axis` of PEFT's way."""
    if len(entry.shape) != 2:
        return []
    return [
        (transposed, entry.shape[1 - along])
        for transposed, along in ((False, axis), (True, 1 - axis))
        if entry.shape[along] == width
    ]


def _check_rank(module: str, rank: int, wanted: int, layout: PackLayout) -> None:
    if rank != wanted:
        raise invalid_argument(
            "RANK_MISMATCH",
            f"{module}: its tensors have rank {rank}, its config says {wanted}",
            module=module,
        )
    if rank > layout.max_rank:
        raise rank_too_large(module, rank, layout)


def rank_too_large(module: str, rank: int, layout: PackLayout) -> LorikeetError:
    """The error for a rank above a maximum, which says whose."""
    limit = (
        f"the store's max_rank of {layout.max_rank}; restart the store with a larger one"
        if layout.is_max_rank_the_stores
        else f"the executor's maximum of {layout.max_rank}; restart the executor with a larger one "
        "(max_lora_rank)"
    )
    return invalid_argument(
        "RANK_TOO_LARGE",
        f"{module}: rank {rank} is above {limit}",
        module=module,
    )
