import os
import sys
import threading

import pytest

from rpc.tuning import give_way

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have a niceness of their own on Linux"
)


def _in_a_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _scheduling() -> tuple[int, int]:
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)


def test_a_thread_gives_way_with_those_that_it_starts_and_no_other():
    before = _scheduling()
    niceness = min(19, before[1] + 3)
    seen: list[tuple[int, int]] = []

    def work() -> None:
        give_way(niceness)
        seen.append(_scheduling())
        _in_a_thread(lambda: seen.append(_scheduling()))

    _in_a_thread(work)
    assert seen == [(os.SCHED_BATCH, niceness)] * 2
    assert _scheduling() == before
