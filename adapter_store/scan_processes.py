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

from adapter_store.formats.scanning import Found, Look, scan
from adapter_store.scan_process import Question, receive, send

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_IDLE_SECONDS = 30.0


class ScanProcesses:
    """Starts them when they are needed, and ends those that were not for a while. Thread-safe.

    What cannot be asked of one, because none can be started or it was killed, the asking thread does itself.

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
            if self._timer is not None:
                self._timer.cancel()
        for process, _ in idle:
            _end(process)

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
            if self._idle and not is_fresh:
                return self._idle.pop()[0]
        process = _start()
        if process is None:
            with self._lock:
                self._busy -= 1
        return process

    def _give_back(self, process: subprocess.Popen[bytes], *, is_sound: bool) -> None:
        with self._lock:
            self._busy -= 1
            is_kept = is_sound and not self._is_closed
            if is_kept:
                self._idle.append((process, time.monotonic()))
                self._see_to_it()
        if not is_kept:
            _end(process)

    def _see_to_it(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(_IDLE_SECONDS, self._end_idle)
            self._timer.daemon = True
            self._timer.start()

    def _end_idle(self) -> None:
        with self._lock:
            since = time.monotonic() - _IDLE_SECONDS
            old = [process for process, used in self._idle if used <= since]
            self._idle = [(process, used) for process, used in self._idle if used > since]
            self._timer = None
            if self._idle and not self._is_closed:
                self._see_to_it()
        for process in old:
            _end(process)


def _start() -> subprocess.Popen[bytes] | None:
    paths = filter(None, (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")))
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "adapter_store.scan_process"],
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


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # it may have ended already
                pipe.close()
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
