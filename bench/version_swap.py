"""A name that moves to another version all the time, under running streams: does any answer mix versions?

    python -m bench.version_swap                          # 60 s, 64 streams, a swap every 200 ms
    python -m bench.version_swap --seconds 5 --streams 16

Store, executor and frontend are three processes. The versions are random adapters; what each must answer is
computed first by transformers with the adapter merged into the base, one at a time. Each answer is compared
with that of exactly the digest that its responses name. Every fourth swap is a rollback.
"""

import argparse
import asyncio
import itertools
import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import seeded_adapters
from lorikeet.v1 import adapters_pb2, generation_pb2
from tests.support.answers import Answer, add
from tests.support.service_stack import DEMO, Service, Stack, stack_at

MODEL = DEMO / "qwen3-tiny"
PROMPT = tuple(range(40, 72))
NAME = "swapped"
# Until memory that grows only once (pools of threads, caches) has grown.
WARM_UP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is held at one moment; RSS in MiB, without the arena's shared pages in `store` and `executor`."""

    store_mib: float
    executor_mib: float
    frontend_mib: float
    pages_held: int
    packs_warm: int
    packs_cold: int
    adapters_resident: int


@dataclass(kw_only=True)
class Outcome:
    swaps: int = 0
    requests: int = 0
    tokens: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    # What went wrong, in words.
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    swap_seconds: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def thirds(self) -> dict[str, tuple[float, float]]:
        """Each figure's mean over the first and over the last third of the samples."""
        third = max(1, len(self.samples) // 3)
        parts = (
            [asdict(sample) for sample in self.samples[:third]],
            [asdict(s) for s in self.samples[-third:]],
        )
        first, last = ({key: sum(s[key] for s in part) / len(part) for key in part[0]} for part in parts)
        return {key: (first[key], last[key]) for key in first}


class Swapping:
    """One name, its versions, and who uses it."""

    def __init__(self, stack: Stack, folder: Path, answers: Sequence[Sequence[int]], tokens: int) -> None:
        self._stack = stack
        self._sources = [str(folder / str(number)) for number in range(len(answers))]
        self._answers = answers
        self._tokens = tokens
        self._expected: dict[str, Sequence[int]] = {}
        self._over = asyncio.Event()
        self.outcome = Outcome()

    async def run(
        self, *, seconds: float, streams: int, interval: float, warm_up: float, least_swaps: int
    ) -> Outcome:
        for number, source in enumerate(self._sources):
            adapter = await self._stack.load(NAME, Path(source))
            self._expected[adapter.digest] = self._answers[number]
        assert len(self._expected) == len(self._sources), "two versions have the same content"
        clients = [asyncio.create_task(self._client()) for _ in range(streams)]
        others = [
            asyncio.create_task(self._swap(interval)),
            asyncio.create_task(self._sample(warm_up)),
        ]
        await asyncio.sleep(warm_up + seconds)
        while not (self._has_seen(least_swaps) or self.outcome.failed):  # noqa: ASYNC110 - clients tell nobody
            await asyncio.sleep(0.05)
        self._over.set()
        await asyncio.gather(*clients, *others)
        return self.outcome

    def _has_seen(self, swaps: int) -> bool:
        versions = len(self._answers) if swaps else 0
        return self.outcome.swaps >= swaps and len(self.outcome.versions) >= versions

    async def _client(self) -> None:
        request = generation_pb2.GenerateRequest(
            tokens=generation_pb2.TokenIds(ids=PROMPT),
            adapter=NAME,
            sampling=generation_pb2.SamplingParams(temperature=0, max_tokens=self._tokens, ignore_eos=True),
        )
        while not self._over.is_set():
            answer = Answer()
            try:
                async for response in self._stack.generation.Generate(request, timeout=60):
                    add(answer, response)
            except Exception as error:
                self.outcome.failed.append(str(error))
                continue
            self._check(answer)

    def _check(self, answer: Answer) -> None:
        outcome = self.outcome
        outcome.requests += 1
        outcome.tokens += len(answer.token_ids)
        outcome.versions[answer.digest] += 1
        expected = self._expected.get(answer.digest, [-1])
        if tuple(answer.token_ids[: len(expected)]) != tuple(expected):
            outcome.wrong.append(f"{answer.digest[:12]} answered {answer.token_ids}")
        if answer.summary is None or answer.summary.adapter_digest != answer.digest:
            outcome.wrong.append(f"{answer.digest[:12]} began, the summary names another")
        if len(answer.token_ids) != self._tokens:
            outcome.wrong.append(f"{len(answer.token_ids)} tokens instead of {self._tokens}")

    async def _swap(self, interval: float) -> None:
        due = time.monotonic()
        for swap, source in enumerate(itertools.cycle(self._sources), start=1):
            due += interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._over.is_set():
                return
            started = time.monotonic()
            try:
                if swap % 4:
                    load = adapters_pb2.LoadAdapterRequest(name=NAME, source=source)
                    await self._stack.adapters.LoadAdapter(load, timeout=30)
                else:
                    back = adapters_pb2.RollbackAdapterRequest(name=NAME)
                    await self._stack.adapters.RollbackAdapter(back, timeout=30)
            except Exception as error:
                self.outcome.failed.append(f"swap: {error}")
                continue
            self.outcome.swaps += 1
            self.outcome.swap_seconds.append(time.monotonic() - started)

    async def _sample(self, warm_up: float) -> None:
        await asyncio.sleep(warm_up)
        stack = self._stack
        while not self._over.is_set():
            executor, packs = await stack.statistics(), await stack.pack_statistics()
            self.outcome.samples.append(
                Sample(
                    store_mib=_private_mib(stack.store),
                    executor_mib=_private_mib(stack.executor),
                    frontend_mib=_private_mib(stack.frontend),
                    pages_held=executor.pages_held,
                    packs_warm=packs.packs_warm,
                    packs_cold=packs.packs_cold,
                    adapters_resident=executor.adapters_resident,
                )
            )
            await asyncio.sleep(0.5)


def _private_mib(service: Service) -> float:
    status = Path(f"/proc/{service.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return (int(fields["VmRSS"].split()[0]) - int(fields["RssShmem"].split()[0])) / 1024


async def measure(
    folder: Path,
    *,
    seconds: float,
    streams: int,
    interval: float,
    versions: int,
    tokens: int,
    rank: int = 8,
    warm_up: float = WARM_UP_SECONDS,
    least_swaps: int = 0,
) -> Outcome:
    """Makes the versions and their reference answers below `folder`, starts the services and swaps: for
    `seconds`, and on until there were `least_swaps` and answers of each version.
    """
    places, answers = seeded_adapters.answers(
        MODEL, count=versions, rank=rank, prompt_ids=PROMPT, max_tokens=tokens
    )
    seeded_adapters.write_all(folder / "adapters", places, count=versions, rank=rank)
    assert len(set(answers)) == versions, "two versions answer alike: nothing could be told apart"
    (folder / "services").mkdir()
    async with stack_at(folder / "services", roots=[folder / "adapters"]) as stack:
        swapping = Swapping(stack, folder / "adapters", answers, tokens)
        return await swapping.run(
            seconds=seconds, streams=streams, interval=interval, warm_up=warm_up, least_swaps=least_swaps
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--interval", type=float, default=0.2)
    parser.add_argument("--versions", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    options = vars(parser.parse_args())
    path = options.pop("out")
    with tempfile.TemporaryDirectory(prefix="lorikeet-swap-") as folder:
        outcome = asyncio.run(measure(Path(folder), **options))
    waits = sorted(outcome.swap_seconds)
    figures = {
        "swaps": outcome.swaps,
        "swap_ms_p50": 1e3 * waits[len(waits) // 2],
        "swap_ms_p99": 1e3 * waits[int(len(waits) * 0.99)],
        "requests": outcome.requests,
        "tokens": outcome.tokens,
        "versions_seen": len(outcome.versions),
        "wrong": len(outcome.wrong),
        "failed": len(outcome.failed),
    }
    for key, value in figures.items():
        print(f"{key:20} {value:12,.1f}" if isinstance(value, float) else f"{key:20} {value:12,}")
    print(f"\n{'mean of the':20} {'first third':>12} {'last third':>12}")
    thirds = outcome.thirds()
    for key, (first, last) in thirds.items():
        print(f"{key:20} {first:12.1f} {last:12.1f}")
    for trouble in (outcome.wrong + outcome.failed)[:10]:
        print(trouble)
    if path is not None:
        record = {"settings": options, "host": platform.processor() or platform.machine(), **figures}
        path.write_text(json.dumps({**record, "thirds": thirds}, indent=2) + "\n")
    raise SystemExit(1 if outcome.wrong or outcome.failed else 0)


if __name__ == "__main__":
    main()
