"""What a load tells of an adapter with experts."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from adapter_store.concurrency.crew import Crew
from adapter_store.loads.reports import report_version
from adapter_store.packs.norms import delta_norms
from adapter_store.packs.reading import read_adapter
from tests.support.store_adapters import lora_config, write_adapter
from tests.support.store_experts import (
    EXPERTS,
    HIDDEN,
    NAMES,
    PREFIX,
    alone,
    deltas,
    expert_lora,
    expert_pack_layout,
    named,
    nested,
    old,
    plain,
    turned,
)

BOTH = {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}
MODULES: dict[str, Any] = {"target_modules": list(NAMES)}
LORA = expert_lora()
FORMS = {
    "one by one": (alone(LORA), MODULES),
    "plain": (nested(LORA, plain), BOTH),
    "turned": (nested(LORA, turned), BOTH),
    "old": (nested(LORA, old), BOTH),
    "named": (named(LORA, {"gate_up_proj": "gate_up_proj", "down_proj": "down_proj"}), MODULES),
}


@pytest.mark.parametrize("form", FORMS)
def test_norms_of_experts_are_those_of_their_deltas(tmp_path, form):
    tensors, options = FORMS[form]
    checked = read_adapter(write_adapter(tmp_path, tensors, lora_config(**options)), expert_pack_layout())
    crew = Crew(2)
    norms = delta_norms(checked.slices, checked.files, crew=crew)
    crew.close()
    for adapted, norm in zip(checked.slices, norms, strict=True):
        expected = np.linalg.norm(deltas(LORA, 2.0)[adapted.slice.module])
        assert norm == pytest.approx(expected, rel=1e-5), adapted.slice.module


def test_experts_are_told_of_by_layer(tmp_path):
    tensors = nested(LORA, plain)
    tensors[f"{PREFIX}model.layers.1.mlp.experts.lora_B.weight"].reshape(HIDDEN, 4, EXPERTS)[:, :, 2] = 0
    for part, shape in (("A", (4, HIDDEN)), ("B", (EXPERTS, 4))):
        tensors[f"{PREFIX}model.layers.0.mlp.gate.lora_{part}.weight"] = np.ones(shape, np.float32)
    config = lora_config(
        target_modules=r".*layers\.0\.mlp\.gate", target_parameters=BOTH["target_parameters"]
    )
    version = report_version(read_adapter(write_adapter(tmp_path, tensors, config), expert_pack_layout()), ())
    assert [(report.module.removeprefix("model.layers."), report.experts) for report in version.modules] == [
        ("0.mlp.gate", 0),
        *((f"{layer}.mlp.experts.*.{name}", EXPERTS) for layer in (0, 1) for name in NAMES),
    ]
    last = version.modules[-1]
    norms = [float(np.linalg.norm(d)) for m, d in deltas(LORA, 2.0).items() if ".1." in m and "down" in m]
    assert (last.rank, last.scaling, last.parts) == (4, 2.0, ("LORA",))
    assert last.least_delta_norm == 0.0
    assert last.delta_norm <= max(norms) * (1 + 1e-5)


def test_experts_of_other_ranks_are_told_apart(tmp_path):
    free = expert_lora(is_fused=False)
    tensors = alone(free)
    module = f"{PREFIX}model.layers.0.mlp.experts.2.up_proj"
    tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = (
        np.concatenate([values, values], axis)
        for axis, values in enumerate(
            (tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"])
        )
    )
    config = lora_config(**MODULES, rank_pattern={r"layers\.0\..*\.2\.up_proj": 8})
    version = report_version(read_adapter(write_adapter(tmp_path, tensors, config), expert_pack_layout()), ())
    ranks = Counter()
    for report in version.modules:
        ranks[report.module, report.rank] += report.experts
    assert ranks["model.layers.0.mlp.experts.*.up_proj", 8] == 1
    assert ranks["model.layers.0.mlp.experts.*.up_proj", 4] == EXPERTS - 1
    assert ranks["model.layers.1.mlp.experts.*.up_proj", 4] == EXPERTS
