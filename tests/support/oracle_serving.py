"""The whole executor below its service: engine, scheduler, torch runner and adapter pool, in one thread."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from executor.adapters.manifest import ManifestChecker
from executor.control.config import SchedulerConfig
from executor.control.engine import Engine, InFlight
from executor.control.mailbox import Mailbox, Submit
from executor.control.outputs import Admitted, Failed, Finished, Outputs, PromptLogprobsReady
from executor.control.plan import StepPlan, StepResult
from executor.control.request import FinishReason, Request, SamplingParams, no_ids
from executor.control.scheduler import Scheduler
from executor.model.config import ModelConfig
from executor.model.layout import build_layout
from executor.model.slots import AdapterPool
from executor.model.weights import load_parameters
from executor.pending import PendingStep
from executor.runner import RunnerConfig, TorchRunner
from rpc.digests import layout_digest
from tests.support.engine_rig import PackLoader
from tests.support.oracle_adapters import pack_adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request; `adapter` empty for the base."""

    prompt: tuple[int, ...]
    adapter: str = ""
    sampling: SamplingParams


def mixed_asks(
    owners: Sequence[str], count: int, *, longest: int = 50, outputs: tuple[int, int] = (6, 16)
) -> list[Ask]:
    """Owners in turn, prompts of fewer than `longest` tokens, some with alternatives or prompt logprobs;
    the first of `outputs` to one less than the second.
    """
    rng = random.Random(7)
    return [
        Ask(
            prompt=tuple(rng.randrange(256) for _ in range(rng.randrange(1, longest))),
            adapter=owners[i % len(owners)],
            sampling=SamplingParams(
                max_tokens=rng.randrange(*outputs),
                logprobs=rng.choice((0, 0, 3)),
                prompt_logprobs=0 if i % 7 == 0 else None,
            ),
        )
        for i in range(count)
    ]


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came back; `top` holds ids and logprobs of alternatives for each token."""

    ask: Ask
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[list[int], list[float]]] = field(default_factory=list)
    prompt_logprobs: dict[int, float] = field(default_factory=dict)
    cached_tokens: int = -1
    finish: FinishReason = FinishReason.NONE


class _WatchedRunner:
    """Remembers the fullest batch, by rows and by slots."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.most_rows = self.most_slots = 0

    def launch(self, plan: StepPlan) -> PendingStep:
        self.most_rows = max(self.most_rows, len(plan.rows))
        self.most_slots = max(self.most_slots, len(np.unique(plan.slots)))
        return self._runner.launch(plan)

    def collect(self, pending: PendingStep) -> StepResult:
        return self._runner.collect(pending)


class Server:
    """Serves a checkpoint and its adapters, given by name; names stand in for digests."""

    def __init__(
        self,
        checkpoint: Path,
        adapters: Mapping[str, Path],
        *,
        dtype: torch.dtype = torch.float32,
        pages: int = 2000,
        page_size: int = 4,
        max_running: int = 64,
        chunk: int | None = None,
        adapter_slots: int = 8,
        overlap: bool = True,
        triton: bool | None = None,
    ) -> None:
        self.model = ModelConfig.load(checkpoint)
        layout = build_layout(
            self.model, base_digest="", base_name="tiny", dtype=dtype, max_rank=64, max_pack_bytes=1 << 24
        )
        packs = {name: pack_adapter(folder, layout) for name, folder in adapters.items()}
        checker = ManifestChecker(layout, layout_digest(layout))
        for packed in packs.values():
            checker.check(packed.manifest, packed.manifest.digest)
        units = sum(len(packed.data) for packed in packs.values()) // 128 + 7
        parameters = load_parameters(checkpoint, self.model, dtype=dtype)
        pool = AdapterPool(
            self.model,
            units=units,
            slots=adapter_slots,
            dtype=dtype,
            triton=triton,
            parameters=parameters,
        )
        config = RunnerConfig(
            max_rows=max_running, pages=pages, page_size=page_size, max_context=self.model.context_length
        )
        self.scheduler = Scheduler(
            SchedulerConfig(
                context=self.model.context_length,
                pages=pages,
                page_size=page_size,
                max_running=max_running,
                chunk=chunk,
                adapter_slots=adapter_slots,
                pool_units=units,
                eos_token_ids=self.model.eos_ids,
            )
        )
        self.runner = _WatchedRunner(TorchRunner(self.model, parameters, pool=pool, config=config))
        self.loader = PackLoader(pool, packs)
        self._mailbox = Mailbox()
        self._engine = Engine(
            scheduler=self.scheduler,
            runner=self.runner,
            loader=self.loader,
            mailbox=self._mailbox,
            publish=self._take,
            overlap=overlap,
        )
        self._answers: dict[int, Answer] = {}

    def serve(self, asks: Sequence[Ask]) -> list[Answer]:
        """Submit all at once and run until the last has ended; books are checked after every step."""
        first = len(self._answers)
        for index, ask in enumerate(asks, start=first):
            self._answers[index] = Answer(ask=ask)
            prompt = np.array(ask.prompt, dtype=np.int32)
            request = Request(
                client=1,
                index=index,
                prompt_ids=prompt,
                emitted_ids=no_ids(),
                sampling=ask.sampling,
                digest=ask.adapter,
            )
            assert self._mailbox.post([Submit(request)])
        in_flight: InFlight[PendingStep] | None = None
        mine = [self._answers[index] for index in range(first, first + len(asks))]
        while in_flight is not None or not all(answer.finish for answer in mine):
            in_flight = self._engine.step(in_flight)
            assert self._engine.healthy
            self.scheduler.check_integrity()
        return mine

    def _take(self, outputs: Outputs) -> None:
        for event in outputs.events:
            match event:
                case Admitted(key=key, cached_tokens=cached_tokens):
                    self._answers[key.index].cached_tokens = cached_tokens
                case Finished(key=key, reason=reason):
                    self._answers[key.index].finish = reason
                case PromptLogprobsReady():
                    scored = enumerate(event.logprobs.tolist(), start=event.start)
                    self._answers[event.key.index].prompt_logprobs.update(scored)
                case Failed():
                    raise AssertionError(event.message)
                case _:
                    pass
        for i, index in enumerate(outputs.indexes.tolist()):
            answer = self._answers[index]
            for place in range(outputs.token_splits[i], outputs.token_splits[i + 1]):
                answer.tokens.append(int(outputs.token_ids[place]))
                answer.logprobs.append(float(outputs.logprobs[place]))
                if place in outputs.top:
                    ids, logprobs = outputs.top[place]
                    answer.top.append((ids.tolist(), logprobs.tolist()))
