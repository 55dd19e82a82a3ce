"""Settings of a whole process that make many small messages cheaper. Each is a hint: without it all works."""

import contextlib
import gc
import os
import sys
import threading


def tune_process() -> None:
    """To be called once, when everything that lives as long as the process has been made."""
    _spare_the_collector()
    _calm_the_poller()


def _spare_the_collector() -> None:
    # Messages and futures make no cycles, but each few hundred of them would have all other objects searched.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _calm_the_poller() -> None:
    # grpc.aio waits for completions in a thread of its own. While handlers write a burst of messages, that
    # thread would be switched in after each one; as a batch thread it is not, and finds several at a time.
    if sys.platform != "linux":
        return
    for thread in threading.enumerate():
        if "_poll_wrapper" in thread.name and thread.native_id is not None:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(thread.native_id, os.SCHED_BATCH, os.sched_param(0))
