"""Random traffic: every answer as if its request had been alone, every book balanced after every step,
nobody starving.

`make test` runs 10,000 steps, `-m soak` more than 100,000.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.support.control_traffic import Mix, Traffic

# The load is above what fits, with 24 requests at most in the queue. Without starvation the longest wait
# stays a few times what the queue ahead takes, however long the run.
_LONGEST_WAIT = 700

_WORLDS: dict[str, tuple[dict[str, Any], Mix]] = {
    "fair": ({}, Mix()),
    "pack": ({"queue_policy": "pack"}, Mix()),
    "few pages": ({"pages": 16, "context": 40}, Mix()),
    "host pages": ({"pages": 16, "context": 40, "host_pages": 24}, Mix()),
    "few host pages": ({"pages": 16, "context": 40, "host_pages": 3}, Mix(retire=0.05, step_failure=0.02)),
    "one slot": ({"adapter_slots": 1}, Mix()),
    "small chunks": ({"chunk": 3, "max_step_tokens": 9, "queue_policy": "pack"}, Mix()),
    "no quantum": ({"slot_quantum": 0, "max_leases": 1}, Mix(retire=0.05)),
    "many rows": ({"max_running": 20, "pages": 60, "max_step_tokens": 40}, Mix(arrival=0.6, abort=0.1)),
    "lru": ({"pool_eviction": "lru", "adapter_slots": 4}, Mix()),
    "hints": ({"adapter_slots": 4}, Mix(hint=0.5, arrival=0.25)),
    "failing steps": ({}, Mix(step_failure=0.02)),
}
every_world = pytest.mark.parametrize("name", _WORLDS)
both_depths = pytest.mark.parametrize("overlap", [False, True], ids=["depth0", "depth1"])


def drive(name: str, overlap: bool, seed: int, steps: int) -> Traffic:
    logging.getLogger("executor.control.engine").setLevel(logging.CRITICAL)
    config, mix = _WORLDS[name]
    traffic = Traffic(seed, overlap=overlap, mix=mix, **config)
    traffic.run(steps)
    traffic.finish()
    assert traffic.longest_wait < _LONGEST_WAIT, "somebody starves"
    return traffic


@every_world
@both_depths
def test_random_traffic(name: str, overlap: bool):
    traffic = drive(name, overlap, seed=1, steps=420)
    statistics = traffic.world.scheduler.statistics()
    assert statistics.steps > 200, "the traffic must keep the executor busy"
    assert len(traffic.requests) > 200
    if name == "few pages":
        assert statistics.preemptions > 10, "the shortage must be felt"
    if "host pages" in name:
        assert statistics.host.restored > 3, "what left the cache must come back"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@every_world
@both_depths
@pytest.mark.parametrize("seed", range(2, 9))
def test_random_traffic_for_long(name: str, overlap: bool, seed: int):
    drive(name, overlap, seed=seed, steps=1000)
