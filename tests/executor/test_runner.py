"""The torch runner by itself: plans made by hand, without a scheduler."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.control.plan import PageCopies, RowInstall, StepPlan
from executor.control.request import SamplingParams
from executor.model.config import ModelConfig
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.model.weights import load_parameters
from executor.runner import RunnerConfig, TorchRunner
from tests.support.oracle_checkpoints import make_checkpoint
from tests.support.oracle_driver import HandRow, run_by_hand

PAGE = 4
Model = tuple[ModelConfig, Parameters]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("runner"), "qwen3")
    config = ModelConfig.load(folder)
    return config, load_parameters(folder, config, dtype=torch.float32)


def runner_of(model: Model, *, rows: int = 8, pages: int = 200, host_pages: int = 0) -> TorchRunner:
    config, parameters = model
    pool = AdapterPool(config, units=8, slots=1, dtype=torch.float32)
    pool.table.clear_row(0)
    limits = RunnerConfig(max_rows=rows, pages=pages, page_size=PAGE, max_context=128, host_pages=host_pages)
    return TorchRunner(config, parameters, pool=pool, config=limits)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def greedy(max_tokens: int, *, prompt_logprobs: int | None = None) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)


def run(model: Model, *rows: HandRow, chunk: int = 1 << 30) -> tuple[HandRow, ...]:
    run_by_hand(runner_of(model), rows, page_size=PAGE, chunk=chunk)
    return rows


def plan(step: int, *, feed: np.ndarray, start: int, install: RowInstall | None = None) -> StepPlan:
    """One row, whose 8 pages are set up together with its install."""
    columns = np.arange(8 if install else 0, dtype=np.int32)
    return StepPlan(
        step=step,
        installs=(install,) if install else (),
        rows=ids(0),
        query_splits=ids(0, len(feed)),
        input_ids=feed,
        start_positions=ids(start),
        slots=ids(-1),
        samples=np.array([True]),
        page_rows=np.zeros_like(columns),
        page_columns=columns,
        page_ids=columns,
    )


def test_a_prefix_that_was_in_host_memory_is_as_good_as_computed(model: Model) -> None:
    """Its pages are saved, then overwritten by another prompt, then restored into other pages."""
    tokens, count = ids(*prompt_of(30)), 28 // PAGE
    install = RowInstall(row=0, sampling=greedy(2), prompt_ids=tokens, emitted_ids=ids())
    runner = runner_of(model, host_pages=20)
    whole = runner.collect(runner.launch(plan(0, feed=tokens, start=0, install=install)))
    pages = np.arange(count, dtype=np.int32)
    saves = PageCopies(sources=pages, targets=pages + 9)
    other = ids(*prompt_of(30, seed=1))
    runner.collect(runner.launch(replace(plan(1, feed=other, start=0, install=install), saves=saves)))
    moved = np.arange(8, dtype=np.int32)[::-1] + 20
    restores = PageCopies(sources=saves.targets, targets=moved[:count])
    rest = replace(plan(2, feed=tokens[28:], start=28, install=install), restores=restores, page_ids=moved)
    restored = runner.collect(runner.launch(rest))
    assert restored.token_ids == whole.token_ids
    np.testing.assert_allclose(restored.logprobs, whole.logprobs, atol=1e-5)


def test_prompt_logprobs_do_not_depend_on_chunks(model: Model) -> None:
    prompt = prompt_of(23)
    (whole,) = run(model, HandRow(prompt=prompt, sampling=greedy(2, prompt_logprobs=2)))
    (parts,) = run(model, HandRow(prompt=prompt, sampling=greedy(2, prompt_logprobs=2)), chunk=5)
    assert [scored.start for scored in whole.prompt_logprobs] == [1]
    assert [scored.start for scored in parts.prompt_logprobs] == [1, 6, 11, 16, 21]
    joined = np.concatenate([scored.logprobs for scored in parts.prompt_logprobs])
    np.testing.assert_allclose(joined, whole.prompt_logprobs[0].logprobs, atol=1e-5)
    assert len(joined) == 22
    top_ids = np.concatenate([scored.top_ids for scored in parts.prompt_logprobs])
    assert top_ids.tolist() == whole.prompt_logprobs[0].top_ids.tolist()
    assert top_ids.shape == (22, 2)


def test_long_prompts_are_scored_in_blocks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(23)
    (whole,) = run(model, HandRow(prompt=prompt, sampling=greedy(1, prompt_logprobs=1)))
    monkeypatch.setattr("executor.prompt_scoring._PROMPT_BLOCK", 4)
    (blocks,) = run(model, HandRow(prompt=prompt, sampling=greedy(1, prompt_logprobs=1)))
    for name in ("logprobs", "top_ids", "top_logprobs"):
        expected = getattr(whole.prompt_logprobs[0], name)
        np.testing.assert_allclose(getattr(blocks.prompt_logprobs[0], name), expected, atol=1e-5)


def test_a_prompt_of_one_token_has_no_logprobs(model: Model) -> None:
    (row,) = run(model, HandRow(prompt=[5], sampling=greedy(3, prompt_logprobs=1)))
    assert row.prompt_logprobs == []
    assert len(row.tokens) == 3


def test_prompt_logprobs_are_given_once(model: Model) -> None:
    """After tokens have been emitted, a row that comes back does not score its prompt again."""
    (first,) = run(model, HandRow(prompt=prompt_of(9), sampling=greedy(6, prompt_logprobs=0)))
    back = HandRow(
        prompt=prompt_of(9), emitted=first.tokens[:2], sampling=greedy(6, prompt_logprobs=0), computed=0
    )
    run(model, back)
    assert first.prompt_logprobs
    assert not back.prompt_logprobs
    assert back.tokens == first.tokens[2:]


def test_rows_come_back_in_the_plans_order(model: Model) -> None:
    """The runner sorts rows by adapter slot inside; nobody outside may notice."""
    rows = [
        HandRow(prompt=prompt_of(3 + i, seed=i), sampling=greedy(4), slot=slot)
        for i, slot in enumerate((0, -1, 0, -1, 0))
    ]
    run(model, *rows)
    for i, row in enumerate(rows):
        (alone,) = run(model, HandRow(prompt=prompt_of(3 + i, seed=i), sampling=greedy(4)))
        assert row.tokens == alone.tokens, "an empty slot adds nothing"


def test_the_next_step_may_be_launched_before_the_last_is_collected(model: Model) -> None:
    prompt = prompt_of(6)
    (expected,) = run(model, HandRow(prompt=prompt, sampling=greedy(4)))
    runner = runner_of(model)
    install = RowInstall(row=0, sampling=greedy(4), prompt_ids=ids(*prompt), emitted_ids=ids())
    in_flight = runner.launch(plan(0, feed=ids(*prompt), start=0, install=install))
    tokens = []
    for step in range(1, 4):
        launched = runner.launch(plan(step, feed=ids(-1), start=5 + step))
        result = runner.collect(in_flight)
        assert result.step == step - 1
        tokens += result.token_ids.tolist()
        in_flight = launched
    tokens += runner.collect(in_flight).token_ids.tolist()
    assert tokens == expected.tokens


def test_a_step_that_samples_nothing(model: Model) -> None:
    runner = runner_of(model)
    prompt = ids(*prompt_of(9))
    install = RowInstall(row=0, sampling=greedy(4), prompt_ids=prompt, emitted_ids=ids())
    chunk = plan(0, feed=prompt[:5], start=0, install=install)
    object.__setattr__(chunk, "samples", np.array([False]))
    result = runner.collect(runner.launch(chunk))
    assert result.rows.tolist() == []
    assert result.token_splits.tolist() == [0]
    assert len(runner.collect(runner.launch(plan(1, feed=prompt[5:], start=5))).token_ids) == 1


def test_a_failed_launch_leaves_the_runner_usable(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the adapters of its rows to be overwritten."""
    runner, settled = runner_of(model), list[str]()
    monkeypatch.setattr(runner, "settle", lambda: settled.append("settled"))
    prompt = ids(*prompt_of(6))
    install = RowInstall(row=0, sampling=greedy(4), prompt_ids=prompt, emitted_ids=ids())
    broken = plan(0, feed=ids(1, 2, 9999), start=0, install=install)
    with pytest.raises(IndexError):
        runner.launch(broken)
    assert settled == ["settled"]
    good = plan(1, feed=prompt, start=0, install=install)
    (expected,) = run(model, HandRow(prompt=prompt.tolist(), sampling=greedy(1)))
    assert runner.collect(runner.launch(good)).token_ids.tolist() == expected.tokens
    assert len(settled) == 1
