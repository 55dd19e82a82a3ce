"""LoRA on experts that PEFT itself has written, packed and compared with what PEFT computes for each."""

import warnings
from typing import Any

import numpy as np
import pytest

from adapter_store.formats.layout import PackLayout
from adapter_store.packs.reading import read_adapter
from tests.support.store_adapters import packed
from tests.support.store_experts import (
    EXPERTS,
    HIDDEN,
    KEY,
    QUERY,
    WIDTH,
    expert_pack_layout,
    packed_deltas,
)

FAMILIES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe")
HAVE_HEAD_DIM = ("qwen3_moe", "mixtral")


def load_base(family: str, **options: Any) -> Any:
    """A tiny model with random weights; its shapes are those of the layout."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {
        "vocab_size": 256,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": QUERY // 32,
        "num_key_value_heads": KEY // 32,
        "head_dim": 32,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "moe_intermediate_size": WIDTH,
        "intermediate_size": 2 * WIDTH if family == "qwen3_moe" else WIDTH,
        "shared_expert_intermediate_size": WIDTH,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    if family not in HAVE_HEAD_DIM:
        del settings["head_dim"]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(settings | options)))


def layout_of(family: str, **options: Any) -> PackLayout:
    heads = {} if family in HAVE_HEAD_DIM else {"query": HIDDEN, "key": HIDDEN // 2}
    return expert_pack_layout(shared=family == "qwen2_moe", **heads, **options)


def train(base: Any, folder: Any, **options: Any) -> Any:
    """Saves an adapter with random weights; returns the PEFT model."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": []} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        model.save_pretrained(folder)
    return model


def peft_deltas(model: Any) -> dict[str, np.ndarray]:
    """What PEFT adds to every weight, by the slice's module, for experts each by itself."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import ParamWrapper

    deltas = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, Linear | ParamWrapper):
            delta = module.get_delta_weight("default").detach().numpy()
            name = name.removesuffix(".base_layer")
            if not isinstance(module, ParamWrapper) or delta.ndim == 2:
                deltas[name] = delta
            elif module.parameter_name == "down_proj":
                deltas |= {f"{name}.{e}.down_proj": delta[e] for e in range(len(delta))}
            else:
                for half, part in enumerate(("gate_proj", "up_proj")):
                    rows = slice(half * WIDTH, (half + 1) * WIDTH)
                    deltas |= {f"{name}.{e}.{part}": delta[e, rows] for e in range(len(delta))}
    return deltas


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for module, delta in theirs.items():
        assert np.abs(delta).max() > 0.1
        np.testing.assert_allclose(ours[module], delta, rtol=2e-5, atol=2e-5, err_msg=module)


GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
FORMS: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": [GATE_UP, DOWN]},
    "both, down first": {"target_parameters": [DOWN, GATE_UP]},
    "gate_up only": {"target_parameters": [GATE_UP]},
    "down only": {"target_parameters": [DOWN]},
    "with attention": {"target_modules": ["q_proj", "o_proj"], "target_parameters": [GATE_UP, DOWN]},
    "with the router": {"target_parameters": [GATE_UP, "mlp.gate.weight"]},
    "the router alone": {"target_parameters": ["gate.weight"]},
    "ranks and scalings of their own": {
        "target_modules": ["v_proj"],
        "target_parameters": [GATE_UP, DOWN, "mlp.gate.weight"],
        "use_rslora": True,
        "rank_pattern": {
            r"layers\.0\.mlp\.experts\.down_proj": 9,
            "gate_up_proj": 3,
            "v_proj": 2,
            "gate.weight": 5,
        },
        "alpha_pattern": {r".*layers\.1\..*experts\.gate_up_proj": 20, "mlp.gate.weight": 7},
    },
    "another choice in each layer": {
        "target_parameters": [
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.1.mlp.experts.gate_up_proj",
            "layers.1.mlp.experts.down_proj",
        ]
    },
    "what holds for modules only": {
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": [GATE_UP, DOWN],
        "layers_to_transform": [1],
        "exclude_modules": ["v_proj", "mlp.experts", "gate_up_proj"],
    },
    "one rank": {"r": 1, "target_parameters": [GATE_UP, DOWN]},
}


@pytest.mark.parametrize("form", FORMS)
def test_stacked_experts_are_what_peft_computes(tmp_path, form):
    model = train(load_base("qwen3_moe"), tmp_path, **FORMS[form])
    compare(packed_deltas(tmp_path, layout_of("qwen3_moe")), peft_deltas(model))


CONVERTED: dict[str, list[str]] = {
    "qwen3_moe": ["gate_proj", "up_proj", "down_proj"],
    "olmoe": ["gate_proj", "up_proj", "down_proj", "v_proj"],
    "mixtral": ["w1", "w2", "w3", "gate", "k_proj"],
}


@pytest.mark.parametrize("family", CONVERTED)
def test_modules_that_peft_made_parameters_of(tmp_path, family):
    """Their rank doubles: gate and up have one stack, that has the rank of both."""
    model = train(load_base(family), tmp_path, target_modules=CONVERTED[family])
    layout = layout_of(family)
    compare(packed_deltas(tmp_path, layout), peft_deltas(model))
    manifest, _ = packed(tmp_path, layout)
    ranks = {layout.slices[p.slice].module.rpartition("experts.")[2]: p.rank for p in manifest.slices}
    assert (ranks["1.gate_proj"], ranks["1.up_proj"], ranks["1.down_proj"]) == (8, 8, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear(tmp_path, family):
    model = train(load_base(family), tmp_path, target_modules="all-linear")
    compare(packed_deltas(tmp_path, layout_of(family)), peft_deltas(model))


def test_shared_experts_and_their_gate(tmp_path):
    model = train(
        load_base("qwen2_moe"),
        tmp_path,
        target_modules=["gate_proj", "up_proj", "down_proj", "shared_expert_gate"],
        target_parameters=[GATE_UP, DOWN, "mlp.gate.weight"],
    )
    ours = packed_deltas(tmp_path, layout_of("qwen2_moe"))
    compare(ours, peft_deltas(model))
    assert ours["model.layers.1.mlp.shared_expert_gate"].shape == (1, HIDDEN)


@pytest.mark.parametrize("targets", [["gate_proj", "up_proj", "down_proj", "k_proj"], r".*\.(up|q)_proj"])
def test_names_that_mean_the_shared_expert_only(tmp_path, targets):
    """PEFT makes no parameters of a Qwen2-MoE's targets, and its experts are no modules."""
    model = train(load_base("qwen2_moe"), tmp_path, target_modules=targets)
    layout = layout_of("qwen2_moe")
    ours = packed_deltas(tmp_path, layout)
    compare(ours, peft_deltas(model))
    assert not any(".experts." in module for module in ours)
    (note,) = (note for note in read_adapter(tmp_path, layout).notes if "expert" in note)
    assert note.startswith("no expert has LoRA")


