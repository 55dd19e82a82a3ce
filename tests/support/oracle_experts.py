"""Random adapters of models with experts, in the forms that trainers write, and each one's twin for PEFT.

transformers 5 holds all experts of a layer in one parameter, so that PEFT computes their LoRA as
`target_parameters`. Every adapter is therefore written twice: as its trainer would, for the store, and as
PEFT's parameters, for the oracle.

Legend: E experts, R rank, K in features, N out features.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from executor.model.config import ModelConfig
from executor.model.layout import NamedSlice, named_slices

ALPHA = 12

_ATTENTION = r"self_attn\.[qkvo]_proj"
_MLPS = r"mlp\.(.*\.)?(gate|up|down)_proj"  # experts, and dense and shared MLPs, which have the same names
_EXPERTS = r"mlp\.experts\..*"
_GATE_UP, _DOWN = r"mlp\.experts\.\d+\.(gate|up)_proj", r"mlp\.experts\.\d+\.down_proj"


class Lora(NamedTuple):
    """lora_a `[R, K]` and lora_b `[N, R]`; tensors that are shared are the same objects."""

    a: Tensor
    b: Tensor


Loras = dict[str, Lora]
"""By canonical module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """`touches`: which modules, by their path in a layer. `shares`: what experts have in common."""

    rank: int
    touches: str
    write: Callable[[Path, Loras, "Form", ModelConfig], None]
    shares: str = ""  # "a of gate and up", or "outer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAdapter:
    """`folder` for the store, `twin` for PEFT; they mean the same."""

    folder: Path
    twin: Path


def make_expert_adapters(
    checkpoint: Path, folder: Path, names: Iterable[str] | None = None
) -> dict[str, ExpertAdapter]:
    """One adapter of each form."""
    config, made = ModelConfig.load(checkpoint), {}
    for seed, name in enumerate(names or FORMS):
        form = FORMS[name]
        torch.manual_seed(200 + seed)
        loras = _random_loras(config, form)
        adapter = ExpertAdapter(folder=folder / name, twin=folder / f"{name} for PEFT")
        form.write(adapter.folder, loras, form, config)
        write_parameters(adapter.twin, loras, form, config)
        made[name] = adapter
    return made


def write_per_expert(folder: Path, loras: Loras, form: Form, config: ModelConfig) -> None:
    """As transformers 4 and PEFT: each projection of each expert is a module."""
    mixtral = config.family == "mixtral"
    tensors = {}
    for module, lora in loras.items():
        path = _mixtral_path(module) if mixtral else module
        tensors |= {f"{path}.lora_A.weight": lora.a, f"{path}.lora_B.weight": lora.b}
    targets = sorted({name.rpartition(".")[0].rpartition(".")[0].rpartition(".")[2] for name in tensors})
    _write(folder, tensors, r=form.rank, target_modules=targets)


