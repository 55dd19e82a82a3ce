"""When a process that died is started again, and what is said of its death."""

import signal
from dataclasses import dataclass, field

from cli.errors import EXIT_USAGE

DELAYS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before the first restart, the second, ...; after the last one it is given up."""

SETTLED_SECONDS = 30.0
"""A process that was ready for so long has its earlier failures forgotten."""

_FIRST_TRIES = 2

_ADVICE = {
    "SIGKILL": "most often memory had run out (`dmesg` says so): lower store.arena_bytes, executor.kv_bytes "
    "or executor.adapter_pool_bytes, or serve a smaller model",
    "SIGBUS": "most often a file system that it shares memory through is full: see that of store.arena_dir",
}
_CRASHED = "it crashed, which no setting and no adapter should make it do: please report it"
_MORE = "--log-level DEBUG says more"


@dataclass(kw_only=True)
class RestartPolicy:
    """Decides, without a clock of its own, about one process."""

    failures: int = field(default=0, init=False)
    was_ready: bool = field(default=False, init=False)

    def next_delay(self, *, exit_code: int, ready_seconds: float | None) -> float | None:
        """Called for each death.

        Args:
            exit_code: of the process; negative for a signal.
            ready_seconds: how long it had been ready, None if it never was.

        Returns:
            Seconds to wait before the restart; None to give up.
        """
        if ready_seconds is not None:
            self.was_ready = True
            if ready_seconds >= SETTLED_SECONDS:
                self.failures = 0
        self.failures += 1
        # What has worked will again: a device's memory may still be taken by the one that died.
        if not self.was_ready and (exit_code == EXIT_USAGE or self.failures > _FIRST_TRIES):
            return None
        return DELAYS[self.failures - 1] if self.failures <= len(DELAYS) else None


def ending(exit_code: int) -> str:
    """A process's end in words."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was ended by {_signal(exit_code) or f'signal {-exit_code}'}"


def advice(exit_code: int) -> str:
    """What to do about a process that keeps ending like this."""
    if exit_code >= 0:
        return _MORE
    return _ADVICE.get(_signal(exit_code), f"{_CRASHED}; {_MORE}")


def _signal(exit_code: int) -> str:
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return ""
