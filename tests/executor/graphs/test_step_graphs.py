"""Steps by graphs, mixed ones too, in Triton's interpreter: as plain torch computes them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.errors import OutOfResources

from executor.control.plan import RowInstall
from executor.control.request import SamplingParams, no_ids
from executor.model.config import ModelConfig
from executor.model.dummy import dummy_parameters
from tests.support.engine_rig import Answer, Ask, Rig, random_pack
from tests.support.graph_recordings import Recordings

TINY = {
    "model_type": "qwen3",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "use_sliding_window": True,
    "sliding_window": 20,
    "max_window_layers": 0,
}
MODEL = ModelConfig.parse(TINY, {})
PARAMETERS = dummy_parameters(MODEL, dtype=torch.float32, device=torch.device("cpu"))
PACKS = {
    "narrow": random_pack(MODEL, rank=8, dtype=torch.float32, seed=1),
    "wide": random_pack(MODEL, rank=16, dtype=torch.float32, seed=2, ends=True),
    "formed": random_pack(MODEL, rank=16, dtype=torch.float32, seed=3, forms=True),
}


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    return Recordings(monkeypatch)


def ask(length: int, adapter: str = "", *, output: int = 4, seed: int = 0) -> Ask:
    prompt = np.random.default_rng(seed or length).integers(0, MODEL.vocab_size, length)
    return Ask(prompt=prompt, adapter=adapter, sampling=SamplingParams(max_tokens=output, logprobs=0))


def rig(*, triton: bool, **options: Any) -> Rig:
    limits: dict[str, Any] = {"max_running": 6, "context": 96, "pages": 60} | options
    return Rig(MODEL, PARAMETERS, packs=PACKS, triton=triton, **limits)


def check(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]
    for mine, theirs in zip(answers, expected, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)


def test_chunks_among_decoding_rows_of_all_adapters(recordings: Recordings) -> None:
    """Ranks mixed, base rows among them, one on embedding and head, one with gains and shifts; more requests
    than rows, so that prompts come while others decode, then from cached prefixes, twice in the same shapes.
    """
    asks = [ask(23, "wide"), ask(3, "narrow"), ask(9), ask(30, "formed"), ask(5, "narrow"), ask(17)]
    asks[1] = replace(asks[1], sampling=replace(asks[1].sampling, temperature=0.9, seed=5))
    limits: dict[str, Any] = {"max_running": 4, "chunk": 20}
    expected = rig(triton=False, **limits).serve(asks)
    graphs = rig(triton=True, **limits)
    check(graphs.serve(asks), expected)
    for _ in range(2):
        check(graphs.serve(asks[:4]), expected[:4])
    assert any(shape.lora.ends for shape in recordings.mixed if shape.lora)
    assert len({shape.tokens for shape in recordings.mixed}) > 1
    assert any(shape.chunks for shape in recordings.replays)


def test_without_adapters_nothing_is_adapted(recordings: Recordings) -> None:
    asks = [ask(30, output=8), ask(9, seed=1), ask(9, seed=2), ask(10, seed=3)]
    limits: dict[str, Any] = {"max_running": 2}
    check(rig(triton=True, **limits).serve(asks), rig(triton=False, **limits).serve(asks))
    assert recordings.mixed
    assert all(shape.lora is None for shape in recordings.steps)


def test_adapters_beside_products(recordings: Recordings) -> None:
    """Steps of few tokens in half precision, whose products bring their adapters' share."""
    half = torch.float16
    parameters = dummy_parameters(MODEL, dtype=half, device=torch.device("cpu"))
    packs = {f"{rank}": random_pack(MODEL, rank=rank, dtype=half, seed=rank) for rank in (8, 16)}
    asks = [ask(9, "8"), ask(5, "16", output=3), ask(7), ask(11, "16", output=3)]
    limits: dict[str, Any] = {"packs": packs, "max_running": 3, "context": 96, "pages": 60}
    answers, expected = (
        Rig(MODEL, parameters, triton=triton, **limits).serve(asks) for triton in (True, False)
    )
    for mine, theirs in zip(answers, expected, strict=True):
        assert mine.tokens == theirs.tokens
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=2e-2)
    assert any(shape.lora.beside for shape in recordings.mixed if shape.lora)


