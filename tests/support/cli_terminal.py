"""`lorikeet` in a terminal of its own: a pseudo-terminal that it controls, so that keys like Ctrl-C work."""

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.waiting import WAIT_SECONDS

# Forking a process that runs gRPC is not safe: the terminal is made by a process in between. In a terminal
# nothing ignores Ctrl-C, whatever the tests were started by: a shell's job in the background ignores it.
_SPAWN = """
import os, pty, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

CTRL_C = "\x03"
CTRL_D = "\x04"


class Terminal:
    """What a person sees and types."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._seen = ""

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def see(self, text: str, seconds: float = WAIT_SECONDS) -> str:
        """Waits until `text` appears after what was seen before. Returns what came before it."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            assert self._read(deadline), f"{text!r} did not appear in {self._seen!r}"
        before, _, self._seen = self._seen.partition(text)
        return before

    def end(self, seconds: float = WAIT_SECONDS) -> int:
        """Waits for the end of the command. Returns its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(timeout=seconds)

    def _read(self, deadline: float) -> bool:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
        data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
        self._seen += _ESCAPES.sub("", data.decode(errors="replace")).replace("\r\n", "\n")
        return bool(data)


@contextlib.contextmanager
def terminal(*arguments: str, home: Path, columns: int = 100) -> Iterator[Terminal]:
    """Runs `lorikeet` with these arguments until the end of the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORIKEET_")}
    process = subprocess.Popen(
        [sys.executable, "-c", _SPAWN, sys.executable, "-m", "cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **kept,
            "TERM": "xterm",
            "COLUMNS": str(columns),
            "HOME": str(home),
            "XDG_STATE_HOME": str(home),
        },
    )
    try:
        yield Terminal(process)
    finally:
        process.kill()
        process.communicate()
