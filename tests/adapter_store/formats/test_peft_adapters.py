"""Adapters that PEFT itself has written, packed and compared with what PEFT computes."""

import warnings
from typing import Any

import numpy as np
import pytest

from adapter_store.formats.layout import PackLayout, read_layout
from adapter_store.packs.reading import read_adapter
from lorikeet.v1 import layout_pb2
from rpc.errors import LorikeetError
from tests.support.store_adapters import packed

MODULES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
ATTENTION, MLP = MODULES["self_attn"], MODULES["mlp"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("base")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def load_base(folder):
    from transformers import Qwen3ForCausalLM

    return Qwen3ForCausalLM.from_pretrained(folder)


def layout_of(model) -> PackLayout:
    """The layout that an executor would publish for a model."""
    layout = layout_pb2.Layout(
        pack_format_version=2,
        base_name="tiny",
        compute_dtype=layout_pb2.TENSOR_TYPE_FLOAT32,
        tensor_parallel_size=1,
        alignment_bytes=128,
        rank_multiple=8,
        max_rank=64,
    )
    for layer in range(2):
        for part, names in MODULES.items():
            for name in names:
                linear = model.get_submodule(f"model.layers.{layer}.{part}.{name}")
                layout.slices.add(
                    module=f"model.layers.{layer}.{part}.{name}",
                    kind=layout_pb2.SLICE_KIND_LINEAR,
                    in_features=linear.in_features,
                    out_features=linear.out_features,
                    has_bias=linear.bias is not None,
                )
    layout.slices.add(
        module="model.embed_tokens",
        kind=layout_pb2.SLICE_KIND_EMBEDDING,
        in_features=96,
        out_features=32,
        is_replaceable=True,
    )
    layout.slices.add(
        module="lm_head",
        kind=layout_pb2.SLICE_KIND_LINEAR,
        in_features=32,
        out_features=96,
        is_replaceable=True,
    )
    return read_layout(layout)


def train(base, folder, **options):
    """Saves an adapter with random weights; returns the PEFT model."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16} | options
    model = get_peft_model(load_base(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return model


def packed_deltas(folder, layout) -> dict[str, np.ndarray]:
    """scaling * B @ A of every slice, from the pack's bytes alone."""
    manifest, data = packed(folder, layout)
    deltas = {}
    for placement in manifest.slices:
        slice_ = layout.slices[placement.slice]
        rank = placement.padded_rank
        a = np.frombuffer(data, "<f4", rank * slice_.inputs, placement.a_offset)
        b = np.frombuffer(data, "<f4", rank * slice_.outputs, placement.b_offset)
        a = a.reshape(slice_.inputs, rank).T if slice_.is_embedding else a.reshape(rank, slice_.inputs)
        deltas[slice_.module] = np.float32(placement.scaling) * (b.reshape(slice_.outputs, rank) @ a)
    return deltas


def peft_deltas(model) -> dict[str, np.ndarray]:
    """What PEFT adds to the weight of every module; of an embedding transposed, as [hidden, vocabulary]."""
    from peft.tuners.lora import Embedding, Linear

    deltas = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, Linear | Embedding):
            delta = module.get_delta_weight("default").detach().numpy()
            deltas[name] = delta.T if isinstance(module, Embedding) else delta
    return deltas


SERVED = {
    "attention": {"target_modules": list(ATTENTION)},
    "mlp": {"target_modules": list(MLP), "r": 5, "lora_alpha": 3},
    "all linear": {"target_modules": "all-linear"},
    "one regex": {"target_modules": r".*layers\.1\..*\.(q|up)_proj"},
    "head": {"target_modules": ["lm_head"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["down_proj", "q_proj", "v_proj"],
        "rank_pattern": {r".*layers\.1\.mlp\.down_proj": 16, "q_proj": 4},
        "alpha_pattern": {"v_proj": 32, "q_proj": 1},
    },
    "layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.k_proj"]},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("form", SERVED)
def test_packs_hold_what_peft_computes(base, tmp_path, form):
    model = train(base, tmp_path, **SERVED[form])
    ours, theirs = packed_deltas(tmp_path, layout_of(load_base(base))), peft_deltas(model)
    assert ours.keys() == theirs.keys()
    for module, delta in theirs.items():
        assert np.abs(delta).max() > 0.1
        np.testing.assert_allclose(ours[module], delta, rtol=2e-5, atol=2e-5, err_msg=module)


FORMS = {
    "dora": {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj", "lm_head"], "lora_bias": True, "bias": "all"},
    "saved": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "tied ends": {
        "target_modules": ["v_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "all at once": {
        "target_modules": ["q_proj", "k_proj", "up_proj", "lm_head"],
        "exclude_modules": ["layers.0.self_attn.k_proj"],
        "use_dora": True,
        "use_rslora": True,
        "bias": "lora_only",
        "rank_pattern": {"up_proj": 3},
        "alpha_pattern": {"q_proj": 2},
        "modules_to_save": ["embed_tokens"],
    },
}
PEFT_PARTS = {
    "magnitude": ("lora_magnitude_vector.default.weight", "lora_magnitude_vector.default"),
    "lora_bias": ("lora_B.default.bias",),
    "bias": ("base_layer.bias", "bias"),
    "weight": ("modules_to_save.default.weight",),
}


def biased_base(folder, tied):
    """A model with biases in q, k and v."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_bring_what_peft_trained(tmp_path, form):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2ForCausalLM

    def load():
        return Qwen2ForCausalLM.from_pretrained(base)

    base = biased_base(tmp_path / "base", tied=form == "tied ends")
    torch.manual_seed(0)
    model = get_peft_model(load(), LoraConfig(**({"r": 8, "lora_alpha": 16} | FORMS[form])))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "adapter")
    checked = read_adapter(tmp_path / "adapter", layout_of(load()))
    state = {name.removeprefix("base_model.model."): value for name, value in model.state_dict().items()}
    found = set()
    for adapted in checked.slices:
        for part, entry in adapted.tensors():
            if part in PEFT_PARTS:
                names = [f"{adapted.slice.module}.{suffix}" for suffix in PEFT_PARTS[part]]
                value = next(state[name] for name in names if name in state)
                np.testing.assert_array_equal(checked.files.array(entry), value.numpy(), err_msg=names[0])
                found.add(part)
    wanted = {
        "dora": {"magnitude"},
        "lora_bias": {"lora_bias", "bias"},
        "saved": {"weight"},
        "tied ends": {"weight"},
        "all at once": {"magnitude", "bias", "weight"},
    }
    assert found == wanted[form]
    trained = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "base_layer.weight" not in name
    }
    assert len(trained) <= sum(len(list(adapted.tensors())) for adapted in checked.slices)


REFUSED = {
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "trainable_token_indices": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
    "alora_invocation_tokens": {"target_modules": ["q_proj"], "alora_invocation_tokens": [5]},
    "init_lora_weights": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "layer_replication": {"target_modules": ["q_proj"], "layer_replication": [[0, 1], [0, 2]]},
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_peft_can_and_we_cannot_is_refused_by_name(base, tmp_path, option):
    train(base, tmp_path, **REFUSED[option])
    with pytest.raises(LorikeetError) as caught:
        read_adapter(tmp_path, layout_of(load_base(base)))
    assert caught.value.code.name == "UNIMPLEMENTED"
    assert caught.value.metadata["option"] == option
