"""Which adapters stay on the GPU: hit rates by policy, what compaction would bring, and a pool far too small.

    python -m bench.residency [--requests 20000] [--out FILE]

The executor's real scheduler and engine, with a runner that computes nothing and a loader that takes a few
steps for each adapter; time is counted in steps, so the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from executor.arithmetic.loader import ArithmeticLoader
from executor.arithmetic.runner import ArithmeticRunner, PendingStep
from executor.control.config import SchedulerConfig
from executor.control.engine import Engine, InFlight
from executor.control.eviction import EVICTION_POLICIES, LruEviction
from executor.control.mailbox import Mailbox, Submit
from executor.control.outputs import Outputs
from executor.control.ranges import RangeAllocator
from executor.control.request import Request, SamplingParams, no_ids
from executor.control.residency import Adapter, Residency
from executor.control.scheduler import Scheduler
from executor.control.slots import AdapterSlots

_ADAPTERS, _SLOTS = 2000, 64
_RANKS = (4, 8, 16, 32, 64)
_UNITS_PER_RANK = 512  # 64 KiB a rank: a small model's
_PROMPT, _LOAD_STEPS = 16, 2
_VOCAB = 1000


def zipf(count: int, adapters: int, seed: int) -> list[int]:
    """Numbers of adapters, the i-th with a likelihood of 1 / (i + 1)."""
    weights = 1.0 / np.arange(1, adapters + 1)
    return np.random.default_rng(seed).choice(adapters, count, p=weights / weights.sum()).tolist()


def sizes(adapters: int, seed: int = 7) -> list[int]:
    """Units of each adapter: ranks at random, whatever the popularity."""
    ranks = np.random.default_rng(seed).choice(_RANKS, adapters)
    return (ranks * _UNITS_PER_RANK).tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run. hit_rate: requests that found their adapter resident when they came. busy: rows at work in a
    mean step, of all rows."""

    name: str
    requests: int
    steps: int
    hit_rate: float
    swaps_per_request: float
    tokens_per_step: float
    busy: float
    longest_wait_steps: int


