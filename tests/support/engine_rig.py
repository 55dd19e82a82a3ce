"""An engine by itself, on either device: scheduler, runner and adapters, without services.

Imports only what a machine for GPU work has: torch, numpy, protobuf and, on a GPU, Triton.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from executor.adapters.pool import PackCopy
from executor.control.config import SchedulerConfig
from executor.control.engine import Engine, InFlight
from executor.control.loader import UNIT_BYTES, Copied, Granted, LoaderEvent
from executor.control.mailbox import Mailbox, Submit
from executor.control.outputs import Failed, Outputs
from executor.control.plan import StepPlan, StepResult
from executor.control.request import Request, SamplingParams, no_ids
from executor.control.scheduler import Scheduler
from executor.model.config import ModelConfig
from executor.model.layout import named_slices
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.pending import PendingStep
from executor.runner import RunnerConfig, TorchRunner
from kernels.lora import SlotRow
from lorikeet.v1 import layout_pb2

PAGE_SIZE = 16

# Of DoRA with a bias: part of a pack, and the range of its values; the executor works out the shift.
_VECTORS = (("magnitude", 0.5, 1.5), ("bias", -0.2, 0.2), ("shift", 0.0, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """An adapter in pool layout."""

    data: bytes
    manifest: layout_pb2.PackManifest


def random_pack(
    model: ModelConfig,
    *,
    rank: int,
    dtype: torch.dtype,
    seed: int = 0,
    ends: bool = False,
    strength: float = 0.3,
    forms: bool = False,
    device: torch.device | None = None,
) -> Pack:
    """An adapter of one rank on all linear slices but routers; with `ends` on embedding and head too, with
    `forms` of DoRA and with a bias on every linear that takes them, and on routers too. `device` makes it.
    """
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    places, parts, offset = [], [], 0
    slices = named_slices(model) if ends else named_slices(model)[:-2]
    for index, named in enumerate(slices):
        if named.module.endswith("mlp.gate") and not forms:
            continue
        offsets = []
        for features, scale in ((named.shape.in_features, 1.0), (named.shape.out_features, strength)):
            std = scale * (features if named.shape.kind == "linear" and not offsets else rank) ** -0.5
            values = torch.randn(rank * features, generator=generator, device=device).mul_(std).to(dtype)
            raw = values.view(torch.uint8).cpu().numpy().tobytes()
            offsets.append(offset)
            parts.append(raw + bytes(-len(raw) % UNIT_BYTES))
            offset += len(parts[-1])
        vectors: dict[str, int] = {}
        is_formed = forms and named.shape.kind == "linear" and not named.is_plain
        for name, low, high in _VECTORS if is_formed else ():
            values = torch.empty(named.shape.out_features, device=device)
            raw = values.uniform_(low, high, generator=generator).cpu().numpy().tobytes()
            vectors[f"{name}_offset"] = offset
            parts.append(raw + bytes(-len(raw) % UNIT_BYTES))
            offset += len(parts[-1])
        places.append(
            layout_pb2.SlicePlacement(
                slice=index,
                a_offset=offsets[0],
                b_offset=offsets[1],
                rank=rank,
                padded_rank=rank,
                scaling=0.5 + (index % 7) / 7,
                **vectors,
            )
        )
    manifest = layout_pb2.PackManifest(digest=f"rank {rank}", total_bytes=offset, slices=places)
    return Pack(data=b"".join(parts), manifest=manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request; `adapter` empty for the base."""

    prompt: np.ndarray
    sampling: SamplingParams
    adapter: str = ""


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came back."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


