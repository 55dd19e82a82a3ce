"""Mutated adapters against the store's reader, for as long as one likes.

    python -m bench.fuzz_adapters [--seconds 600] [--seed 0] [--experts]

Each case takes a good adapter, breaks it in a few random ways (bytes of the files, the safetensors header,
the config) and reads it as the store does. What must hold: nothing but LorikeetError comes out, within a
second of CPU time and a bounded amount of memory, with a message that can be sent; and what is accepted reads
the same a second time. Cases depend on the seed alone, so that one that fails can be had again: it is kept in
a folder that the report names.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_store.formats.layout import PackLayout
from adapter_store.packs.reading import read_adapter
from rpc.errors import LorikeetError

MAX_CPU_SECONDS = 5.0
"""More than the two seconds that patterns may take, and far less than a hang."""
MAX_TRACED_BYTES = 256 << 20
_ADDRESS_SPACE = 8 << 30

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 4, 64, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e300, 1e-300, "", "x",
    "all", "lora_only", "lm_head", "q_proj", "\ud800", "\x00", "a" * 5000, [], [[]], "0.18.1",
    ["gate_up_proj"], ["2.w1"], ["q_proj"], ["lm_head"], [None], [0, 1], {}, {"a": None}, {"q_proj": 4},
    {"": 1}, {".*": 10**9},
]  # fmt: skip
_PATTERNS = [
    "(a+)+$", "(.*)*", ".*.*.*.*.*.*x", "(a|aa)+", "(?:.*?){9}", "[", "(?P<x>.)", r"\1", "a{1000000}", "(((",
    "a{2,}{3,}", ".{0,99999}", r"(q_proj|v_proj|.*)", "\ud800", "x?" * 40, "|" * 500, "(?i)Q_PROJ", "[^]",
]  # fmt: skip
_PATTERN_OPTIONS = ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"]
_EXPERTS = [
    "experts",
    "experts.base_layer",
    "experts.2",
    "experts.w1",
    "experts.gate_up_proj",
    "experts.9999",
]
_DTYPES = ["F32", "F16", "BF16", "F64", "I8", "F8_E4M3", "BOOL", "", "f32", None, 7]
_PARTS = [
    "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "base_layer.weight", "weight",
    "base_layer.bias", "bias", "lora_embedding_A", "lora_A.default.weight", "modules_to_save.weight",
]  # fmt: skip


@dataclass(kw_only=True)
class Outcome:
    """What came of the cases so far; `failures` names the folder of each case that broke a promise."""

    cases: int = 0
    accepted: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest_seconds: float = 0.0
    largest_bytes: int = 0
    failures: list[str] = field(default_factory=list)


def fuzz(
    good: list[Path], layout: PackLayout, *, seconds: float, cases: int, seed: int, keep: Path
) -> Outcome:
    """Runs cases until the time or their number is used up.

    Args:
        good: adapter folders to start from, each one that the layout takes.
        keep: where the folders of cases that fail are put.
    """
    outcome = Outcome()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        while outcome.cases < cases and time.monotonic() < end:
            random_ = random.Random(f"{seed}-{outcome.cases}")
            folder = Path(scratch) / "case"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(random_.choice(good), folder)
            for _ in range(random_.choice((0, 1, 1, 1, 2, 3))):
                random_.choice(_MUTATIONS)(folder, random_)
            # Tracing slows a case down several times: time most of them, weigh one in eight.
            problem = _judge(folder, layout, outcome, weigh=outcome.cases % 8 == 0)
            if problem:
                place = keep / f"case-{seed}-{outcome.cases}"
                shutil.copytree(folder, place, dirs_exist_ok=True)
                outcome.failures.append(f"{place}: {problem}")
            outcome.cases += 1
    return outcome


def _judge(folder: Path, layout: PackLayout, outcome: Outcome, *, weigh: bool) -> str:
    """Reads one case and says what is wrong with how it went; "" when nothing is."""
    if weigh:
        tracemalloc.start()
    started = time.process_time()
    try:
        first = _read(folder, layout)
    except Exception:
        return traceback.format_exc(limit=-3)
    finally:
        elapsed = time.process_time() - started
        peak = 0
        if weigh:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        outcome.slowest_seconds = max(outcome.slowest_seconds, 0.0 if weigh else elapsed)
        outcome.largest_bytes = max(outcome.largest_bytes, peak)
    if elapsed > MAX_CPU_SECONDS and not weigh:
        return f"took {elapsed:.1f} s"
    if peak > MAX_TRACED_BYTES:
        return f"took {peak} bytes"
    if first[0] == "accepted":
        outcome.accepted += 1
        if _read(folder, layout) != first:
            return "reads differently a second time"
    outcome.reasons[first[0]] += 1
    return ""


def _read(folder: Path, layout: PackLayout) -> tuple[str, ...]:
    """What the store makes of a folder: ("accepted", digest, slices, notes) or (reason, message)."""
    try:
        checked = read_adapter(folder, layout)
    except LorikeetError as error:
        error.message.encode()
        if len(error.message) > 4000 or error.code.name not in ("INVALID_ARGUMENT", "UNIMPLEMENTED"):
            raise ValueError(f"{error.code.name} with {len(error.message)} characters") from error
        return error.reason, error.message
    return "accepted", checked.digest, str(checked.slices), str(checked.notes)


def _flip(folder: Path, random_: random.Random) -> None:
    """A few bytes of a file become others."""
    path = folder / random_.choice((_WEIGHTS, _WEIGHTS, _CONFIG))
    data = bytearray(path.read_bytes())
    limit = random_.choice((8, 64, 2000, len(data)))
    for _ in range(random_.choice((1, 1, 4, 64))):
        if data:
            data[random_.randrange(min(limit, len(data)))] = random_.choice(
                (0, 255, 34, 123, 93, random_.randrange(256))
            )
    path.write_bytes(data)


def _cut(folder: Path, random_: random.Random) -> None:
    """A piece of a file goes, or stands there twice, or a file is empty."""
    path = folder / random_.choice((_WEIGHTS, _CONFIG))
    data = path.read_bytes()
    start, end = sorted(random_.randrange(len(data) + 1) for _ in range(2))
    path.write_bytes(
        random_.choice((data[:start], data[start:], data[:start] + data[end:], data + data[start:end]))
    )


def _length(folder: Path, random_: random.Random) -> None:
    """The header's length lies."""
    data = (folder / _WEIGHTS).read_bytes()
    length = random_.choice((0, 1, 2, 7, len(data), len(data) - 8, 16 << 20, 2**31, 2**63, 2**64 - 1))
    (folder / _WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object, empty where an earlier mutation left none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _header(folder: Path, random_: random.Random) -> None:
    """The header says something else of a tensor."""
    data = (folder / _WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = _object(data[8 : 8 + length])
    entries = [name for name, entry in header.items() if isinstance(entry, dict) and len(entry) == 3]
    if not entries:
        return  # An earlier mutation has left none.
    name = random_.choice(entries)
    _change_entry(header, name, header[name], random_)
    text = json.dumps(header).encode()
    (folder / _WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _offsets(entry: dict[str, Any]) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    return (offsets[0], offsets[1]) if isinstance(offsets, list) and len(offsets) == 2 else (0, 256)


def _change_entry(header: dict[str, Any], name: str, entry: dict[str, Any], random_: random.Random) -> None:
    kind = random_.randrange(10)
    if kind == 0:
        entry["dtype"] = random_.choice(_DTYPES)
    elif kind == 1:
        entry["shape"] = random_.choice(
            ([], [0], [2**40, 2**40], [-1, 4], [1] * 9, [4, 16, 1], [16, 4], 7, ["4"])
        )
    elif kind == 2:
        begin, end = _offsets(entry)
        wrong = [end, begin], [begin, begin], [0, end], [begin + 1, end + 1], [-1, 0], [2**63, 2**64], [begin]
        entry["data_offsets"] = random_.choice((*wrong, None))
    elif kind == 3:
        other = random_.choice(("\x00", "", "\ud800", "a" * 9000, "x\ny", f"{name}.weight"))
        header[other] = header.pop(name)
    elif kind == 4:
        module = name.rpartition(".lora_")[0]
        header[f"{module}.{random_.choice(_PARTS)}"] = header.pop(name)
    elif kind == 5:
        header[name.replace("layers.0", f"layers.{random_.randrange(4)}")] = header.pop(name)
    elif kind == 6:
        header[name] = random_.choice(_VALUES)
    elif kind == 7 and isinstance(shape := entry.get("shape"), list) and shape:
        last = shape[-1] if isinstance(shape[-1], int) else 0
        entry["shape"] = random_.choice(
            (shape[::-1], [1, *shape], [*shape, 1], [2, *shape[:-1], last // 2], [*shape[:-1], last // 4, 4])
        )
    elif kind == 8:
        header[name.replace("experts", random_.choice(_EXPERTS), 1)] = header.pop(name)
    else:
        header["__metadata__"] = random_.choice(_VALUES)


def _nest(folder: Path, random_: random.Random) -> None:
    """JSON that is deep, or wide, or both."""
    depth = random_.choice((50, 1_000, 100_000))
    text = random_.choice(
        (
            b"[" * depth,
            b'{"a":' * depth,
            b"[" + b"[]," * depth + b"1]",
            b'{"a":' * depth + b"1" + b"}" * depth,
        )
    )
    if random_.random() < 0.5:
        (folder / _CONFIG).write_bytes(random_.choice((text, b'{"r":4,"x":' + text + b"}")))
    else:
        (folder / _WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)


def _option(folder: Path, random_: random.Random) -> None:
    """The config says something else."""
    config = _object((folder / _CONFIG).read_bytes())
    option = random_.choice([*config, "an_option_of_tomorrow"])
    config[option] = random_.choice(_VALUES)
    if random_.random() < 0.1:
        del config[option]
    (folder / _CONFIG).write_text(json.dumps(config))


def _pattern(folder: Path, random_: random.Random) -> None:
    """The config's patterns are hostile, or many."""
    config = _object((folder / _CONFIG).read_bytes())
    option = random_.choice(_PATTERN_OPTIONS)
    pattern = "".join(
        random_.choices(
            [*_PATTERNS, *"().*+?[]|{}\\ab_0", "q_proj", "layers", r"\d"], k=random_.randint(1, 6)
        )
    )
    patterns = (
        [pattern]
        if random_.random() < 0.7
        else [f"{pattern}{n}" for n in range(random_.choice((50, 4000, 9000)))]
    )
    if option.endswith("_pattern") and option != "layers_pattern":
        config[option] = dict.fromkeys(patterns, random_.choice((4, 0, 10**9, "4", None)))
    else:
        config[option] = random_.choice((pattern, patterns))
    (folder / _CONFIG).write_text(json.dumps(config))


_MUTATIONS = (_flip, _cut, _length, _header, _header, _header, _nest, _option, _option, _pattern)


def good_adapters(folder: Path) -> list[Path]:
    """Adapters of the toy model in several forms, written below `folder`."""
    from tests.support.store_adapters import lora_config, lora_tensors, write_adapter
    from tests.support.store_forms import toy_forms

    good = [write_adapter(folder / "plain"), write_adapter(folder / "half", lora_tensors(dtype="BF16"))]
    every = ("q_proj", "down_proj", "embed_tokens", "lm_head")
    ranks = {"q_proj": 2, "lm_head": 9}
    config = lora_config(every, rank_pattern=ranks, alpha_pattern={"down_proj": 3})
    good.append(write_adapter(folder / "every", lora_tensors(every, ranks=ranks), config))
    good += [write_adapter(folder / name, *form) for name, form in toy_forms().items()]
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experts", action="store_true", help="adapters of a model with experts")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-adapters")
    options = parser.parse_args()
    from tests.support.store_adapters import toy_pack_layout
    from tests.support.store_expert_forms import write_expert_forms
    from tests.support.store_experts import expert_pack_layout

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    with tempfile.TemporaryDirectory(prefix="fuzz-good-") as folder:
        outcome = fuzz(
            write_expert_forms(Path(folder)) if options.experts else good_adapters(Path(folder)),
            expert_pack_layout() if options.experts else toy_pack_layout(biases=True),
            seconds=options.seconds,
            cases=sys.maxsize,
            seed=options.seed,
            keep=options.keep,
        )
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{outcome.cases} cases, {outcome.accepted} accepted, {len(outcome.reasons) - 1} reasons of refusal; "
        f"slowest {outcome.slowest_seconds:.2f} s of CPU, most {outcome.largest_bytes / 1e6:.0f} MB traced, "
        f"{resident} MB resident at most"
    )
    for reason, count in outcome.reasons.most_common():
        print(f"  {reason:22} {count}")
    for failure in outcome.failures[:20]:
        print(ascii(failure))
    sys.exit(1 if outcome.failures else 0)


if __name__ == "__main__":
    main()
