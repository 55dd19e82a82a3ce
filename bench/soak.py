"""Random traffic, of which a third is cancelled, and what the services hold meanwhile and after it."""

import asyncio
import random
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psutil

from tests.support.service_stack import Stack

_BETWEEN_SAMPLES, _BETWEEN_LOOKS = 10.0, 0.5


def for_seconds(seconds: float) -> Callable[[], bool]:
    """From now on."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


async def soak(
    stack: Stack,
    send: Callable[..., Awaitable[None]],
    *,
    until: Callable[[], bool],
    workers: int,
    longest_prompt: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """`send` sends a request, of which it is told the number of tokens to come, and `adapter`, `prompt` (its
    length) and sampling by name. Names may be added meanwhile; a third of the requests asks for none, the
    rest for the k-th in about one of k.
    """
    random.seed(1)
    done = cancelled = 0
    samples: list[dict[str, Any]] = []

    async def worker() -> None:
        nonlocal done, cancelled
        while not until():
            asks_adapter = names and random.random() < 2 / 3
            adapter = names[int(len(names) ** random.random()) - 1] if asks_adapter else ""
            warm = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": random.randrange(1 << 30)}
            request = send(
                random.randrange(1, 200),
                adapter=adapter,
                prompt=random.randrange(1, longest_prompt),
                **(warm if random.random() < 0.5 else {}),
            )
            if random.random() < 1 / 3:
                try:
                    await asyncio.wait_for(request, random.random())
                    done += 1
                except TimeoutError:
                    cancelled += 1
            else:
                await request
                done += 1

    async def sample() -> None:
        samples.append(await _sample(stack) | {"requests": done, "cancelled": cancelled})
        print(samples[-1], flush=True)

    await sample()
    working = [asyncio.create_task(worker()) for _ in range(workers)]
    while not until():
        await asyncio.sleep(_BETWEEN_LOOKS)
        if time.monotonic() - samples[-1]["at_seconds"] >= _BETWEEN_SAMPLES:
            await sample()
    await asyncio.gather(*working)
    await stack.until_empty()
    await sample()
    return {"requests": done, "cancelled": cancelled, "samples": samples}


async def _sample(stack: Stack) -> dict[str, Any]:
    counts = await stack.statistics()
    return {
        "at_seconds": round(time.monotonic(), 1),
        "steps": counts.steps,
        "running": counts.requests_running,
        "pages_held": counts.pages_held,
        "pages_cached": counts.pages_cached,
        "preemptions": counts.preemptions,
        "pool_loads": counts.pool_loads,
        "rss_mb": {
            name: psutil.Process(pid).memory_info().rss >> 20
            for name, pid in (
                ("executor", stack.executor.pid),
                ("frontend", stack.frontend.pid),
                ("store", stack.store.pid),
            )
        },
        "gpu_mib": _gpu_mib(),
    }


def _gpu_mib() -> int | None:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError):
        return None
