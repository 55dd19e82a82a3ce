"""The process that rehearses and has kernels compiled; `ahead` starts it and hears from it.

A pickled `Ask` comes by stdin, which stays open as long as anybody wants the answers: pickled `Compiled` by
stdout, `PLAYED` after those that usual steps launch and after the others; `Failed` says what went wrong.
"""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from executor.model import projection
from executor.rehearsal.ahead import PLAYED, Ask, Failed
from executor.rehearsal.stage import Stage
from kernels.compiling import Compilers
from kernels.launch import Rehearsal, rehearsing

_PATIENCE_SECONDS = 90.0
"""With compilers that have few processors, or that were killed. What comes later is still loaded."""
_MORE_PATIENCE_SECONDS = 900.0
"""For seldom steps, while nothing waits: compilers end after it."""


def main() -> None:
    with suppress(PermissionError):  # of who leads a session, and so has a group already
        os.setpgrp()  # compilers end with us, and what a terminal sends is not for us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # others may print
    ask: Ask = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started us
    lock = threading.Lock()
    # On a device that computes nothing, torch takes milliseconds to find out what this returns.
    projection.add_product = lambda y_TN, *_: y_TN

    def tell(answer: Any) -> None:
        try:
            pickled = pickle.dumps(answer)
        except Exception as error:  # on a thread of the pool, which would end with it
            pickled = pickle.dumps(Failed(f"an answer: {error}"))
        with lock:
            answers.write(pickled)
            answers.flush()

    with Compilers(ask.target, processes=ask.processes) as compilers:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        try:
            _rehearse(ask, compilers, tell)
        except Exception as error:
            traceback.print_exc()
            tell(Failed(f"{type(error).__name__}: {error}"))


def _rehearse(ask: Ask, compilers: Compilers, tell: Callable[[Any], None]) -> None:
    with rehearsing(overlaps=ask.overlaps) as rehearsal:
        stage, pending = Stage(ask.cast), []
        parts = (stage.usual(), _PATIENCE_SECONDS), (stage.seldom(), _MORE_PATIENCE_SECONDS)
        for steps, patience in parts:
            pending.extend(compilers.compile(variant, tell) for variant in _noted(rehearsal, steps))
            deadline = time.monotonic() + patience
            for result in pending:
                result.wait(max(0.0, deadline - time.monotonic()))
            if late := sum(not result.ready() for result in pending):
                tell(Failed(f"{late} kernels, which were not compiled after {patience:.0f} s"))
            if stage.failures:
                tell(Failed(f"{len(stage.failures)} steps, first {stage.failures[0]}"))
                stage.failures.clear()
            tell(PLAYED)
            os.nice(10)  # nobody waits for the others


def _noted(rehearsal: Rehearsal, steps: Iterator[None]) -> Iterator[Any]:
    """Variants as steps launch them for the first time."""
    seen = len(rehearsal.variants)
    for _ in steps:
        yield from list(rehearsal.variants.values())[seen:]
        seen = len(rehearsal.variants)


def _end_with_stdin() -> None:
    while os.read(0, 1):  # not by sys.stdin, which an interpreter that ends would wait for
        pass
    # To end a pool in order waits for ever where one of its processes was killed.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