def test_dense_layers_among_them(tmp_path):
    base = load_base("qwen3_moe", mlp_only_layers=[0])
    model = train(base, tmp_path, target_modules=["q_proj"], target_parameters=["gate_up_proj", "down_proj"])
    compare(packed_deltas(tmp_path, expert_pack_layout(dense_layers=(0,))), peft_deltas(model))


def test_what_gate_and_up_share_is_packed_once(tmp_path):
    train(load_base("qwen3_moe"), tmp_path, target_parameters=[GATE_UP, DOWN])
    layout = layout_of("qwen3_moe")
    manifest, _ = packed(tmp_path, layout)
    at = {layout.slices[p.slice].module: p for p in manifest.slices}
    offsets = set()
    for experts in layout.experts.values():
        for gate, up, down in experts.slices:
            assert at[gate.module].a_offset == at[up.module].a_offset
            offsets |= {at[s.module].a_offset for s in (gate, down)}
            offsets |= {at[s.module].b_offset for s in (gate, up, down)}
    assert len(offsets) == 2 * EXPERTS * 5
    rank = 8  # 4, padded
    assert manifest.total_bytes == 2 * EXPERTS * 4 * rank * (HIDDEN + 2 * WIDTH + WIDTH + HIDDEN)


def four_model(block: str, names: tuple[str, str, str]) -> Any:
    """The modules of a MoE as transformers 4 had them: a linear layer for each projection of each expert."""
    from torch import nn

    gate, up, down = names

    def expert() -> nn.Module:
        return nn.ModuleDict(
            {
                gate: nn.Linear(HIDDEN, WIDTH, bias=False),
                up: nn.Linear(HIDDEN, WIDTH, bias=False),
                down: nn.Linear(WIDTH, HIDDEN, bias=False),
            }
        )

    def layer() -> nn.Module:
        experts = nn.ModuleList(expert() for _ in range(EXPERTS))
        gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        return nn.ModuleDict({block: nn.ModuleDict({"gate": gate, "experts": experts})})

    return nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(layer() for _ in range(2))})})


FOUR = {
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
}


@pytest.mark.parametrize("family", FOUR)
def test_experts_one_by_one(tmp_path, family):
    """As PEFT saves them, and as PEFT itself turns them into stacks when it loads them today."""
    from peft import PeftModel

    block, names = FOUR[family]
    first, last = names[0], names[2]
    model = train(
        four_model(block, names),
        tmp_path,
        task_type=None,
        target_modules=[*names, "gate"],
        rank_pattern={last: 2, r"layers\.1\..*\.gate": 6},
        alpha_pattern={rf"{block}\.experts\.2\.{first}": 5},
    )
    own = dict(zip(names, ("gate_proj", "up_proj", "down_proj"), strict=True))
    theirs = {}
    for module, delta in peft_deltas(model).items():
        head, _, name = module.replace("block_sparse_moe", "mlp").rpartition(".")
        theirs[f"{head}.{own.get(name, name)}"] = delta
    compare(packed_deltas(tmp_path, layout_of(family)), theirs)

    train(four_model(block, names), tmp_path / "even", task_type=None, target_modules=list(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(load_base(family), tmp_path / "even")
    compare(packed_deltas(tmp_path / "even", layout_of(family)), peft_deltas(loaded))


def test_single_experts(tmp_path):
    model = train(
        four_model(*FOUR["qwen3_moe"]),
        tmp_path,
        task_type=None,
        target_modules=r".*layers\.1\..*experts\.[02]\.(gate|down)_proj",
        exclude_modules=["experts.2.gate_proj"],
    )
    ours = packed_deltas(tmp_path, layout_of("qwen3_moe"))
    compare(ours, peft_deltas(model))
    assert len(ours) == 3
