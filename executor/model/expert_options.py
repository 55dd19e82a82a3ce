"""What a checkpoint's `config.json` says about its experts, for each family that has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from executor.model.options import flag, integer
from kernels.moe.routing import RouterForm


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    """Where the families with experts differ from one another. None: the family has no such option."""

    width: str
    default_width: int
    default_count: int
    default_chosen: int
    always_normalised: bool = False
    default_shared_width: int | None = None
    has_dense_layers: bool = False


EXPERT_FAMILIES = {
    "qwen2_moe": _Experts(
        width="moe_intermediate_size",
        default_width=1408,
        default_count=60,
        default_chosen=4,
        default_shared_width=5632,
        has_dense_layers=True,
    ),
    "qwen3_moe": _Experts(
        width="moe_intermediate_size",
        default_width=768,
        default_count=128,
        default_chosen=8,
        has_dense_layers=True,
    ),
    "mixtral": _Experts(
        width="intermediate_size",
        default_width=14336,
        default_count=8,
        default_chosen=2,
        always_normalised=True,
    ),
    "olmoe": _Experts(width="intermediate_size", default_width=2048, default_count=64, default_chosen=8),
}

_COUNTS = ("num_experts", "num_local_experts")  # both spellings are read by all of them

# Of a router's training, without effect on a forward pass.
_TRAINING = {"output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """Each token goes through `chosen` of `count` experts of `width`, and, where the family has one, through
    a shared expert of `shared_width`. `layers`: which layers have experts; the others are dense.
    """

    count: int
    chosen: int
    width: int
    form: RouterForm
    shared_width: int | None
    layers: tuple[bool, ...]

    @classmethod
    def parse(cls, raw: Mapping[str, Any], name: str, layers: int) -> "ExpertsConfig | None":
        """None for a family without experts. Raises ValueError naming the option that is malformed or not
        supported.
        """
        family = EXPERT_FAMILIES.get(name)
        if family is None:
            return None
        counts = {option: integer(raw, option) for option in _COUNTS if raw.get(option) is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"num_experts and num_local_experts contradict each other: {counts}")
        count = next(iter(counts.values()), family.default_count)
        chosen = integer(raw, "num_experts_per_tok", default=family.default_chosen)
        if chosen > count:
            raise ValueError(f"num_experts_per_tok {chosen} is more than the {count} experts that there are")
        normalised = flag(raw, "norm_topk_prob", default=family.always_normalised)
        if family.always_normalised and not normalised:
            raise ValueError(f"norm_topk_prob false is not supported for {name} checkpoints")
        shared_width = family.default_shared_width
        if shared_width is not None:
            shared_width = integer(raw, "shared_expert_intermediate_size", default=shared_width)
        return cls(
            count=count,
            chosen=chosen,
            width=integer(raw, family.width, default=family.default_width),
            form=RouterForm.NORMALISED if normalised else RouterForm.SHARES,
            shared_width=shared_width,
            layers=_sparse_layers(raw, layers) if family.has_dense_layers else (True,) * layers,
        )

    @staticmethod
    def options_of(name: str) -> set[str]:
        """Options that `parse` reads, or that have no effect."""
        family = EXPERT_FAMILIES.get(name)
        if family is None:
            return set()
        options = {*_COUNTS, "num_experts_per_tok", "norm_topk_prob", family.width} | _TRAINING
        if family.has_dense_layers:
            options |= {"decoder_sparse_step", "mlp_only_layers"}
        if family.default_shared_width is not None:
            options.add("shared_expert_intermediate_size")
        return options


def _sparse_layers(raw: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    step = integer(raw, "decoder_sparse_step", default=1)
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in dense):
        raise ValueError(f"mlp_only_layers must be a list of layers' numbers, got {dense!r}")
    return tuple((layer + 1) % step == 0 and layer not in dense for layer in range(layers))
