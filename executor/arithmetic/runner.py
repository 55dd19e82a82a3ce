"""A runner that computes nothing but hand-computable ids, for tests and benchmarks of everything around the
model.

    sampled id = mix(digest of the row's slot, position of the new token, token before it)

With `check`, it also behaves like a distrustful attention: it remembers which (token, position, adapter)
was written to each place of each KV page, and before a row's step looks up all its earlier tokens through
the page table. A wrong page table, position, slot or a page freed too early raises AssertionError.

Steps run when they are collected, not when launched, as on a device that is always late.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from executor.arithmetic.loader import ArithmeticLoader, SlotRow
from executor.control.plan import LAST_SAMPLED, PromptLogprobs, StepPlan, StepResult
from executor.control.request import BASE_DIGEST, Float32Array, Int32Array, SamplingParams, no_ids

_NO_TOKEN = -1


def digest_number(digest: str) -> int:
    return zlib.crc32(digest.encode())


def next_ids(
    digest_numbers: np.ndarray,
    positions: np.ndarray,
    previous: np.ndarray,
    vocab_size: int,
    first_id: int = 0,
) -> Int32Array:
    """The id at each position, int32[n], after token `previous`; all arguments are integers [n].

    Ids lie in [first_id, vocab_size).
    """
    mixed = digest_numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= (previous.astype(np.uint64) + np.uint64(1)) * np.uint64(0x165667B19E3779F9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return (mixed % np.uint64(vocab_size - first_id)).astype(np.int32) + np.int32(first_id)


def logprobs_of(ids: Int32Array) -> Float32Array:
    """The log probability that this runner claims for each id."""
    return -((ids % 8) / 8).astype(np.float32)


@dataclass(slots=True)
class _Row:
    sampling: SamplingParams
    prompt: int
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingStep:
    """A launched plan and the slot rows as they were then."""

    plan: StepPlan
    slot_rows: tuple[SlotRow | None, ...]


class ArithmeticRunner:
    """See the module. `rows` and `columns` size the page table, `pages`, `page_size` and `host_pages` the KV
    pool.
    """

    def __init__(
        self,
        *,
        rows: int,
        columns: int,
        pages: int,
        page_size: int,
        vocab_size: int,
        first_id: int = 0,
        eos_token_ids: tuple[int, ...] = (),
        loader: ArithmeticLoader | None = None,
        check: bool = True,
        host_pages: int = 0,
    ) -> None:
        self._page_size = page_size
        self._vocab_size = vocab_size
        self._first_id = first_id
        self._eos = eos_token_ids
        self._loader = loader
        self._check = check
        self._rows: list[_Row | None] = [None] * rows
        self._last = np.zeros(rows, np.int32)
        self._special = np.zeros(rows, np.bool_)
        self._page_table = np.full((rows, columns), -1, np.int32)
        self._kv_token = np.full((pages, page_size), _NO_TOKEN, np.int32)
        self._kv_position = np.full((pages, page_size), -1, np.int32)
        self._kv_digest = np.zeros((pages, page_size), np.uint32)
        self._host = [np.zeros((host_pages, page_size), kv.dtype) for kv in self._kv()]
        self._step = -1

    def launch(self, plan: StepPlan) -> PendingStep:
        slot_rows: tuple[SlotRow | None, ...] = ()
        if self._loader is not None:
            slot_rows = tuple(self._loader.slot_rows)
        return PendingStep(plan=plan, slot_rows=slot_rows)

    def collect(self, pending: PendingStep) -> StepResult:
        plan = pending.plan
        assert plan.step > self._step, f"step {plan.step} is collected after step {self._step}"
        self._step = plan.step
        for install in plan.installs:
            tokens = [*install.prompt_ids.tolist(), *install.emitted_ids.tolist()] if self._check else []
            self._rows[install.row] = _Row(install.sampling, len(install.prompt_ids), tokens)
            sampling = install.sampling
            special = sampling.logprobs or sampling.min_tokens or sampling.prompt_logprobs is not None
            self._special[install.row] = bool(special)
        self._page_table[plan.page_rows, plan.page_columns] = plan.page_ids
        for kv, host in zip(self._kv(), self._host, strict=True):
            host[plan.saves.targets] = kv[plan.saves.sources]
            kv[plan.restores.targets] = host[plan.restores.sources]

        numbers = self._digest_numbers(pending)
        lengths = np.diff(plan.query_splits)
        last = plan.input_ids[plan.query_splits[1:] - 1]
        last = np.where(last == LAST_SAMPLED, self._last[plan.rows], last)
        positions = plan.start_positions + lengths
        ids = next_ids(numbers, positions, last, self._vocab_size, self._first_id)
        for at in np.flatnonzero(self._special[plan.rows]).tolist():
            ids[at] = self._permitted(plan.rows[at], int(ids[at]), int(positions[at]))
        if self._check:
            self._check_step(plan, numbers, ids)
        sampled, ids = plan.rows[plan.samples], ids[plan.samples]
        self._last[sampled] = ids
        special = self._special[plan.rows].any()
        return StepResult(
            step=plan.step,
            rows=sampled,
            token_splits=np.arange(len(sampled) + 1, dtype=np.int32),
            token_ids=ids,
            logprobs=logprobs_of(ids),
            top=self._top(sampled, ids) if special else {},
            prompt_logprobs=self._prompt_logprobs(plan) if special else (),
        )

    def _kv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._kv_token, self._kv_position, self._kv_digest

    def _digest_numbers(self, pending: PendingStep) -> np.ndarray:
        """The adapters' numbers, uint32[R]; checks that their packs still stand where the slot rows say."""
        if self._loader is None:
            return np.full(len(pending.plan.rows), digest_number(BASE_DIGEST), np.uint32)
        by_slot = np.full(len(pending.slot_rows) + 1, digest_number(BASE_DIGEST), np.uint32)
        for slot in set(pending.plan.slots.tolist()) - {-1}:
            row = pending.slot_rows[slot]
            assert row is not None, f"a row uses slot {slot}, which shows no adapter"
            assert self._loader.holds(row), f"the pack of {row.digest} was overwritten before its last step"
            by_slot[slot] = digest_number(row.digest)
        return by_slot[pending.plan.slots]

    def _permitted(self, row: int, token_id: int, position: int) -> int:
        """The next id that may come before min_tokens tokens."""
        state = self._state(row)
        if position - state.prompt >= state.sampling.min_tokens:
            return token_id
        banned = {*state.sampling.stop_token_ids, *(() if state.sampling.ignore_eos else self._eos)}
        while token_id in banned:
            token_id = self._first_id + (token_id - self._first_id + 1) % (self._vocab_size - self._first_id)
        return token_id

    def _state(self, row: int) -> _Row:
        state = self._rows[row]
        assert state is not None, f"row {row} is scheduled but was never installed"
        return state

    def _check_step(self, plan: StepPlan, numbers: np.ndarray, ids: Int32Array) -> None:
        assert len(np.unique(plan.rows)) == len(plan.rows), "a row is scheduled twice"
        for at, row in enumerate(plan.rows.tolist()):
            tokens = self._state(row).tokens
            start = int(plan.start_positions[at])
            fed = plan.input_ids[plan.query_splits[at] : plan.query_splits[at + 1]].tolist()
            end = start + len(fed)
            if fed == [LAST_SAMPLED]:
                assert start == len(tokens) - 1, (
                    f"row {row} is at {start}, its last token at {len(tokens) - 1}"
                )
            else:
                assert fed == tokens[start:end], f"row {row} is fed other tokens than it has"
            places = np.arange(end)
            pages = self._page_table[row, places // self._page_size]
            assert pages.min() >= 0, f"row {row} has no page for a token"
            known, offsets = slice(0, start), places % self._page_size
            read = self._kv_token[pages[known], offsets[known]]
            assert np.array_equal(read, tokens[:start]), f"row {row} reads the KV of other tokens"
            assert np.array_equal(self._kv_position[pages[known], offsets[known]], places[known])
            assert (self._kv_digest[pages[known], offsets[known]] == numbers[at]).all(), (
                f"row {row}: KV of another"
            )
            new = slice(start, end)
            self._kv_token[pages[new], offsets[new]] = tokens[start:end]
            self._kv_position[pages[new], offsets[new]] = places[new]
            self._kv_digest[pages[new], offsets[new]] = numbers[at]
            assert bool(plan.samples[at]) == (end == len(tokens)), f"row {row} samples at the wrong moment"
            if plan.samples[at]:
                tokens.append(int(ids[at]))

    def _top(self, rows: Int32Array, ids: Int32Array) -> dict[int, tuple[Int32Array, Float32Array]]:
        """For rows that asked for k alternatives: the id itself and those after it."""
        top: dict[int, tuple[Int32Array, Float32Array]] = {}
        for row, token_id in zip(rows.tolist(), ids.tolist(), strict=True):
            count = self._state(row).sampling.logprobs
            if count:
                alternatives = (token_id + np.arange(count, dtype=np.int32)) % self._vocab_size
                top[row] = alternatives, logprobs_of(alternatives)
        return top

    def _prompt_logprobs(self, plan: StepPlan) -> tuple[PromptLogprobs, ...]:
        parts: list[PromptLogprobs] = []
        for at, row in enumerate(plan.rows.tolist()):
            state, start = self._state(row), int(plan.start_positions[at])
            count = state.sampling.prompt_logprobs
            if count is None or start >= state.prompt:
                continue
            end = min(start + int(plan.query_splits[at + 1] - plan.query_splits[at]) + 1, state.prompt)
            tokens = np.array(state.tokens[start + 1 : end], np.int32)
            alternatives = (tokens[:, None] + np.arange(count, dtype=np.int32)) % self._vocab_size
            if len(tokens):
                parts.append(
                    PromptLogprobs(
                        row=row,
                        start=start + 1,
                        logprobs=logprobs_of(tokens),
                        top_ids=alternatives,
                        top_logprobs=logprobs_of(alternatives),
                    )
                )
        return tuple(parts)


def continuation(
    prompt_ids: Int32Array, digest: str, count: int, vocab_size: int, first_id: int = 0
) -> Int32Array:
    """What this runner generates after a prompt if nothing stops it, int32[count]."""
    last, ids = int(prompt_ids[-1]), []
    number = np.array([digest_number(digest)])
    for position in range(len(prompt_ids), len(prompt_ids) + count):
        last = int(next_ids(number, np.array([position]), np.array([last]), vocab_size, first_id)[0])
        ids.append(last)
    return np.array(ids, np.int32) if ids else no_ids()
