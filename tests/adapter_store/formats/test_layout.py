"""Layouts with experts, as the store reads them."""

import pytest

from adapter_store.formats.layout import read_layout
from rpc.errors import LorikeetError
from tests.support.store_experts import EXPERTS, expert_layout


def test_experts_are_found_by_layer():
    layout = read_layout(expert_layout(shared=True))
    assert list(layout.experts) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    experts = layout.experts["model.layers.1.mlp.experts"]
    assert experts.count == EXPERTS
    assert [s.module for s in experts.slices[3]] == [
        f"model.layers.1.mlp.experts.3.{name}" for name in ("gate_proj", "up_proj", "down_proj")
    ]
    assert sum(slice_.is_expert for slice_ in layout.slices) == 2 * EXPERTS * 3
    assert not layout.by_module["model.layers.0.mlp.shared_expert.up_proj"].is_expert


def test_dense_layers_have_none():
    layout = read_layout(expert_layout(dense_layers=(0,)))
    assert list(layout.experts) == ["model.layers.1.mlp.experts"]


@pytest.mark.parametrize("spoil", ["order", "shape", "number"])
def test_experts_that_are_not_alike_are_refused(spoil):
    layout = expert_layout()
    names = [slice_.module for slice_ in layout.slices]
    first = names.index("model.layers.0.mlp.experts.1.gate_proj")
    if spoil == "order":
        layout.slices[first].module, layout.slices[first + 1].module = names[first + 1], names[first]
    elif spoil == "shape":
        layout.slices[first].out_features += 1
    else:
        del layout.slices[first]
    with pytest.raises(LorikeetError) as caught:
        read_layout(layout)
    assert caught.value.reason == "BAD_LAYOUT"
    assert "model.layers.0.mlp.experts" in caught.value.message
