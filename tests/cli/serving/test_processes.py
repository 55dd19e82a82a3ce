import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import cli.serving.processes
from cli.errors import CliError
from cli.serving.processes import ChildSpec, Supervisor
from tests.support.waiting import WAIT_SECONDS

PYTHON = sys.executable


class Log:
    """What the supervisor said, and a way to wait for it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.steps: list[tuple[str, int, int]] = []
        self._changed = asyncio.Event()

    def notify(self, text: str) -> None:
        self.said.append(text)
        self._changed.set()

    def line(self, name: str, text: str) -> None:
        self.lines.append((name, text))
        self._changed.set()

    def progress(self, name: str, done: int, total: int) -> None:
        self.steps.append((name, done, total))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def child(
    folder: Path, name: str, mode: str = "serve", *, stop_seconds: float = WAIT_SECONDS, after: str = ""
) -> ChildSpec:
    address = f"unix:{folder / name}"
    command = [PYTHON, "-m", "tests.support.cli_child", address, mode]
    return ChildSpec(
        name=name, command=command, environment={}, address=address, stop_seconds=stop_seconds, after=after
    )


def script(name: str, code: str) -> ChildSpec:
    return ChildSpec(
        name=name,
        command=[PYTHON, "-c", code],
        environment={},
        address="unix:/nowhere",
        stop_seconds=WAIT_SECONDS,
    )


@asynccontextmanager
async def supervised(*specs: ChildSpec) -> AsyncIterator[tuple[Supervisor, Log, asyncio.Task[None]]]:
    log = Log()
    supervisor = Supervisor(specs, log)
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, log, running
    finally:
        supervisor.kill()
        await supervisor.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def pid_of(log: Log, name: str, *, nth: int = 0) -> int:
    """Waits: a child may be ready before its line has been read."""

    def pids() -> list[int]:
        return [int(line.split()[1]) for who, line in log.lines if who == name]

    await log.until(lambda: len(pids()) > nth)
    return pids()[nth]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_starts_all_and_stops_the_last_first(tmp_path: Path) -> None:
    async with supervised(child(tmp_path, "a"), child(tmp_path, "b")) as (supervisor, log, _):
        await asyncio.gather(supervisor.wait_ready("a"), supervisor.wait_ready("b"))
        pids = [await pid_of(log, "a"), await pid_of(log, "b")]
        assert all(alive(pid) for pid in pids)
        stopped: list[str] = []
        for name, one in supervisor.children.items():
            original = one.stop

            async def stop(name: str = name, original: Callable = original) -> bool:
                stopped.append(name)
                return await original()

            one.stop = stop  # type: ignore[method-assign]
        await supervisor.stop()
        assert stopped == ["b", "a"]
        assert not any(alive(pid) for pid in pids)
        assert log.said == []


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    async with supervised(child(tmp_path, "a")) as (supervisor, log, _):
        await supervisor.wait_ready("a")
        os.kill(await pid_of(log, "a"), signal.SIGKILL)
        await log.until(lambda: len(log.said) == 2)
        assert log.said[0] == "a was ended by SIGKILL; starting it again in 0.2 s"
        assert log.said[1].startswith("a is back after")
        assert alive(await pid_of(log, "a", nth=1))


async def test_one_waits_for_another(tmp_path: Path) -> None:
    specs = [child(tmp_path, "a", after="b"), child(tmp_path, "b")]
    async with supervised(*specs) as (supervisor, log, _):
        await supervisor.wait_ready("a")
        await log.until(lambda: len(log.lines) == 2)
        assert [name for name, _ in log.lines] == ["b", "a"]


async def test_gives_up_with_the_last_lines() -> None:
    async with supervised(script("a", "print('no weights'); raise SystemExit(1)")) as (_, log, running):
        with pytest.raises(CliError) as failure:
            await running
        told = str(failure.value)
        assert (
            "a ended with exit code 1, 3 times in a row, and is given up; its last lines:\n  no weights"
            in told
        )
        assert told.endswith("\n--log-level DEBUG says more")
        assert log.said == [
            f"a ended with exit code 1 before it was ready (no weights); starting it again in {delay} s"
            for delay in (0.2, 0.5)
        ]
        assert log.lines == []


async def test_wrong_settings_are_given_up_at_once() -> None:
    async with supervised(script("a", "print('no'); raise SystemExit(2)")) as (_, log, running):
        with pytest.raises(CliError) as failure:
            await running
        assert str(failure.value) == "a ended with exit code 2 and is given up; its last lines:\n  no"
        assert log.said == []


async def test_one_that_is_killed_in_each_start_is_given_up_with_what_to_do() -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    async with supervised(script("a", code)) as (_, _, running):
        with pytest.raises(CliError, match=r"SIGKILL, 3 times in a row.*\n  \(nothing\)\n.*memory"):
            await running


async def test_a_child_that_hangs_is_killed(tmp_path: Path) -> None:
    async with supervised(child(tmp_path, "a", "stubborn", stop_seconds=0.1)) as (supervisor, log, _):
        await supervisor.wait_ready("a")
        await supervisor.stop()
        assert log.said == ["a did not stop within 0.1 s: killed"]
        assert not alive(await pid_of(log, "a"))


async def test_what_a_child_leaves_behind_goes_and_hides_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.serving.processes, "_LEFT_SECONDS", 0.1)
    lock = tmp_path / "lock"
    code = f"""
import fcntl, subprocess
held = open({str(lock)!r}, "w")
fcntl.flock(held, fcntl.LOCK_EX)
subprocess.Popen(["sleep", "60"], pass_fds=[held.fileno()])
raise SystemExit(2)
"""
    async with supervised(script("a", code)) as (_, _, running):
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(CliError, match="a ended with exit code 2 and is given up"):
                await running
            with lock.open() as held:  # as long as it lived
                await asyncio.to_thread(fcntl.flock, held, fcntl.LOCK_EX)


async def test_stopping_during_the_start_leaves_nothing() -> None:
    code = "import os, time; print('@progress', os.getpid(), 0, flush=True); time.sleep(60)"
    async with supervised(script("a", code)) as (supervisor, log, _):
        await log.until(lambda: bool(log.steps))
        await supervisor.stop()
        assert not alive(log.steps[0][1])


async def test_progress_is_told_and_not_shown() -> None:
    code = "print('@progress 1 4'); print('@progress x'); raise SystemExit(2)"
    async with supervised(script("a", code)) as (_, log, running):
        with pytest.raises(CliError, match=r"its last lines:\n  @progress x$"):
            await running
        assert log.steps == [("a", 1, 4)]
