"""Families with experts by Triton's kernels, as on a GPU: forms of adapters in one batch, against PEFT."""

import random
from pathlib import Path

import pytest

from executor.control.request import SamplingParams
from tests.support.oracle_checkpoints import make_checkpoint
from tests.support.oracle_experts import make_expert_adapters
from tests.support.oracle_reference import Oracle
from tests.support.oracle_serving import Ask, Server

FORMS = ("per expert", "stacked", "shared outer")
# As small as the interpreter wants it: one layer, with experts.
SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "vocab_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
FAMILIES = {
    "qwen3_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [],
    },
    "mixtral": {"num_local_experts": 3, "intermediate_size": 24},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batch_chunked(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter runs programs one by one.
    monkeypatch.setattr("executor.model.attention_triton._ENOUGH_PROGRAMS", 8)
    checkpoint = make_checkpoint(tmp_path / "model", family, **(SHAPE | FAMILIES[family]))
    made = make_expert_adapters(checkpoint, tmp_path / "adapters", FORMS)
    rng = random.Random(5)
    asks = [
        Ask(
            prompt=tuple(rng.randrange(SHAPE["vocab_size"]) for _ in range(length)),
            adapter=adapter,
            sampling=SamplingParams(max_tokens=3, logprobs=1, prompt_logprobs=0 if length == 4 else None),
        )
        for length, adapter in ((3, FORMS[0]), (1, ""), (4, FORMS[1]), (6, FORMS[2]))
    ]
    folders = {name: adapter.folder for name, adapter in made.items()}
    server = Server(checkpoint, folders, chunk=8, page_size=4, triton=True)
    answers = server.serve(asks)
    assert server.runner.most_slots == len(FORMS) + 1
    oracle = Oracle(checkpoint, {name: adapter.twin for name, adapter in made.items()})
    assert oracle.judge(answers, most_skipped=0).positions == 3 * len(asks)
