"""The port to whatever computes a step: torch on the CPU, CUDA graphs, or the arithmetic of tests."""

from __future__ import annotations

from typing import Protocol, TypeVar

from executor.control.plan import StepPlan, StepResult

Pending = TypeVar("Pending")


class Runner(Protocol[Pending]):
    """Runs steps in the order of their launches. All calls come from the engine's thread."""

    def launch(self, plan: StepPlan) -> Pending:
        """Applies installs and page-table changes, then begins the forward. Need not wait for it."""
        ...

    def collect(self, pending: Pending) -> StepResult:
        """Samples and waits for the result. The next step may have been launched in between."""
        ...
