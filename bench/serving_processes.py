"""The processes of `serving_path`: a frontend, and an executor that computes nothing.

python -m bench.serving_processes --model-dir=demo/qwen3-tiny    # the scripted executor alone
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from tests.support.frontend_fake_executor import FakeExecutor
from tests.support.frontend_harness import hello_for, serve_executor

CONTEXT = 4096


async def _serve_fake_executor(folder: Path, address: str, step_seconds: float) -> None:
    executor = FakeExecutor(
        hello=hello_for(folder, context_length=CONTEXT), step_seconds=step_seconds, record=False
    )
    executor.on_abort = lambda: print(f"abort {time.time_ns()}", flush=True)
    _, bound = await serve_executor(executor, address)
    print(f"serving on {bound}", flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def _process(*command: str, until: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts a process; yields it with its first line of output that holds `until`; ends it after."""
    environment = os.environ | {"LORIKEET_LOG_LEVEL": "INFO"}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if until in line:
                yield process, line.strip()
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended without a line with {until!r}")
    finally:
        process.terminate()
        process.wait(10)


def _executor_command(kind: str, folder: Path, step_seconds: float, streams: int) -> list[str]:
    if kind == "scripted":
        return [
            "bench.serving_processes",
            f"--model-dir={folder}",
            f"--step-seconds={step_seconds}",
        ]
    return [
        "cli",
        "executor",
        f"--model-dir={folder}",
        "--listen=127.0.0.1:0",
        "--runner=arithmetic",
        f"--arithmetic-step-seconds={step_seconds}",
        f"--max-running={streams}",
        f"--max-step-tokens={max(512, 2 * streams)}",
        "--kv-pages=16384",
    ]


@contextlib.contextmanager
def service(
    kind: str, folder: Path, *, step_seconds: float, streams: int
) -> Iterator[tuple[str, dict[str, subprocess.Popen[str]]]]:
    """An executor and a frontend; yields the frontend's address and both processes."""
    with contextlib.ExitStack() as stack:
        command = _executor_command(kind, folder, step_seconds, streams)
        executor, line = stack.enter_context(_process("-m", *command, until=" on 127.0.0.1:"))
        frontend, line = stack.enter_context(
            _process(
                "-m",
                "cli",
                "frontend",
                f"--model-dir={folder}",
                "--listen=127.0.0.1:0",
                f"--executor={line.split()[-1]}",
                "--store=",
                until="ready on",
            )
        )
        yield line.split()[-1], {"executor": executor, "frontend": frontend}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    uvloop.run(_serve_fake_executor(arguments.model_dir, "127.0.0.1:0", arguments.step_seconds))


if __name__ == "__main__":
    main()