def write_parameters(folder: Path, loras: Loras, form: Form, config: ModelConfig) -> None:
    """As transformers 5 and PEFT's `target_parameters`, under which everything but attention goes."""
    tensors, ranks = _plain(loras), {}
    plain = [module for module in loras if ".experts." not in module]
    modules = [module for module in plain if ".self_attn." in module]
    parameters = [f"{module}.weight" for module in plain if ".self_attn." not in module]
    for layer in range(config.layers):
        path = f"model.layers.{layer}.mlp.experts"
        stacks = _stacks(loras, path, config)
        for parameter, (a_EKR, b_ENR) in stacks.items():
            nested = f"{path}.base_layer" if parameter == "gate_up_proj" and len(stacks) == 2 else path
            tensors[f"{nested}.lora_A.weight"] = a_EKR.flatten(0, 1)
            tensors[f"{nested}.lora_B.weight"] = b_ENR.permute(1, 2, 0).flatten(1, 2)
            parameters.append(f"{path}.{parameter}")
            ranks[f"{path}.{parameter}"] = a_EKR.shape[1]
    patterns = {name: rank for name, rank in ranks.items() if rank != form.rank}
    _write(
        folder,
        tensors,
        r=form.rank,
        target_modules=modules,
        target_parameters=parameters,
        rank_pattern=patterns,
        alpha_pattern={name: ALPHA * rank // form.rank for name, rank in patterns.items()},
    )


def write_transposed(folder: Path, loras: Loras, form: Form, config: ModelConfig) -> None:
    """As PEFT's `target_parameters` up to 0.19.0, which took experts as `[E, K, N]`: A and B swap places."""
    tensors, ranks = {}, set()
    for layer in range(config.layers):
        path = f"model.layers.{layer}.mlp.experts"
        for parameter, (a_EKR, b_ENR) in _stacks(loras, path, config).items():
            nested = f"{path}.base_layer" if parameter == "gate_up_proj" else path
            tensors[f"{nested}.lora_A.weight"] = b_ENR.transpose(1, 2).flatten(0, 1)
            tensors[f"{nested}.lora_B.weight"] = a_EKR.permute(2, 1, 0).flatten(1, 2)
            ranks.add(a_EKR.shape[1])
    assert ranks == {form.rank}
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    _write(
        folder, tensors, r=form.rank, target_modules=[], target_parameters=parameters, peft_version="0.19.0"
    )


def write_named_stacks(folder: Path, loras: Loras, form: Form, config: ModelConfig) -> None:
    """One tensor for all experts of a projection, `[E, R, K]` and `[E, N, R]`, or `[1, ...]` where they share
    it.
    """
    tensors = _plain(loras)
    for layer in range(config.layers):
        path = f"model.layers.{layer}.mlp.experts"
        experts = _experts_of(loras, path, config)
        for name in ("gate_proj", "up_proj", "down_proj") if experts else ():
            found = [loras[f"{path}.{e}.{name}"] for e in experts]
            for part, all_ in zip("AB", zip(*found, strict=True), strict=True):
                shared = len({id(tensor) for tensor in all_}) == 1
                tensors[f"{path}.{name}.lora_{part}.weight"] = torch.stack(all_[:1] if shared else all_)
    _write(folder, tensors, r=form.rank, target_modules=["gate_proj", "up_proj", "down_proj"])


FORMS = {
    "attention": Form(rank=4, touches=_ATTENTION, write=write_per_expert),
    "router": Form(rank=6, touches=r"mlp\.gate", write=write_parameters),
    "per expert": Form(rank=8, touches=_MLPS, write=write_per_expert),
    "everything": Form(rank=3, touches=".*", write=write_per_expert),
    "stacked": Form(
        rank=8, touches=f"{_ATTENTION}|{_EXPERTS}", write=write_parameters, shares="a of gate and up"
    ),
    "stacked gate_up": Form(rank=24, touches=_GATE_UP, write=write_parameters, shares="a of gate and up"),
    "stacked down": Form(rank=2, touches=_DOWN, write=write_parameters),
    "transposed": Form(rank=5, touches=_EXPERTS, write=write_transposed, shares="a of gate and up"),
    "shared outer": Form(rank=16, touches=_MLPS, write=write_named_stacks, shares="outer"),
}


def _random_loras(config: ModelConfig, form: Form) -> Loras:
    loras: Loras = {}
    outer: dict[str, Tensor] = {}
    for named in named_slices(config)[:-2]:
        _, layer, path = re.split(r"layers\.(\d+)\.", named.module)
        if not re.fullmatch(form.touches, path):
            continue
        a_RK, b_NR = _random(form.rank, named, "a"), _random(form.rank, named, "b")
        if form.shares and ".experts." in named.module:
            name = path.rpartition(".")[2]
            is_down, expert = name == "down_proj", path.rpartition(".")[0]
            if form.shares == "outer":
                key = f"{layer} {'down' if is_down else 'gate and up'}"
                if is_down:
                    b_NR = outer.setdefault(key, b_NR)
                else:
                    a_RK = outer.setdefault(key, a_RK)
            elif not is_down:
                a_RK = outer.setdefault(f"{layer} {expert}", a_RK)
        loras[named.module] = Lora(a_RK, b_NR)
    return loras


def _random(rank: int, named: NamedSlice, part: str) -> Tensor:
    shape = named.shape
    rows, columns = (rank, shape.in_features) if part == "a" else (shape.out_features, rank)
    return torch.randn(rows, columns) * 0.7 * columns**-0.5


def _plain(loras: Loras) -> dict[str, Tensor]:
    """Tensors of all modules but the experts."""
    return {
        f"{module}.lora_{part.upper()}.weight": getattr(lora, part)
        for module, lora in loras.items()
        for part in "ab"
        if ".experts." not in module
    }


def _stacks(loras: Loras, path: str, config: ModelConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """A layer's experts: parameter -> (A `[E, R, K]`, B `[E, N, R]`). Where gate and up have an A of their
    own, both stand in A of twice the rank, and B is block-diagonal.
    """
    stacks: dict[str, tuple[Tensor, Tensor]] = {}
    experts = _experts_of(loras, path, config)
    if experts and f"{path}.0.gate_proj" in loras:
        pairs = []
        for e in experts:
            gate, up = loras[f"{path}.{e}.gate_proj"], loras[f"{path}.{e}.up_proj"]
            if gate.a is up.a:
                pairs.append((gate.a, torch.cat((gate.b, up.b))))
            else:
                pairs.append((torch.cat((gate.a, up.a)), torch.block_diag(gate.b, up.b)))
        stacks["gate_up_proj"] = _stacked(pairs)
    if experts and f"{path}.0.down_proj" in loras:
        stacks["down_proj"] = _stacked([loras[f"{path}.{e}.down_proj"] for e in experts])
    return stacks


def _stacked(pairs: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


def _experts_of(loras: Loras, path: str, config: ModelConfig) -> list[int]:
    count = config.experts.count if config.experts is not None else 0
    return [e for e in range(count) if any(name.startswith(f"{path}.{e}.") for name in loras)]


def _mixtral_path(module: str) -> str:
    module = module.replace(".mlp.", ".block_sparse_moe.")
    for ours, theirs in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        module = re.sub(rf"(experts\.\d+)\.{ours}", rf"\1.{theirs}", module)
    return module


def _write(folder: Path, tensors: Mapping[str, Tensor], **options: Any) -> None:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "lora_alpha": ALPHA, "peft_version": "0.21.2"}
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    save_file(
        {f"base_model.model.{name}": tensor.clone().contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
