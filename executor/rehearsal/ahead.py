"""Kernels compiled ahead of traffic: by a process of its own, and loaded into this one as they come."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from executor.rehearsal.stage import Cast
from kernels.compiling import Compiled, Target
from kernels.launch import find, overlaps

log = logging.getLogger(__name__)

PLAYED = "played"
"""What comes after the variants of usual steps, and again after those of the others."""

_MOST_PROCESSES = 32
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


class Ahead:
    """Begins at once. A thread loads variants of kernels as they are compiled, first those of usual steps."""

    def __init__(self, cast: Cast) -> None:
        major, minor = torch.cuda.get_device_capability()
        ask = Ask(
            cast=cast,
            target=Target("cuda", 10 * major + minor, 32),
            overlaps=overlaps(),
            processes=max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)) - 1)),
        )
        self._begun = time.monotonic()
        self._usual = threading.Event()
        self._is_complete = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "executor.rehearsal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdin is not None
        pickle.dump(ask, self._process.stdin)
        self._process.stdin.flush()
        threading.Thread(target=self._follow, name="kernels", daemon=True).start()

    def wait(self) -> bool:
        """Until what usual steps launch is ready, or will not be. Returns which."""
        while not self._usual.wait(_PROGRESS_SECONDS):
            seconds = time.monotonic() - self._begun
            if seconds > _PATIENCE_SECONDS:
                log.error("kernels are not all compiled after %.0f s: the first to need one waits", seconds)
                break
            log.info("kernels are being compiled, %.0f s so far", seconds)
        return self._is_complete

    def _follow(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        loaded, seconds, failed = 0, 0.0, False
        try:
            while True:
                answer = pickle.load(self._process.stdout)  # noqa: S301 - of our own process
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
                self._is_complete = not failed
                self._usual.set()
        except (EOFError, OSError, pickle.UnpicklingError):
            pass
        finally:
            self._process.stdin.close()
            code = self._process.wait()
            if code != 0 or not self._usual.is_set():
                log.error(
                    "kernels were not all compiled ahead (exit code %d): the first to need one waits for it",
                    code,
                )
            self._usual.set()

    @staticmethod
    def _load(compiled: Compiled) -> bool:
        """Returns whether it is there."""
        if compiled.error:
            log.warning("%s was not compiled: %s", compiled.variant, compiled.error)
            return False
        try:
            find(compiled.variant).load(compiled.variant)
        except Exception as error:
            log.warning("%s was not loaded: %s", compiled.variant, error)
            return False
        return True
