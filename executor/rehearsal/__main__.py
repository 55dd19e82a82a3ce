"""The process that rehearses and has kernels compiled; `ahead` starts it and hears from it.

A pickled `Ask` comes by stdin, which stays open as long as anybody wants the answers: pickled `Compiled` by
stdout, `USUAL` after those that usual steps launch and after the others; `Failed` says what went wrong.
"""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from executor.model import projection
from executor.rehearsal.ahead import USUAL, Ask, Failed
from executor.rehearsal.stage import Stage
from kernels.compiling import Compilers
from kernels.launch import Rehearsal, rehearsing

_PATIENCE_SECONDS = 90.0
"""With compilers that have few processors, or that were killed. What comes later is still loaded."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; whoever started us ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # others may print
    ask: Ask = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started us
    lock = threading.Lock()
    # On a device that computes nothing, torch takes milliseconds to find out what this returns.
    projection.add_product = lambda y_TN, *_: y_TN

    def tell(answer: Any) -> None:
        with lock:
            pickle.dump(answer, answers)
            answers.flush()

    with Compilers(ask.target, processes=ask.processes) as compilers:
        threading.Thread(target=_end_with_stdin, args=(compilers,), daemon=True).start()
        try:
            _rehearse(ask, compilers, tell)
        except Exception as error:
            traceback.print_exc()
            tell(Failed(f"{type(error).__name__}: {error}"))


def _rehearse(ask: Ask, compilers: Compilers, tell: Callable[[Any], None]) -> None:
    with rehearsing(overlaps=ask.overlaps) as rehearsal:
        stage, pending = Stage(ask.cast), []
        for steps in (stage.usual(), stage.seldom()):
            pending.extend(compilers.compile(variant, tell) for variant in _noted(rehearsal, steps))
            deadline = time.monotonic() + _PATIENCE_SECONDS
            for result in pending:
                result.wait(max(0.0, deadline - time.monotonic()))
            if late := sum(not result.ready() for result in pending):
                tell(Failed(f"{late} kernels, which were not compiled after {_PATIENCE_SECONDS:.0f} s"))
            if stage.failures:
                tell(Failed(f"{len(stage.failures)} steps, first {stage.failures[0]}"))
                stage.failures.clear()
            tell(USUAL)
            os.nice(10)  # nobody waits for the others


def _noted(rehearsal: Rehearsal, steps: Iterator[None]) -> Iterator[Any]:
    """Variants as steps launch them for the first time."""
    seen = len(rehearsal.variants)
    for _ in steps:
        yield from list(rehearsal.variants.values())[seen:]
        seen = len(rehearsal.variants)


def _end_with_stdin(compilers: Compilers) -> None:
    while os.read(0, 1):  # not by sys.stdin, which an interpreter that ends would wait for
        pass
    compilers.stop()
    os._exit(0)


if __name__ == "__main__":
    main()
