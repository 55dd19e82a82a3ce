"""transformers and PEFT as the judge of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.oracle_serving import Answer

SMALL_MARGIN = 1e-4
TOLERANCE = 1e-4
"""Of log probabilities in float32."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """Positions of generated tokens compared, those left out for a small margin, and the largest errors."""

    positions: int = 0
    skipped: int = 0
    logprob_error: float = 0.0
    prompt_logprob_error: float = 0.0


class Oracle:
    """Base and adapters, unmerged, one sequence at a time. Remembers what it has computed."""

    def __init__(
        self, checkpoint: Path, adapters: Mapping[str, Path], *, dtype: torch.dtype = torch.float32
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        self._model = model
        # PEFT writes biases into the base itself, saves no module that another adapter has a LoRA on, and
        # wants all adapters to target the same parameters: such adapters get a base of their own.
        self._apart: dict[str, PeftModel] = {}
        for name, folder in adapters.items():
            config = PeftConfig.from_pretrained(str(folder))
            assert isinstance(config, LoraConfig)
            if config.bias != "none" or config.modules_to_save or config.target_parameters:
                own = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
                self._apart[name] = PeftModel.from_pretrained(own, folder)
            elif isinstance(self._model, PeftModel):
                self._model.load_adapter(folder, adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        self._seen: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @torch.inference_mode()
    def logprobs(self, adapter: str, ids: Sequence[int]) -> Tensor:
        """Log probabilities after each token of a sequence: float32 `[len(ids), V]`."""
        key = adapter, tuple(ids)
        if key not in self._seen:
            batch = torch.tensor([list(ids)])
            if adapter in self._apart:
                logits = self._apart[adapter](batch).logits
            elif adapter:
                assert isinstance(self._model, PeftModel)
                self._model.set_adapter(adapter)
                logits = self._model(batch).logits
            elif isinstance(self._model, PeftModel):
                with self._model.disable_adapter():
                    logits = self._model(batch).logits
            else:
                logits = self._model(batch).logits
            self._seen[key] = logits[0].float().log_softmax(-1)
        return self._seen[key]

    def judge(self, answers: Sequence[Answer], *, most_skipped: float = 0.01) -> Verdict:
        """Assert greedy tokens equal to the oracle's, up to its first position with a small margin, and log
        probabilities within the tolerance. No more than a share of `most_skipped` may be left out.

        The oracle scores our own tokens: as long as each is its best, they are what it would have generated.
        """
        verdict = Verdict()
        for answer in answers:
            self._judge_tokens(answer, verdict)
            self._judge_prompt(answer, verdict)
        assert verdict.logprob_error < TOLERANCE, verdict
        assert verdict.prompt_logprob_error < TOLERANCE, verdict
        assert verdict.positions, verdict
        assert verdict.skipped <= most_skipped * verdict.positions, verdict
        return verdict

    def _judge_tokens(self, answer: Answer, verdict: Verdict) -> None:
        prompt = answer.ask.prompt
        expected = self.logprobs(answer.ask.adapter, [*prompt, *answer.tokens])[len(prompt) - 1 :]
        for i, token in enumerate(answer.tokens):
            best = expected[i].topk(2)
            verdict.positions += 1
            if best.values[0] - best.values[1] < SMALL_MARGIN:
                verdict.skipped += len(answer.tokens) - i
                verdict.positions += len(answer.tokens) - i - 1
                return
            where = f"{answer.ask.adapter or 'base'}, token {i} after a prompt of {len(prompt)}"
            assert token == best.indices[0], where
            verdict.logprob_error = max(
                verdict.logprob_error, abs(expected[i, token].item() - answer.logprobs[i])
            )
            if answer.top:
                for alternative, logprob in zip(*answer.top[i], strict=True):
                    error = abs(expected[i, alternative].item() - logprob)
                    verdict.logprob_error = max(verdict.logprob_error, error)

    def _judge_prompt(self, answer: Answer, verdict: Verdict) -> None:
        prompt = answer.ask.prompt
        if answer.ask.sampling.prompt_logprobs is None:
            assert not answer.prompt_logprobs
            return
        assert sorted(answer.prompt_logprobs) == list(range(1, len(prompt)))
        expected = self.logprobs(answer.ask.adapter, [*prompt, *answer.tokens])
        for position, logprob in answer.prompt_logprobs.items():
            error = abs(expected[position - 1, prompt[position]].item() - logprob)
            verdict.prompt_logprob_error = max(verdict.prompt_logprob_error, error)
