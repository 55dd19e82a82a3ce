"""Models with experts by Triton's kernels, as on a GPU, token for token against transformers and PEFT."""

import random
from pathlib import Path

import pytest

from executor.control.request import SamplingParams
from tests.support.graph_recordings import Recordings
from tests.support.oracle_checkpoints import make_checkpoint
from tests.support.oracle_experts import make_expert_adapters
from tests.support.oracle_reference import Oracle
from tests.support.oracle_serving import Ask, Server

FORMS = ("everything", "shared outer")


def test_mixed_batch_chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer, which has experts, a shared one, and LoRA on all of them and on both of their gates."""
    checkpoint = make_checkpoint(
        tmp_path / "model", "qwen2_moe", num_hidden_layers=1, decoder_sparse_step=1, num_experts=3
    )
    made = make_expert_adapters(checkpoint, tmp_path / "adapters", FORMS)
    rng = random.Random(5)
    asks = [
        Ask(
            prompt=tuple(rng.randrange(256) for _ in range(length)),
            adapter=adapter,
            sampling=SamplingParams(max_tokens=2, logprobs=1, prompt_logprobs=0 if length == 10 else None),
        )
        for length, adapter in ((10, FORMS[0]), (11, FORMS[1]), (12, ""), (1, FORMS[0]))
    ]
    folders = {name: adapter.folder for name, adapter in made.items()}
    Recordings(monkeypatch)
    server = Server(checkpoint, folders, chunk=8, page_size=4, triton=True)
    answers = server.serve(asks)
    assert server.runner.most_slots == len(FORMS) + 1
    oracle = Oracle(checkpoint, {name: adapter.twin for name, adapter in made.items()})
    assert oracle.judge(answers, most_skipped=0).positions == 2 * len(asks)