class Rig:
    """Serves requests over parameters on their device; `packs` are adapters by name."""

    def __init__(
        self,
        model: ModelConfig,
        parameters: Parameters,
        *,
        packs: Mapping[str, Pack] | None = None,
        max_running: int,
        context: int,
        pages: int,
        max_step_tokens: int = 8192,
        chunk: int | None = None,
        overlap: bool = True,
        graphs: bool = True,
        slots: int | None = None,
        host_pages: int = 0,
        deterministic: bool = False,
        triton: bool | None = None,
    ) -> None:
        """With fewer `slots` than packs, adapters come and go. `triton` as in `AdapterPool`."""
        packs = packs or {}
        slots = len(packs) if slots is None else slots
        units = _units_of_largest(packs, slots)
        pool = AdapterPool(
            model,
            units=units,
            slots=slots,
            dtype=parameters.embed.dtype,
            device=parameters.embed.device,
            parameters=parameters,
            deterministic=deterministic,
            triton=triton,
        )
        config = SchedulerConfig(
            context=context,
            pages=pages,
            page_size=PAGE_SIZE,
            host_pages=host_pages,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            chunk=chunk,
            adapter_slots=slots,
            pool_units=units,
        )
        self.scheduler = Scheduler(config)
        of_runner = RunnerConfig(
            max_rows=max_running,
            pages=pages,
            page_size=PAGE_SIZE,
            max_context=config.longest,
            graphs=graphs,
            host_pages=host_pages,
            deterministic=deterministic,
        )
        self.runner = TimedRunner(TorchRunner(model, parameters, pool=pool, config=of_runner))
        self._mailbox = Mailbox()
        self._engine: Engine[PendingStep] = Engine(
            scheduler=self.scheduler,
            runner=self.runner,
            loader=PackLoader(pool, packs),
            mailbox=self._mailbox,
            publish=self._take,
            overlap=overlap,
        )
        self._made = 0
        self._answers: dict[int, Answer] = {}

    def serve(self, asks: Sequence[Ask]) -> list[Answer]:
        """Submit all at once and run until the last has ended."""
        mine = []
        for ask in asks:
            self._made += 1
            self._answers[self._made] = answer = Answer()
            mine.append(answer)
            request = Request(
                client=1,
                index=self._made,
                prompt_ids=ask.prompt.astype(np.int32),
                emitted_ids=no_ids(),
                sampling=ask.sampling,
                digest=ask.adapter,
            )
            if not self._mailbox.post([Submit(request)]):
                raise RuntimeError("too many requests at once")
        in_flight: InFlight[PendingStep] | None = None
        while in_flight is not None or not all(answer.finished for answer in mine):
            in_flight = self._engine.step(in_flight)
            if not self._engine.healthy:
                raise RuntimeError("steps keep failing")
        self._answers.clear()
        return mine

    def _take(self, outputs: Outputs) -> None:
        for event in outputs.events:
            if isinstance(event, Failed):
                raise RuntimeError(event.message)
        splits = outputs.token_splits
        for i, index in enumerate(outputs.indexes.tolist()):
            answer = self._answers[index]
            answer.tokens += outputs.token_ids[splits[i] : splits[i + 1]].tolist()
            answer.logprobs += outputs.logprobs[splits[i] : splits[i + 1]].tolist()
            answer.finished = answer.finished or bool(outputs.finish_reasons[i])


class TimedRunner:
    """Adds up the host's time in launches and in waiting for results."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.reset()

    def reset(self) -> None:
        self.steps, self.launching, self.waiting = 0, 0.0, 0.0

    def launch(self, plan: StepPlan) -> PendingStep:
        begun = time.perf_counter()
        pending = self._runner.launch(plan)
        self.launching += time.perf_counter() - begun
        self.steps += 1
        return pending

    def collect(self, pending: PendingStep) -> StepResult:
        begun = time.perf_counter()
        result = self._runner.collect(pending)
        self.waiting += time.perf_counter() - begun
        return result


def bring(pool: AdapterPool, slot: int, unit_offset: int, pack: Pack) -> SlotRow:
    """All that comes before a slot shows a pack."""
    row = pool.prepare(unit_offset, pack.manifest)
    pool.write([PackCopy(slot, unit_offset, pack.data, row)])
    pool.complete(unit_offset, pack.manifest, row)
    return row


def _units_of_largest(packs: Mapping[str, Pack], slots: int) -> int:
    sizes = sorted(pack.manifest.total_bytes // UNIT_BYTES for pack in packs.values())
    return sum(sizes[len(sizes) - slots :])


class PackLoader:
    """Grants and copies packs at once; `installs` counts those that came into a slot."""

    def __init__(self, pool: AdapterPool, packs: Mapping[str, Pack]) -> None:
        self.installs = 0
        self._pool, self._packs = pool, packs
        self._rows: dict[str, SlotRow] = {}
        self._events: list[LoaderEvent] = []

    def prefetch(self, digest: str) -> None:
        pass

    def acquire(self, digest: str) -> None:
        units = self._packs[digest].manifest.total_bytes // UNIT_BYTES
        self._events.append(Granted(digest=digest, units=units))

    def copy(self, digest: str, unit_offset: int, slot: int) -> None:
        self._rows[digest] = bring(self._pool, slot, unit_offset, self._packs[digest])
        self._events.append(Copied(digest=digest))

    def install(self, slot: int, digest: str) -> None:
        self.installs += 1
        self._pool.install_slot(slot, self._rows[digest])

    def clear(self, slot: int) -> None:
        self._pool.clear_slot(slot)

    def release(self, digest: str) -> None:
        pass

    def retired(self, digest: str) -> None:
        pass

    def poll(self) -> Sequence[LoaderEvent]:
        events, self._events = self._events, []
        return events
