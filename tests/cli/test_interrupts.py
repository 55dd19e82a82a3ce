"""Ctrl-C ends a process that has nothing to end in order, and wakes a loop that sleeps."""

import asyncio
import signal
import subprocess
import sys
import threading

import pytest

from cli.interrupts import waking
from tests.support.waiting import WAIT_SECONDS


@pytest.mark.parametrize(
    ("before", "after", "sent", "code"),
    [
        ("", "", "SIGINT", 130),
        ("", "", "SIGTERM", 143),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "", "SIGINT", 0),
        ("", "interrupts.end_in_order()", "SIGINT", -signal.SIGINT),
    ],
    ids=["quietly", "asked to end", "ignored by who started it", "in order"],
)
def test_a_signal_before_a_command_has_begun(before: str, after: str, sent: str, code: int) -> None:
    lines = [
        "import signal",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        before,
        "from cli import interrupts",
        "interrupts.leave_at_once()",
        after,
        f"signal.raise_signal(signal.{sent})",
    ]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], stderr=subprocess.PIPE, timeout=60)
    assert ended.returncode == code
    assert (b"KeyboardInterrupt" in ended.stderr) == (code < 0)


def test_a_loop_that_sleeps_is_woken() -> None:
    # Python's handler runs in the main thread, which a signal that another thread gets does not wake.
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))

    async def wait() -> None:
        with waking(asyncio.get_running_loop()):
            timer.start()
            await asyncio.sleep(100 * WAIT_SECONDS)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(wait())
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1
