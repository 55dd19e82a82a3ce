"""A runner whose steps take time, as a device's do."""

import time
from dataclasses import dataclass
from typing import Generic

from executor.control.plan import StepPlan, StepResult
from executor.control.runner import Pending, Runner


@dataclass(frozen=True, slots=True)
class PacedStep(Generic[Pending]):
    """A launched step and when it will be done."""

    inner: Pending
    done: float


class PacedRunner(Generic[Pending]):
    """Implements `control.runner.Runner` around another: each step ends `seconds` after its launch or after
    the step before it, whichever is later.
    """

    def __init__(self, inner: Runner[Pending], seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._busy_until = 0.0

    def launch(self, plan: StepPlan) -> PacedStep[Pending]:
        pending = self._inner.launch(plan)
        self._busy_until = max(self._busy_until, time.monotonic()) + self._seconds
        return PacedStep(pending, self._busy_until)

    def collect(self, pending: PacedStep[Pending]) -> StepResult:
        result = self._inner.collect(pending.inner)
        time.sleep(max(0.0, pending.done - time.monotonic()))
        return result
