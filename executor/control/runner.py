"""The port to whatever computes a step: torch on the CPU, CUDA graphs, or the arithmetic of tests."""

from __future__ import annotations

from typing import Protocol, TypeVar

from executor.control.plan import StepPlan, StepResult

Pending = TypeVar("Pending")


class Runner(Protocol[Pending]):
    """Runs steps in the order of their launches. All calls come from the engine's thread.

    Of a step that was collected nothing runs any more, nor of one whose launch or collect has raised: what it
    read may be overwritten from then on.
    """

    def launch(self, plan: StepPlan) -> Pending:
        """Applies installs and page-table changes, then begins the forward. Need not wait for it."""
        ...

    def collect(self, pending: Pending) -> StepResult:
        """Samples and waits for the result. The next step may have been launched in between."""
        ...
