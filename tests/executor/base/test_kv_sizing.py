"""The KV cache's size: what is left of a device's memory, and the run that finds out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.base.kv_sizing import LargestStep, Measured, affordable_pages, measured_pages
from executor.control.plan import BASE_SLOT
from executor.model.config import ModelConfig
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.model.weights import load_parameters
from executor.rehearsal.plans import Limits
from executor.runner import RunnerConfig, TorchRunner
from tests.support.oracle_checkpoints import make_checkpoint

MEASURED = Measured(total=1000, peak=500, cache=100, others=50)


def test_pages_are_what_is_left_of_the_share() -> None:
    # 900 - (500 - 100 + 50) = 450: 45 pages, one of which belongs to nobody.
    assert affordable_pages(MEASURED, utilization=0.9, page_bytes=10, most=1000) == 44
    assert affordable_pages(MEASURED, utilization=0.9, page_bytes=10, most=7) == 7


@pytest.mark.parametrize("measured", [replace(MEASURED, peak=990), replace(MEASURED, others=495)], ids=str)
def test_no_room_is_refused_with_what_to_do(measured: Measured) -> None:
    with pytest.raises(ValueError, match="lower max_step_tokens"):
        affordable_pages(measured, utilization=0.9, page_bytes=10, most=1000)


@pytest.mark.parametrize(("tokens", "rows", "context"), [(64, 8, 128), (8, 8, 128), (300, 4, 32), (7, 1, 4)])
def test_the_largest_step_keeps_its_limits(tokens: int, rows: int, context: int) -> None:
    largest = LargestStep(Limits(tokens=tokens, rows=rows, context=context, slots=1, page_size=4))
    prompts, decodes, mixed = largest.plans(BASE_SLOT)
    lengths = np.diff(prompts.query_splits)
    assert len(lengths) == rows
    assert lengths.min() >= 1
    # All tokens of a step, or as many as the rows' contexts hold.
    assert lengths.sum() == tokens or lengths.max() == context - 1
    assert lengths.sum() <= tokens
    assert 0 < mixed.query_splits[-1] <= tokens
    for plan in (prompts, decodes, mixed):
        ends = plan.start_positions + np.diff(plan.query_splits)
        assert ends.max() <= context
        assert plan.page_ids.max() < largest.pages
        for row in plan.rows:
            assert (plan.page_rows == row).sum() == -(-ends[row] // 4)


class RecordedMemory:
    """Takes what the run asks for; the peak is made up."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self) -> None:
        self.calls.append("begin")

    def measure(self, cache: int) -> Measured:
        self.calls.append("measure")
        return Measured(total=1 << 20, peak=cache + 1000, cache=cache, others=24)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Parameters]:
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("sizing"), "qwen3")
    config = ModelConfig.load(folder)
    return config, load_parameters(folder, config, dtype=torch.float32)


@pytest.mark.parametrize("slots", [0, 2])
def test_the_run_computes_the_largest_steps_and_leaves_nothing(
    model: tuple[ModelConfig, Parameters], slots: int
) -> None:
    config, parameters = model
    pool = AdapterPool(
        config, units=4096 if slots else 0, slots=slots, dtype=torch.float32, parameters=parameters
    )
    made: list[int] = []

    def make_runner(pages: int) -> TorchRunner:
        made.append(pages)
        limits = RunnerConfig(max_rows=3, pages=pages, page_size=4, max_context=64)
        return TorchRunner(config, parameters, pool=pool, config=limits)

    memory = RecordedMemory()
    pages = measured_pages(
        make_runner,
        pool=pool,
        max_rank=16,
        largest=LargestStep(Limits(tokens=40, rows=3, context=64, slots=slots, page_size=4)),
        memory=memory,
        utilization=0.5,
        page_bytes=1024,
        most=10_000,
    )
    assert memory.calls == ["begin", "measure", "begin"]
    assert made == [11]
    assert pages == ((1 << 19) - 1024) // 1024 - 1
    assert not pool.table.rows_SL6.any()
