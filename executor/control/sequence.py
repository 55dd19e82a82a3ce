"""A request on its way through the executor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from executor.control.lifecycle import State, Trigger, next_state
from executor.control.request import Int32Array, Namespace, Request, RequestKey

NO_ROW = -1


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A request's control state. While it holds a row, its tokens and counts stand in the row (`table.py`).

    `arrival` orders all requests of this executor. `emitted` int32[E] are the tokens sent to the client so
    far, up to date while no row is held. `cached_tokens` is None until the first admission.
    `was_resident`: its adapter was there when it came.
    `prompt_logprobs_from` is the first prompt position whose log probability has not been sent.
    """

    request: Request
    key: RequestKey
    namespace: Namespace
    arrival: int
    account: int
    emitted: Int32Array
    state: State = State.WAITING
    row: int = NO_ROW
    cached_tokens: int | None = None
    prompt_logprobs_from: int = 1
    was_resident: bool = True
    started: bool = False
    tainted: bool = False

    @property
    def ids(self) -> Int32Array:
        """Prompt and output, int32[P + E], while no row is held."""
        if not len(self.emitted):
            return self.request.prompt_ids
        return np.concatenate([self.request.prompt_ids, self.emitted])

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Some prompt log probabilities were asked for and are not yet sent."""
        asked = self.request.sampling.prompt_logprobs is not None
        return asked and self.prompt_logprobs_from < len(self.request.prompt_ids)

    def move(self, trigger: Trigger) -> None:
        self.state = next_state(self.state, trigger)
