"""A real `lorikeet serve` in a process of its own, on the demo's model."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli_runner import Finished, lorikeet

DEMO = Path(__file__).resolve().parents[2] / "demo"
MODEL = DEMO / "qwen3-tiny"
SMALL = (
    "--set=store.arena_bytes=8MiB",
    "--set=executor.kv_bytes=16MiB",
    "--set=executor.adapter_pool_bytes=8MiB",
    "--set=executor.drain_seconds=2",
    "--set=frontend.drain_seconds=2",
)


def adapter(name: str) -> Path:
    return DEMO / "adapters" / name


@dataclass(frozen=True, kw_only=True)
class Child:
    """One process of a server, as `ps` shows it."""

    pid: int
    service: str
    flags: dict[str, str]

    def alive(self) -> bool:
        done = subprocess.run(["ps", "-o", "stat=", "-p", str(self.pid)], capture_output=True, text=True)
        return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A started server."""

    process: subprocess.Popen[str]
    target: str
    admin_target: str
    adapters: list[str]

    def children(self) -> dict[str, Child]:
        """Service to its process, for those that run now."""
        done = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True
        )
        found: dict[str, Child] = {}
        for line in done.stdout.splitlines():
            pid, ppid, command = line.split(None, 2)
            match = re.search(r" -m cli (\w+) ", command)
            if int(ppid) == self.process.pid and match:
                flags = dict(re.findall(r" --([a-z-]+)=(\S*)", command))
                found[match[1]] = Child(pid=int(pid), service=match[1], flags=flags)
        return found

    def places(self) -> list[Path]:
        """Every file and folder that is to be gone after a stop."""
        children = self.children()
        sockets = [
            Path(children[name].flags["listen"].removeprefix("unix:")) for name in ("store", "executor")
        ]
        return [*sockets, *(socket.parent for socket in sockets), Path(children["store"].flags["arena-dir"])]

    def lorikeet(self, *arguments: str) -> Finished:
        """Runs a client command against this server."""
        return lorikeet(*arguments, "--target", self.target)


def run(*flags: str, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Runs `lorikeet` to its end."""
    arguments = [sys.executable, "-m", "cli", *command, *flags]
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, env=environment(), check=False
    )


def environment() -> dict[str, str]:
    """Ours, without settings of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORIKEET_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def serving(data_dir: Path, *flags: str) -> Iterator[Serving]:
    """Starts a server on a free port and waits until it is ready; kills what the test has not stopped."""
    command = [sys.executable, "-m", "cli", "serve", "--model", str(MODEL), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir), "--json", *SMALL, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start: {process.communicate()[1]}")
        ready = json.loads(line)
        yield Serving(
            process=process, **{field: ready[field] for field in ("target", "admin_target", "adapters")}
        )
    finally:
        # Its children see the end of their stdin and go too.
        process.kill()
        process.communicate()


def until(condition, seconds: float = 60) -> None:
    """Waits for something that another process does and tells nobody about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
