"""LoRA on experts spoiled in one way each: every one is refused with its own reason, naming what is wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_store.packs.reading import read_adapter
from rpc.errors import LorikeetError
from tests.support.store_adapters import lora_config, write_adapter
from tests.support.store_experts import (
    EXPERTS,
    HIDDEN,
    NAMES,
    PREFIX,
    WIDTH,
    Truth,
    alone,
    expert_lora,
    expert_pack_layout,
    named,
    nested,
    plain,
    solid,
)

E0, E1 = (f"model.layers.{layer}.mlp.experts" for layer in (0, 1))
INNER, OUTER = f"{PREFIX}{E0}.base_layer", f"{PREFIX}{E0}"
LORA = expert_lora()
BOTH = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
MODULES = {"target_modules": list(NAMES)}

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors], Mapping[str, np.ndarray | None]]


def case(tensors: Tensors, options: dict[str, Any], change: Any = None) -> tuple[Tensors, dict[str, Any]]:
    """Tensors to replace, add or (None) drop: a table, or what makes one of the good tensors."""
    changes: Any = change(tensors) if callable(change) else change or {}
    kept = {name: values for name, values in (tensors | changes).items() if values is not None}
    return kept, lora_config(**options)


def stacks(change: Any = None, **options: Any) -> tuple[Tensors, dict[str, Any]]:
    return case(nested(LORA, plain), BOTH | options, change)


def single(change: Any = None, **options: Any) -> tuple[Tensors, dict[str, Any]]:
    return case(alone(LORA), MODULES | options, change)


def projections(change: Any = None, **options: Any) -> tuple[Tensors, dict[str, Any]]:
    return case(named(LORA, {name: name for name in NAMES}), MODULES | options, change)


def without(*parts: str) -> Change:
    """Drops the tensors whose names have one of these in them."""
    return lambda tensors: {name: None for name in tensors if any(part in name for part in parts)}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def larger(experts: int, rank: int = 4) -> list[Truth]:
    """For another number of experts than the base has."""

    def resized(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, values])[:experts]

    return [{name: (resized(a), resized(b)) for name, (a, b) in layer.items()} for layer in expert_lora(rank)]


LORA_A, LORA_B = "lora_A.weight", "lora_B.weight"
ONE = f"{PREFIX}{E0}.3.up_proj"

# The adapter, the reason, and what the message must name.
CASES: dict[str, tuple[tuple[Tensors, dict[str, Any]], str, str]] = {
    # Some experts only.
    "an expert is missing": (
        single(without(".experts.2.")), "PARTIAL_EXPERTS", f"{E0}.2.gate_proj: the config",
    ),
    "one projection is missing": (
        single(without(ONE)), "PARTIAL_EXPERTS", f"only for 11 of 12 projections of {E0}",
    ),
    "the experts of a layer are missing": (single(without(E1)), "MISSING_TENSORS", f"{E1}.0.down_proj"),
    "no experts, but for their names": (
        case({}, {"target_modules": ["up_proj", "q_proj"]}, {
            f"{PREFIX}model.layers.{n}.self_attn.q_proj.{LORA_A}": ones(4, HIDDEN) for n in (0, 1)
        } | {f"{PREFIX}model.layers.{n}.self_attn.q_proj.{LORA_B}": ones(128, 4) for n in (0, 1)}),
        "MISSING_TENSORS",
        f"{E0}.0.up_proj",
    ),
    "no up to a gate": (single(without("up_proj")), "PARTIAL_EXPERTS", f"{E0}.0.up_proj"),
    "no w3 to a w1": (projections(without("up_proj")), "PARTIAL_EXPERTS", f"{E0}.0.up_proj"),
    "an expert that the config excludes": (
        single(exclude_modules=["experts.3.up_proj"]), "UNTARGETED_MODULE", f"{E0}.3.up_proj",
    ),
    "experts beside those that are named": (
        single(target_modules=["2.gate_proj", "2.up_proj", "2.down_proj"]), "UNTARGETED_MODULE", f"{E0}.0.",
    ),
    "no lora_B of an expert": (single({f"{ONE}.{LORA_B}": None}), "MISSING_PARTNER", "has no lora_B"),
    "one parameter of two": (
        stacks(without("base_layer")), "PARTIAL_EXPERTS", f"{E0}.0.gate_proj: the config targets it",
    ),
    "the inner parameter alone": (
        stacks(without("experts.lora_")), "MISSING_TENSORS", "experts.lora_A, of down_proj, is missing",
    ),
    "no lora_A of a stack": (stacks({f"{INNER}.{LORA_A}": None}), "MISSING_PARTNER", "has no lora_A"),
    "a stack of a layer is missing": (stacks(without(E1)), "MISSING_TENSORS", f"{E1}.0.down_proj"),
    # Another number of experts, another rank, other shapes.
    "an expert too many": (
        single({f"{PREFIX}{E0}.4.up_proj.{LORA_A}": ones(4, HIDDEN)}), "WRONG_EXPERTS", f"{E0} has 4 experts",
    ),
    "stacks of too many experts": (
        case(nested(larger(5, 3), plain), BOTH | {"r": 3}),
        "WRONG_EXPERTS",
        f"makes 5 experts of rank 3; {E0} has 4",
    ),
    "stacks of too many experts, or another rank": (
        case(nested(larger(7), plain), BOTH), "RANK_MISMATCH", "unless it is for 7 experts",
    ),
    "solid stacks of too many experts": (
        case(nested(larger(8), solid), BOTH), "WRONG_EXPERTS", "makes 8 experts of rank 4",
    ),
    "projections of too many experts": (
        case(named(larger(6), {name: name for name in NAMES}), MODULES), "WRONG_EXPERTS", "makes 6 experts",
    ),
    "projections of half the experts": (
        case(named(larger(2), {name: name for name in NAMES}), MODULES), "WRONG_EXPERTS", "makes 2 experts",
    ),
    "rows that do not divide": (
        stacks({f"{INNER}.{LORA_A}": ones(18, HIDDEN)}),
        "STACKED_RANK",
        "does not divide among the 4 experts",
    ),
    "columns that do not divide": (
        stacks({f"{OUTER}.{LORA_B}": ones(HIDDEN, 17)}), "STACKED_RANK", f"{OUTER}.{LORA_B} is [64, 17]",
    ),
    "stacks of another rank": (
        stacks(r=8), "RANK_MISMATCH", "has rank 4 for each of 4 experts, its config says 8",
    ),
    "shared projections of another rank": (
        projections(
            {
                f"{OUTER}.down_proj.{LORA_A}": ones(4, 5, WIDTH),
                f"{OUTER}.down_proj.{LORA_B}": ones(1, HIDDEN, 5),
            }
        ),
        "RANK_MISMATCH",
        "down_proj.lora_A.weight has rank 5",
    ),
    "one expert's stack": (
        case(nested(larger(1, 6), plain), BOTH | {"r": 6}), "WRONG_EXPERTS", "makes 1 experts of rank 6",
    ),
    "projections of another rank": (projections(r=3), "RANK_MISMATCH", "rank 4 for each of 4 experts"),
    "an expert of another rank": (
        single({f"{ONE}.{LORA_A}": ones(5, HIDDEN), f"{ONE}.{LORA_B}": ones(WIDTH, 5)}),
        "RANK_MISMATCH",
        f"{E0}.3.up_proj: its tensors have rank 5",
    ),
    "a rank above the maximum": (
        case(nested(expert_lora(65), plain), BOTH | {"r": 65}), "RANK_TOO_LARGE", f"{E0}: rank 65",
    ),
    "another hidden size": (
        stacks({f"{INNER}.{LORA_A}": ones(16, 32)}), "WRONG_SHAPE", "is [16, 32], this base needs [16, 64]",
    ),
    "another width": (
        stacks({f"{INNER}.{LORA_B}": ones(80, 16)}), "WRONG_SHAPE", "is [80, 16], this base needs [96, 16]",
    ),
    "down in the place of gate_up": (
        stacks(lambda t: {INNER + end: t[OUTER + end] for end in (f".{LORA_A}", f".{LORA_B}")}),
        "WRONG_SHAPE",
        "base_layer.lora_A.weight is [16, 48]",
    ),
    "another width of an expert": (
        single({f"{ONE}.{LORA_B}": ones(40, 4)}), "WRONG_SHAPE", "is [40, 4], this base needs [48, 4]",
    ),
    "a projection's stack of two dimensions": (
        projections(lambda t: {name: values.reshape(-1, values.shape[2]) for name, values in t.items()}),
        "WRONG_SHAPE",
        "is [16, 48], this base needs [4, 4, 48]",
    ),
    "another width of a projection's": (
        projections({f"{OUTER}.up_proj.{LORA_B}": ones(4, 40, 4)}),
        "WRONG_SHAPE",
        "this base needs [4, 48, 4]",
    ),
    "a stack of four dimensions": (
        stacks({f"{INNER}.{LORA_A}": ones(2, 2, 4, HIDDEN)}), "WRONG_SHAPE", "is [2, 2, 4, 64]",
    ),
    "a stack of none": (projections({f"{OUTER}.up_proj.{LORA_B}": ones()}), "WRONG_SHAPE", "is []"),
    # Two forms at once.
    "stacks and single experts": (
        stacks({f"{ONE}.{LORA_A}": ones(4, HIDDEN), f"{ONE}.{LORA_B}": ones(WIDTH, 4)}),
        "MIXED_EXPERTS",
        f"{E0}: the adapter has LoRA for these experts one by one and all in one tensor",
    ),
    "parameters and projections": (
        stacks(named(LORA, {"down_proj": "w2"})), "MIXED_EXPERTS", "as parameters and as projections",
    ),
    "gate_up_proj and up_proj": (
        projections(named(LORA, {"gate_up_proj": "gate_up_proj"})),
        "MIXED_EXPERTS",
        "for gate_up_proj and for",
    ),
    "an expert by two names": (
        single({f"{PREFIX}model.layers.0.block_sparse_moe.experts.3.w3.{LORA_A}": ones(4, HIDDEN)}),
        "DUPLICATE_TENSOR",
        f"{E0}.3.up_proj has two tensors",
    ),
    # What the config says.
    "a parameter of another model": (
        stacks(target_parameters=[*BOTH["target_parameters"], "mlp.experts.gate_up_bias"]),
        "UNKNOWN_TARGET",
        "target_parameters: 'mlp.experts.gate_up_bias' names nothing",
    ),
    "stacks that no option names": (
        stacks(target_parameters=None, target_modules=["q_proj"]), "MISSING_TENSORS", "self_attn.q_proj",
    ),
    "a stack that the config does not name": (
        stacks(target_parameters=["gate_up_proj"]), "UNTARGETED_MODULE", f"{E0}.0.down_proj",
    ),
    "a router without tensors": (
        stacks(target_parameters=[*BOTH["target_parameters"], "gate.weight"]), "MISSING_TENSORS", "mlp.gate",
    ),
    "a pattern for nothing": (
        stacks(rank_pattern={r"experts\.2\.gate_up_proj": 8}),
        "UNUSED_PATTERN",
        r"experts\\.2\\.gate_up_proj",
    ),
    "DoRA on stacks": (stacks(use_dora=True), "UNSUPPORTED_OPTION", "use_dora is not served on experts"),
    "DoRA on single experts": (
        single(use_dora=True), "UNSUPPORTED_OPTION", "use_dora is not served on experts",
    ),
    "a magnitude of a stack": (
        stacks({f"{OUTER}.lora_magnitude_vector": ones(HIDDEN)}), "UNSUPPORTED_OPTION", "use_dora",
    ),
    "lora_bias on experts": (
        single(lora_bias=True), "UNSUPPORTED_OPTION", "lora_bias is not served on experts",
    ),
    # Tensors and values.
    "a copy of the base's experts": (
        stacks({f"{OUTER}.base_layer.weight": ones(4, 96, 64)}),
        "UNKNOWN_TENSOR",
        "lora_A and lora_B, and nothing",
    ),
    "a third parameter": (
        stacks({f"{OUTER}.base_layer.base_layer.{LORA_A}": ones(4, 4)}),
        "UNKNOWN_MODULE",
        "base_layer.base_layer",
    ),
    "an embedding's LoRA": (
        stacks({f"{OUTER}.lora_embedding_A": ones(4, 4)}), "UNKNOWN_TENSOR", "nothing else",
    ),
    "an unknown projection": (
        projections({f"{OUTER}.w4.{LORA_A}": ones(4, 4, HIDDEN)}), "UNKNOWN_MODULE", f"{E0}.w4",
    ),
    "an unknown projection of one expert": (
        single({f"{PREFIX}{E0}.0.w4.{LORA_A}": ones(4, HIDDEN)}), "UNKNOWN_MODULE", f"{E0}.0.w4",
    ),
    "an expert of no number": (
        single({f"{PREFIX}{E0}.01.up_proj.{LORA_A}": ones(4, HIDDEN)}), "UNKNOWN_MODULE", f"{E0}.01.up_proj",
    ),
    "experts of a layer that is not there": (
        stacks({f"{PREFIX}model.layers.2.mlp.experts.{LORA_A}": ones(4, 4)}),
        "UNKNOWN_MODULE",
        "no experts at",
    ),
    "double precision": (
        stacks(lambda t: {f"{INNER}.{LORA_A}": t[f"{INNER}.{LORA_A}"].astype("f8")}),
        "UNSUPPORTED_DTYPE",
        "is F64",
    ),
    "a NaN": (
        stacks({f"{OUTER}.{LORA_B}": np.full((HIDDEN, 4 * EXPERTS), np.nan, "f4")}), "NOT_FINITE", LORA_B,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_spoiled_experts_are_refused_with_their_own_reason(tmp_path: Path, name: str) -> None:
    (tensors, config), reason, named = CASES[name]
    with pytest.raises(LorikeetError) as caught:
        read_adapter(write_adapter(tmp_path, tensors, config), expert_pack_layout())
    assert caught.value.reason == reason
    assert named in caught.value.message
    unimplemented = reason.startswith("UNSUPPORTED")
    assert caught.value.code.name == ("UNIMPLEMENTED" if unimplemented else "INVALID_ARGUMENT")


def test_what_they_were_before_is_served(tmp_path: Path) -> None:
    for number, (tensors, config) in enumerate((stacks(), single(), projections())):
        assert read_adapter(
            write_adapter(tmp_path / str(number), tensors, config), expert_pack_layout()
        ).slices


def test_values_that_the_packs_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    from lorikeet.v1 import layout_pb2

    tensors, config = stacks({f"{OUTER}.{LORA_B}": np.full((HIDDEN, 4 * EXPERTS), 1e5, "f4")})
    layout = expert_pack_layout(dtype=layout_pb2.TENSOR_TYPE_FLOAT16)
    with pytest.raises(LorikeetError) as caught:
        read_adapter(write_adapter(tmp_path, tensors, config), layout)
    assert caught.value.reason == "OUT_OF_RANGE"
    assert f"{OUTER}.{LORA_B}" in caught.value.message