def test_preempted_rows_come_back(recordings: Recordings) -> None:
    asks = [ask(28, output=6, seed=seed) for seed in (1, 2, 3)]
    limits: dict[str, Any] = {"pages": 6, "max_running": 3}
    graphs = rig(triton=True, **limits)
    check(graphs.serve(asks), rig(triton=False, **limits).serve(asks))
    assert graphs.scheduler.statistics().preemptions > 0
    assert recordings.replays


def test_a_shape_is_recorded_when_it_comes_again(recordings: Recordings) -> None:
    graphs = rig(triton=True)
    graphs.serve([ask(20, output=1)])
    assert not recordings.replays
    graphs.serve([ask(21, output=1)])
    assert list(recordings.replays.values()) == [1]
    graphs.serve([ask(22, output=1)])
    assert list(recordings.replays.values()) == [2]


def test_a_larger_graph_does_until_a_shape_has_come_often(recordings: Recordings) -> None:
    graphs, expected = rig(triton=True), rig(triton=False)
    for seed in range(21, 24):
        graphs.serve([ask(40, output=1, seed=seed)])
    (larger,) = recordings.replays
    for seed in range(1, 12):
        check(graphs.serve([ask(20, output=1, seed=seed)]), expected.serve([ask(20, output=1, seed=seed)]))
    (own,) = set(recordings.steps) - {larger}
    assert recordings.replays[larger] == 2 + 8
    assert recordings.steps[own] - recordings.replays[own] == 1, "its kernels were to be compiled"
    assert recordings.replays[own] == 2


def test_another_rows_unscored_prompt_does_not_matter(recordings: Recordings) -> None:
    """One that was aborted, say; no step of others scores it."""
    graphs = rig(triton=True)
    scored = SamplingParams(max_tokens=1, prompt_logprobs=0)
    left = RowInstall(row=5, sampling=scored, prompt_ids=np.arange(9, dtype=np.int32), emitted_ids=no_ids())
    graphs.runner._runner._prompts.install(left)
    for length in (20, 21):
        graphs.serve([ask(length, output=1)])
    assert list(recordings.replays.values()) == [1]


def test_what_fits_no_shape_is_computed_all_the_same(recordings: Recordings) -> None:
    """Prompts of so few tokens that each has a tile of attention for itself."""
    asks = [ask(2, output=1, seed=seed) for seed in range(1, 7)]
    expected = rig(triton=False).serve(asks)
    graphs = rig(triton=True)
    for _ in range(3):
        check(graphs.serve(asks), expected)
    assert not recordings.steps


def test_few_graphs_are_kept(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used longest ago goes, and is recorded again when it comes again."""
    monkeypatch.setattr("executor.graphs.step_graphs.MOST_GRAPHS", 1)
    graphs = rig(triton=True)
    for seed, length in enumerate((10, 10, 20, 20), start=1):
        graphs.serve([ask(length, output=1, seed=seed)])
    assert len(recordings.replays) == 2
    recordings.replays.clear()
    graphs.serve([ask(12, output=1)])
    assert list(recordings.replays.values()) == [1]


def test_a_shape_that_finds_no_memory_goes_without_a_graph(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def refuse(run: Any) -> Any:
        tried.append(run)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("executor.graphs.recorder.no_recorder", refuse)
    asks = [ask(length, output=1) for length in (20, 21, 22)]
    graphs, expected = rig(triton=True), rig(triton=False)
    for one in asks:
        check(graphs.serve([one]), expected.serve([one]))
    assert len(tried) == 1


def test_what_fails_at_rest_goes_without_a_graph(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = rig(triton=True, max_running=2)
    graphs.serve([ask(20, output=1)])
    runner = graphs.runner._runner
    assert runner._graphs is not None

    def fail(run: Any) -> Any:
        raise OutOfResources(2, 1, "shared memory")

    monkeypatch.setattr(runner._graphs, "_record", fail)
    assert runner.rest()
    assert not runner.rest()
    graphs.serve([ask(21, output=1)])


def test_what_came_and_what_usual_adapters_want_is_recorded_at_rest(recordings: Recordings) -> None:
    graphs = rig(triton=True, max_running=2)
    graphs.serve([ask(20, output=1)])
    runner = graphs.runner._runner
    assert runner._graphs is not None
    runner._graphs._usual = runner._graphs._usual_shapes(16)
    rests = 0
    while runner.rest():
        rests += 1
    assert rests > len(recordings.mixed) > 0
    graphs.serve([ask(21, output=1)])
    assert sum(recordings.replays.values()) == 1, "what came once was recorded"
    assert not runner.rest()
