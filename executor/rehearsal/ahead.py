"""Kernels compiled ahead of traffic: by a process of its own, and loaded into this one as they come."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, NamedTuple

import torch

from executor.rehearsal.stage import Cast
from kernels.compiling import Compiled, Target
from kernels.launch import find, overlaps
from rpc.tuning import usable_cores

log = logging.getLogger(__name__)

PLAYED = "played"
"""What comes after the variants of usual steps, and again after those of the others."""

REHEARSAL = (sys.executable, "-P", "-m", "executor.rehearsal")

_MOST_PROCESSES = 32
_CHECK_SECONDS = 0.5
_PROGRESS_SECONDS = 5.0
_PATIENCE_SECONDS = 300.0
"""With a rehearsal that says nothing; it has less with its compilers."""


class Failed(NamedTuple):
    """What could not be rehearsed, and why: nobody has compiled what that would have launched."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be rehearsed, and compiled for which GPU."""

    cast: Cast
    target: Target
    overlaps: bool
    processes: int


def ask_for_this_gpu(cast: Cast) -> Ask:
    major, minor = torch.cuda.get_device_capability()
    return Ask(
        cast=cast,
        target=Target("cuda", 10 * major + minor, 32),
        overlaps=overlaps(),
        processes=max(1, min(_MOST_PROCESSES, usable_cores() - 1)),
    )


class Ahead:
    """Begins at once. A thread loads variants of kernels as they are compiled, first those of usual steps.

    Args:
        ask: what to rehearse.
        command: of the process that does; where it cannot be started, nothing is compiled ahead.
    """

    def __init__(self, ask: Ask, command: Sequence[str] = REHEARSAL) -> None:
        self._begun = time.monotonic()
        self._usual = threading.Event()
        self._is_complete = False
        self._missed = 0
        paths = os.pathsep.join(filter(None, sys.path))
        try:
            process = subprocess.Popen(  # noqa: S603 - ours
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            )
        except OSError as error:
            log.warning("no kernels are compiled ahead, the first to need one waits for it: %s", error)
            self._usual.set()
            return
        threading.Thread(target=self._follow, args=(process, ask), name="kernels", daemon=True).start()

    def wait(self, check: Callable[[], None] = lambda: None) -> bool:
        """Until what usual steps launch is ready, or will not be. Returns which.

        `check` is called all the while; what it raises ends the wait.
        """
        told = self._begun
        while not self._usual.wait(_CHECK_SECONDS):
            check()
            now = time.monotonic()
            if now - self._begun > _PATIENCE_SECONDS:
                log.error(
                    "kernels are not all compiled after %.0f s: the first to need one waits",
                    now - self._begun,
                )
                break
            if now - told > _PROGRESS_SECONDS:
                told = now
                log.info("kernels are being compiled, %.0f s so far", now - self._begun)
        return self._is_complete

    def _follow(self, process: "subprocess.Popen[bytes]", ask: Ask) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(ask, process.stdin)
            process.stdin.flush()
            self._hear(process.stdout)
        except (EOFError, OSError):
            pass  # it has ended
        except Exception as error:
            log.error("what the rehearsal of kernels says is not understood: %s", error)
        finally:
            with suppress(OSError):
                process.stdin.close()
            code = process.wait()
            if code != 0 or not self._usual.is_set():
                log.error(
                    "kernels were not all compiled ahead (exit code %d): the first to need one waits for it",
                    code,
                )
            self._usual.set()

    def _hear(self, answers: IO[bytes]) -> None:
        """Takes answers in until they end. Raises EOFError then, or what unpickling raises."""
        loaded, seconds, failed = 0, 0.0, False
        while True:
            answer = pickle.load(answers)  # noqa: S301 - of our own process
            if isinstance(answer, Compiled):
                if self._load(answer):
                    loaded += 1
                else:
                    failed = True
                seconds += answer.seconds
                continue
            if isinstance(answer, Failed):
                log.error("the rehearsal of kernels failed, of %s", answer.why)
                failed = True
                continue
            log.info(
                "%d kernels for %s steps are ready after %.1f s, of %.0f s of all processes",
                loaded,
                "all" if self._usual.is_set() else "usual",
                time.monotonic() - self._begun,
                seconds,
            )
            if self._missed > 1:
                log.warning(
                    "%d kernels were not compiled or not loaded; level DEBUG says why each was not",
                    self._missed,
                )
            self._is_complete = not failed
            self._usual.set()

    def _load(self, compiled: Compiled) -> bool:
        """Returns whether it is there."""
        why = f"compiled: {compiled.error}" if compiled.error else ""
        if not why:
            try:
                find(compiled.variant).load(compiled.variant)
            except Exception as error:
                why = f"loaded: {error}"
        if why:
            self._missed += 1
            # They mostly fail all alike.
            log.log(
                logging.WARNING if self._missed == 1 else logging.DEBUG,
                "%s was not %s",
                compiled.variant,
                why,
            )
        return not why
