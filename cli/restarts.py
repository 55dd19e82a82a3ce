"""When a process that died is started again."""

from dataclasses import dataclass, field

from cli.errors import EXIT_USAGE

DELAYS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before the first restart, the second, ...; after the last one it is given up."""

SETTLED_SECONDS = 30.0
"""A process that was ready for so long has its earlier failures forgotten."""


@dataclass(kw_only=True)
class RestartPolicy:
    """Decides, without a clock of its own, about one process."""

    failures: int = field(default=0, init=False)

    def next_delay(self, *, exit_code: int, ready_seconds: float | None) -> float | None:
        """Called for each death.

        Args:
            exit_code: of the process; negative for a signal.
            ready_seconds: how long it had been ready, None if it never was.

        Returns:
            Seconds to wait before the restart; None to give up.
        """
        if ready_seconds is None and exit_code == EXIT_USAGE:
            return None  # Wrong settings stay wrong.
        if ready_seconds is not None and ready_seconds >= SETTLED_SECONDS:
            self.failures = 0
        self.failures += 1
        if self.failures > len(DELAYS) or (ready_seconds is None and self.failures > 2):
            return None
        return DELAYS[self.failures - 1]
