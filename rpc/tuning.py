"""Settings of a whole process, so that running streams are spared. Each is a hint: all works without."""

import contextlib
import gc
import math
import os
import sys
import threading
from pathlib import Path

from rpc.cgroups import processor_quota


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


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and a container's quota; a machine may have more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = processor_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def share_no_products() -> None:
    """One thread for each of numpy's products, in a process that shares its work among threads of its own:
    else each of these has as many more, which are not nice. To be called before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def give_way(niceness: int) -> None:
    """Makes the calling thread, and those that it starts from now on, let others of the machine go first.

    Of a core that others want they get a third at niceness 5, a tenth at 10, and never interrupt what runs;
    what nobody wants is theirs.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            # On Linux each thread has a niceness of its own, 0 meaning the one that asks.
            os.setpriority(os.PRIO_PROCESS, 0, niceness)


def give_way_as_session(niceness: int) -> None:
    """The same for a process with a session of its own, where the kernel weighs sessions against each other
    (autogroup) and heeds a thread's niceness within its session only."""
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))
