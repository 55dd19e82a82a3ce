"""Which requests to send, and when: decided before the first is sent, the same for the same seed."""

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from cli.errors import usage_error, why
from cli.requests import chat_prompt
from lorikeet.v1 import generation_pb2 as pb


class Planned(NamedTuple):
    """A request and when it arrives, in seconds from the start; 0 where it is sent as soon as one before it
    has ended.
    """

    at: float
    request: pb.GenerateRequest


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """How many requests, how they arrive and what they ask for.

    Args:
        requests: how many in all.
        rate: arrivals a second, on average, of a Poisson process; None sends each when another has ended.
        output_tokens: to generate for each.
        zipf: the k-th most popular adapter is drawn with a probability in proportion to 1 / k ** zipf.
        ignore_eos: generate all of `output_tokens`.
        temperature: as in the API; None leaves it to the server.
        seed: of prompts, arrivals and choices.
    """

    requests: int
    rate: float | None
    output_tokens: int
    zipf: float
    ignore_eos: bool
    temperature: float | None
    seed: int


def plan(traffic: Traffic, prompts: Iterator[pb.GenerateRequest], adapters: Sequence[str]) -> list[Planned]:
    """Completes `prompts`, which hold a prompt and what a file says of it; `adapters` by popularity."""
    rng = random.Random(traffic.seed)  # noqa: S311 - not for secrets
    cumulated = list(itertools.accumulate(1 / (k + 1) ** traffic.zipf for k in range(len(adapters))))
    planned: list[Planned] = []
    at = 0.0
    for request in itertools.islice(prompts, traffic.requests):
        if traffic.rate is not None:
            at += rng.expovariate(traffic.rate)
        if adapters and not request.adapter:
            request.adapter = rng.choices(adapters, cum_weights=cumulated)[0]
        sampling = request.sampling
        if not sampling.HasField("max_tokens"):
            sampling.max_tokens = traffic.output_tokens
        sampling.ignore_eos = traffic.ignore_eos
        if traffic.temperature is not None:
            sampling.temperature = traffic.temperature
        sampling.seed = rng.randrange(1 << 32)
        planned.append(Planned(at, request))
    return planned


def random_prompts(tokens: int, vocab_size: int, seed: int) -> Iterator[pb.GenerateRequest]:
    """Random token ids without end, so that no two prompts share a prefix."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    while True:
        ids = [rng.randrange(vocab_size) for _ in range(tokens)]
        yield pb.GenerateRequest(tokens=pb.TokenIds(ids=ids))


def prompts_of(path: Path) -> Iterator[pb.GenerateRequest]:
    """The prompts of a file, over and over: of a .jsonl file one object a line with `text` or `messages`
    (role and content) and, if wanted, `adapter` and `max_tokens`; of any other file one text a line.

    Raises CliError for a file that cannot be read or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise usage_error(f"{path} cannot be read: {why(error)}") from error
    parse = _from_json if path.suffix == ".jsonl" else _from_text
    requests: list[pb.GenerateRequest] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                requests.append(parse(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise usage_error(f"{path}, line {number}: not a prompt ({error})") from error
    if not requests:
        raise usage_error(f"{path} holds no prompt")
    return (_copy(request) for request in itertools.cycle(requests))


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that patterns with * and ? select, in the patterns' order. Raises CliError for a pattern that
    selects none.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        selected = sorted(name for name in names if fnmatchcase(name, pattern))
        if not selected:
            raise usage_error(f"no adapter of the server is called {pattern!r}: see `lorikeet adapters list`")
        chosen |= dict.fromkeys(selected)
    return list(chosen)


def _from_text(line: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=line)


def _from_json(line: str) -> pb.GenerateRequest:
    value: Mapping[str, Any] = json.loads(line)
    unknown = value.keys() - {"text", "messages", "adapter", "max_tokens"}
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    request = pb.GenerateRequest(adapter=value.get("adapter", ""))
    if "messages" in value:
        messages = [(message["role"], message["content"]) for message in value["messages"]]
        request.chat.CopyFrom(chat_prompt(messages))
    else:
        request.text = value["text"]
    if "max_tokens" in value:
        request.sampling.max_tokens = value["max_tokens"]
    return request


def _copy(request: pb.GenerateRequest) -> pb.GenerateRequest:
    copy = pb.GenerateRequest()
    copy.CopyFrom(request)
    return copy
