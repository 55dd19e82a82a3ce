"""The whole executor with Triton's kernels, as on a GPU, token for token against transformers and PEFT."""

import random
from pathlib import Path

import pytest

from executor.control.request import SamplingParams
from tests.support.graph_recordings import Recordings
from tests.support.oracle_adapters import make_adapters
from tests.support.oracle_checkpoints import make_checkpoint
from tests.support.oracle_reference import Oracle
from tests.support.oracle_serving import Ask, Server


def test_mixed_batch_chunked_and_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks 3 to 24, adapters on every kind of slice, and a window in one layer of two."""
    window = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    checkpoint = make_checkpoint(tmp_path / "model", "qwen2", **window)
    adapters = make_adapters(checkpoint, tmp_path / "adapters", ["patterns", "ends", "embedding"])
    rng = random.Random(5)
    asks = [
        Ask(
            prompt=tuple(rng.randrange(256) for _ in range(length)),
            adapter=adapter,
            sampling=SamplingParams(max_tokens=3, logprobs=1, prompt_logprobs=0 if length == 5 else None),
        )
        for length, adapter in ((21, "patterns"), (5, "ends"), (14, "embedding"), (1, "patterns"), (9, ""))
    ]
    recordings = Recordings(monkeypatch)
    server = Server(checkpoint, adapters, chunk=12, page_size=4, triton=True)
    cold, warm = server.serve(asks), server.serve(asks)
    assert [answer.cached_tokens for answer in warm] == [20, 0, 12, 0, 8]
    assert server.runner.most_slots == 4
    assert recordings.mixed
    assert Oracle(checkpoint, adapters).judge(cold + warm, most_skipped=0).positions == 30