class Run:
    """A closed loop: `clients` requests are in the executor at any time, until all have ended."""

    def __init__(
        self,
        name: str,
        asked: Sequence[int],
        units: Sequence[int],
        *,
        slots: int,
        pool_units: int,
        rows: int,
        clients: int,
        max_tokens: int = 32,
        load_steps: int = _LOAD_STEPS,
        **config: object,
    ) -> None:
        packs = {_digest(number): size for number, size in enumerate(units)}
        longest = _PROMPT + max_tokens
        pages = rows * -(-longest // 16) * 2
        self._name, self._rows, self._clients, self._max_tokens = name, rows, clients, max_tokens
        scheduling = SchedulerConfig(
            context=longest,
            pages=pages,
            max_running=rows,
            max_step_tokens=2048,
            adapter_slots=slots,
            pool_units=pool_units,
            **config,  # pyright: ignore[reportArgumentType]
        )
        self.scheduler = Scheduler(scheduling)
        self._mailbox = Mailbox()
        self._step = 0
        self._engine: Engine[PendingStep] = Engine(
            scheduler=self.scheduler,
            runner=ArithmeticRunner(
                rows=rows,
                columns=-(-longest // 16),
                pages=pages,
                page_size=16,
                vocab_size=_VOCAB,
                check=False,
            ),
            loader=ArithmeticLoader(slots=slots, units=pool_units, packs=packs, delay=lambda: load_steps),
            mailbox=self._mailbox,
            publish=self._count,
            clock=lambda: float(self._step),
        )
        self._asked = asked
        self._sent = self._ended = self._tokens = 0
        self._longest_wait = 0.0

    def run(self) -> Outcome:
        in_flight: InFlight[PendingStep] | None = None
        while self._ended < len(self._asked):
            while self._sent < len(self._asked) and self._sent - self._ended < self._clients:
                self._submit(self._asked[self._sent])
            in_flight = self._engine.step(in_flight)
            self._step += 1
        usage, statistics = self._engine.usage.total(), self.scheduler.statistics()
        requests = len(self._asked)
        return Outcome(
            name=self._name,
            requests=requests,
            steps=self._step,
            hit_rate=round(usage.pool_hits / requests, 4),
            swaps_per_request=round(statistics.pool_loads / requests, 4),
            tokens_per_step=round(self._tokens / self._step, 1),
            busy=round(self._tokens / self._step / self._rows, 3),
            longest_wait_steps=int(self._longest_wait),
        )

    def _submit(self, number: int) -> None:
        self._sent += 1
        request = Request(
            client=1,
            index=self._sent,
            # No two prompts share a page: prefixes are not what is measured.
            prompt_ids=np.array([self._sent % _VOCAB, self._sent // _VOCAB] * (_PROMPT // 2), np.int32),
            emitted_ids=no_ids(),
            digest=_digest(number),
            sampling=SamplingParams(max_tokens=self._max_tokens, ignore_eos=True),
        )
        self._mailbox.post([Submit(request)])

    def _count(self, outputs: Outputs) -> None:
        self._ended += int(np.count_nonzero(outputs.finish_reasons))
        self._tokens += len(outputs.token_ids)
        for event in outputs.events:
            self._longest_wait = max(self._longest_wait, getattr(event, "queued_seconds", 0.0))


def _digest(number: int) -> str:
    return f"{number:064x}"


class FluidRanges(RangeAllocator):
    """A pool without fragmentation, as if it were compacted for nothing after each change."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self._used = 0

    def allocate(self, size: int) -> int | None:
        if size > self.units - self._used:
            return None
        self._used += size
        return 0

    def release(self, offset: int, size: int) -> None:
        self._used -= size

    def fits(self, size: int, released: object = ()) -> bool:
        return size <= self.units - self._used


class FluidSlots(AdapterSlots):
    """Evicts the cheapest one by one until the sum of the free bytes suffices: the best that compaction can
    do."""

    def __init__(self, *, slots: int, units: int, policy: str) -> None:
        super().__init__(slots=slots, units=units, eviction=EVICTION_POLICIES[policy]())
        self._ranges = FluidRanges(units)

    def window(self, digest: str, expendable: Collection[Adapter]) -> list[Adapter]:
        resident = sum(adapter.units for adapter in self._resident.values())
        missing = self._arriving[digest].units - (self.units - resident)
        leaving: list[Adapter] = []
        for adapter in sorted(self._resident.values(), key=self._density):
            if missing <= 0 and (leaving or self._free_slots):
                break
            leaving.append(adapter)
            missing -= adapter.units
        return leaving

    def _density(self, adapter: Adapter) -> float:
        worth = self._eviction.worth(adapter)
        return worth if isinstance(self._eviction, LruEviction) else worth / adapter.units


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests one at a time against slots alone. no_hole: placements for which the free bytes were enough
    but no hole was."""

    policy: str
    pool: str
    hit_rate: float
    evictions_per_load: float
    no_hole: float
    units_loaded_per_request: float


def trace(policy: str, asked: Sequence[int], units: Sequence[int], *, fluid: bool, slots: int) -> Trace:
    pool = round(_SLOTS * float(np.mean(units)))
    owner = (
        FluidSlots(slots=slots, units=pool, policy=policy)
        if fluid
        else AdapterSlots(slots=slots, units=pool, eviction=EVICTION_POLICIES[policy]())
    )
    hits = loads = no_hole = loaded = 0
    for number in asked:
        digest = _digest(number)
        if owner.residency(digest) == Residency.RESIDENT:
            hits += 1
        else:
            owner.acquire(digest)
            owner.granted(digest, units[number])
            had_slot, free = len(owner.resident) < slots, owner.free_units if not fluid else 0
            evicted = owner.place(digest, list(owner.resident))
            assert evicted is not None
            no_hole += bool(not fluid and had_slot and evicted and free >= units[number])
            owner.copied(digest)
            loads += 1
            loaded += units[number]
        owner.pin(digest)
        owner.unpin(digest)
        owner.take_actions()
        owner.take_moves()
    return Trace(
        policy=policy,
        pool="compacted for nothing" if fluid else "windows",
        hit_rate=round(hits / len(asked), 4),
        evictions_per_load=round(owner.evictions / loads, 3),
        no_hole=round(no_hole / loads, 4),
        units_loaded_per_request=round(loaded / len(asked), 1),
    )


def policies(requests: int) -> list[Outcome]:
    units = sizes(_ADAPTERS)
    pool = round(_SLOTS * float(np.mean(units)))
    outcomes: list[Outcome] = []
    for rows, clients in ((16, 24), (64, 96)):
        for policy in EVICTION_POLICIES:
            run = Run(
                f"{policy}, {rows} rows, {clients} clients",
                zipf(requests, _ADAPTERS, 1),
                units,
                slots=_SLOTS,
                pool_units=pool,
                rows=rows,
                clients=clients,
                pool_eviction=policy,
            )
            outcomes.append(run.run())
    return outcomes


def thrash() -> list[Outcome]:
    """20 adapters asked for alike, 64 clients, 2 slots against enough."""
    outcomes: list[Outcome] = []
    asked = [number % 20 for number in range(2000)]
    for slots in (2, 20):
        for load_steps in (2, 20):
            run = Run(
                f"{slots} slots, {load_steps} steps a load",
                asked,
                [100] * 20,
                slots=slots,
                pool_units=100 * slots,
                rows=32,
                clients=64,
                max_tokens=64,
                load_steps=load_steps // 2,
            )
            outcomes.append(run.run())
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000, help="requests of each run (default 20000)")
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = parser.parse_args()
    begun = time.monotonic()
    units = sizes(_ADAPTERS)
    asked = zipf(options.requests * 2, _ADAPTERS, 1)
    traces = [
        trace(policy, asked, units, fluid=fluid, slots=slots)
        for slots in (_SLOTS, 4 * _SLOTS)
        for policy in EVICTION_POLICIES
        for fluid in (False, True)
    ]
    result = {
        "policies": [asdict(outcome) for outcome in policies(options.requests)],
        "compaction": [asdict(line) for line in traces],
        "thrash": [asdict(outcome) for outcome in thrash()],
    }
    for name, lines in result.items():
        print(f"\n{name}")
        print("  ".join(lines[0]))
        for line in lines:
            print("  ".join(str(value) for value in line.values()))
    print(f"\n{time.monotonic() - begun:.0f} s")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
