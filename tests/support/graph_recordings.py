"""Graphs without a GPU: what would have been recorded, and how often it was replayed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from executor.graphs.shapes import StepShape
from executor.graphs.step_graphs import StepGraphs


class Recordings:
    """Stands in for a recorder of step graphs. `steps` have been computed in a shape, kernel by kernel or by
    replays, which `replays` counts alone.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of all runners that are made from here on. Also keeps attention from being split over a GPU's
        programs, which the interpreter runs one by one, and has shapes recorded in any two steps.
        """
        self.steps: Counter[StepShape] = Counter()
        self.replays: Counter[StepShape] = Counter()
        run_as_it_is = StepGraphs._run

        def run(graphs: StepGraphs, shape: StepShape) -> Any:
            self.steps[shape] += 1
            return run_as_it_is(graphs, shape)

        monkeypatch.setattr(StepGraphs, "_run", run)
        monkeypatch.setattr("executor.graphs.recorder.no_recorder", self)
        monkeypatch.setattr("executor.model.attention_triton._ENOUGH_PROGRAMS", 8)
        monkeypatch.setattr("executor.graphs.step_graphs._STEPS_APART", 1)

    def __call__(self, run: Any) -> Callable[[], Any]:
        (shape,) = run.args

        def replay() -> Any:
            self.replays[shape] += 1
            return run()

        return replay

    @property
    def mixed(self) -> list[StepShape]:
        """Steps with chunks, by shape."""
        return [shape for shape in self.steps if shape.chunks]
