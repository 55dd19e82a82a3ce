"""How a child tells `lorikeet serve` how far it is: lines on its stdout."""

import sys
import time
from collections.abc import Callable

_MARK = "@progress"
_PAUSE_SECONDS = 0.1


def parse_progress(line: str) -> tuple[int, int] | None:
    """(done, total) if the line is one of ours."""
    words = line.split()
    if len(words) == 3 and words[0] == _MARK and words[1].isdecimal() and words[2].isdecimal():
        return int(words[1]), int(words[2])
    return None


def print_progress() -> Callable[[int, int], None]:
    """A callback that prints such lines, a few a second and the last one."""
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _PAUSE_SECONDS:
            last = now
            sys.stdout.write(f"{_MARK} {done} {total}\n")
            sys.stdout.flush()

    return progress
