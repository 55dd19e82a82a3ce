"""Streams that are closed, full, or read by nobody any more."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.cli_fake_server import FakeServer, fake_server
from tests.support.waiting import WAIT_SECONDS

GENERATE = (sys.executable, "-m", "cli", "generate")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as state:
        yield state


@pytest.mark.parametrize(
    ("redirection", "out", "err", "code"),
    [
        ("<&- 2>&-", b"base: y x\n", b"", 0),
        (">&-", b"", b"", 0),
        (">/dev/full", b"", b"lorikeet: stdout cannot be written to: No space left on device\n", 1),
    ],
)
def test_closed_and_full(server: FakeServer, redirection: str, out: bytes, err: bytes, code: int) -> None:
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", *GENERATE, "x y", "--target", server.target]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_nothing_goes_on_when_nobody_reads(server: FakeServer) -> None:
    server.hold = True
    process = subprocess.Popen(
        [*GENERATE, "x y", "--target", server.target], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(6) == b"base: "
    process.stdout.close()
    assert server.cancelled.wait(timeout=WAIT_SECONDS)
    assert process.wait(timeout=WAIT_SECONDS) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_character_that_stdout_lacks_ends_no_answer(server: FakeServer) -> None:
    command = ["env", "PYTHONIOENCODING=ascii", *GENERATE, "日 x", "--target", server.target]
    assert subprocess.run(command, capture_output=True, timeout=60).stdout == b"base: x \\u65e5\n"


def test_what_comes_by_stdin_must_be_utf8(server: FakeServer) -> None:
    command = [*GENERATE, "-", "--target", server.target]
    done = subprocess.run(command, input=b"\xff", capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"not text in UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr
