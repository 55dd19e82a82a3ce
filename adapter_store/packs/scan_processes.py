"""Processes that look at packs of very many tensors: one interpreter, shared by threads, takes longer."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adapter_store.packs.scan_process import Question, receive, send
from adapter_store.packs.scanning import Found, Look, scan

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_IDLE_SECONDS = 30.0
# What one looks at takes some 20 ms where a core is free for it.
_MOST_SECONDS = 30.0


class ScanProcesses:
    """Starts them when they are needed, and ends those that were not for a while. Thread-safe.

    What cannot be asked of one, because none can be started or it was killed (by us if it did not answer),
    the asking thread does itself.

    Args:
        path: the arena's file.
        most: processes at once.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path = str(path)
        self._most = most
        self._lock = threading.Lock()
        # With the time of its last answer; the latest is asked first.
        self._idle: list[tuple[subprocess.Popen[bytes], float]] = []
        # What was asked something, and when.
        self._asked: dict[subprocess.Popen[bytes], float] = {}
        self._timer: threading.Timer | None = None
        self._busy = 0
        self._is_closed = False

    def look(self, offset: int, pack: memoryview) -> Look:
        """How to look at a pack that is being written at `offset` of the arena's file."""
        return partial(self._look, offset, pack)

    def close(self) -> None:
        """Ends those that wait, and the others when they have answered."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            if self._timer is not None and not self._asked:
                self._timer.cancel()
        _end(*(process for process, _ in idle))

    def _look(
        self, offset: int, pack: memoryview, dtype: str, begins: Sequence[int], sizes: Sequence[int]
    ) -> Found:
        question = Question(self._path, offset, dtype, begins, sizes)
        for is_fresh in (False, True):
            process = self._take(is_fresh=is_fresh)
            if process is None:
                break
            found = None
            try:
                found = _ask(process, question)
            finally:  # also where what came was no answer: nothing more is read of it
                self._give_back(process, is_sound=found is not None)
            if found is not None:
                return found
            log.warning("a process that looks at tensors has ended unasked")
        return scan(pack, dtype, begins, sizes)

    def _take(self, *, is_fresh: bool) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._is_closed or self._busy >= self._most:
                return None
            self._busy += 1
            process = self._idle.pop()[0] if self._idle and not is_fresh else None
        process = process or _start()
        with self._lock:
            if process is None:
                self._busy -= 1
            else:
                self._asked[process] = time.monotonic()
                self._see_to_it()
        return process

    def _give_back(self, process: subprocess.Popen[bytes], *, is_sound: bool) -> None:
        with self._lock:
            self._busy -= 1
            del self._asked[process]
            is_kept = is_sound and not self._is_closed
            if is_kept:
                self._idle.append((process, time.monotonic()))
        if not is_kept:
            _end(process)

    def _see_to_it(self) -> None:
        if self._timer is None:
            timer = threading.Timer(min(_IDLE_SECONDS, _MOST_SECONDS), self._look_after_them)
            timer.daemon = True
            with contextlib.suppress(RuntimeError):  # no more threads now: the next question tries again
                timer.start()
                self._timer = timer

    def _look_after_them(self) -> None:
        with self._lock:
            now = time.monotonic()
            old = [process for process, used in self._idle if used <= now - _IDLE_SECONDS]
            self._idle = [(process, used) for process, used in self._idle if used > now - _IDLE_SECONDS]
            for process in [
                process for process, since in self._asked.items() if since <= now - _MOST_SECONDS
            ]:
                log.warning("a process that looks at tensors did not answer for %.0f s: ended", _MOST_SECONDS)
                process.kill()  # whoever asked it hears that
            self._timer = None
            if self._idle or self._asked:
                self._see_to_it()
        _end(*old)


def _start() -> subprocess.Popen[bytes] | None:
    paths = filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")))
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "adapter_store.packs.scan_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
    except OSError:
        log.warning("no process can be started to look at tensors: threads do", exc_info=True)
        return None


def _ask(process: subprocess.Popen[bytes], question: Question) -> Found | None:
    """None when it is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        send(process.stdin, question)
        return Found(*receive(process.stdout))  # pyright: ignore[reportArgumentType] - our own
    except (OSError, EOFError):
        return None


def _end(*processes: subprocess.Popen[bytes]) -> None:
    """All at once: one that was stopped takes its time."""
    for process in processes:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # it may have ended already
                    pipe.close()
    deadline = time.monotonic() + _CLOSE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
