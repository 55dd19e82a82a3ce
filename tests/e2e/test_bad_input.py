"""What users get wrong, through the whole stack: a clear error each time, and nothing left behind."""

import json
import math
import pickle
import shutil
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from lorikeet.v1 import adapters_pb2, generation_pb2
from rpc.errors import from_rpc
from tests.support.answers import question
from tests.support.service_stack import DEMO, Stack, stack_at
from tests.support.waiting import WAIT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAN, INF = math.nan, math.inf
Code = grpc.StatusCode
HELD = ("pages_held", "pages_cached", "adapters_resident", "adapter_pool_bytes_free", "leases", "frontends")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def roots(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    yield tmp_path_factory.mktemp("roots")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    async with stack_at(folder, roots=(DEMO / "adapters", roots)) as stack:
        await stack.load("attention", DEMO / "adapters" / "attention")
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def unharmed(stack: Stack) -> AsyncIterator[None]:
    """Compares what executor and store hold before and after, and has a good request answered."""
    ask = question("Still there?", "attention", max_tokens=4)
    expected = await stack.answer(ask)
    before = await counters(stack)
    yield
    assert await counters(stack) == before
    assert (await stack.answer(ask)).token_ids == expected.token_ids


async def counters(stack: Stack) -> dict[str, Any]:
    executor = await stack.until_empty()
    listed = await stack.adapters.ListAdapters(adapters_pb2.ListAdaptersRequest())
    data = stack.store.log.parent / "data"
    packs = await stack.until_unleased()
    return {
        **{name: getattr(executor, name) for name in HELD},
        "adapters": [(adapter.name, adapter.digest, adapter.state) for adapter in listed.adapters],
        "files": sorted(
            str(path.relative_to(data))
            for path in data.rglob("*")
            if not path.name.endswith(("-wal", "-shm"))
        ),
        "arena": packs.arena_bytes_used,
        "packs": (packs.packs_warm, packs.packs_cold),
    }


def tokens(*ids: int) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(tokens=generation_pb2.TokenIds(ids=ids))


def with_fields(**fields: Any) -> generation_pb2.GenerateRequest:
    request = question("Hello")
    request.MergeFrom(generation_pb2.GenerateRequest(**fields))
    return request


BAD_REQUESTS: dict[str, tuple[generation_pb2.GenerateRequest, grpc.StatusCode]] = {
    "unknown adapter": (question("Hello", "nobody"), Code.NOT_FOUND),
    "unknown digest": (question("Hello", "b3:" + "0" * 64), Code.NOT_FOUND),
    "digest that is none": (question("Hello", "b3:xyz"), Code.INVALID_ARGUMENT),
    "adapter name of a megabyte": (question("Hello", "a" * (1 << 20)), Code.INVALID_ARGUMENT),
    "no prompt": (generation_pb2.GenerateRequest(), Code.INVALID_ARGUMENT),
    "empty text": (generation_pb2.GenerateRequest(text=""), Code.INVALID_ARGUMENT),
    "empty chat": (generation_pb2.GenerateRequest(chat=generation_pb2.ChatPrompt()), Code.INVALID_ARGUMENT),
    "no tokens": (tokens(), Code.INVALID_ARGUMENT),
    "token past the vocabulary": (tokens(5, 640), Code.INVALID_ARGUMENT),
    "largest token": (tokens(2**32 - 1), Code.INVALID_ARGUMENT),
    "prompt past the context": (tokens(*[5] * 4096), Code.INVALID_ARGUMENT),
    "text past the context": (question("word " * 20_000), Code.INVALID_ARGUMENT),
    "NaN temperature": (question("Hello", temperature=NAN), Code.INVALID_ARGUMENT),
    "infinite temperature": (question("Hello", temperature=INF), Code.INVALID_ARGUMENT),
    "negative temperature": (question("Hello", temperature=-1.0), Code.INVALID_ARGUMENT),
    "top_p 0": (question("Hello", top_p=0.0), Code.INVALID_ARGUMENT),
    "NaN top_p": (question("Hello", top_p=NAN), Code.INVALID_ARGUMENT),
    "min_p 2": (question("Hello", min_p=2.0), Code.INVALID_ARGUMENT),
    "repetition penalty 0": (question("Hello", repetition_penalty=0.0), Code.INVALID_ARGUMENT),
    "presence penalty NaN": (question("Hello", presence_penalty=NAN), Code.INVALID_ARGUMENT),
    "max_tokens 0": (question("Hello", max_tokens=0), Code.INVALID_ARGUMENT),
    "min_tokens over max_tokens": (question("Hello", min_tokens=99, max_tokens=9), Code.INVALID_ARGUMENT),
    "stop id past the vocabulary": (question("Hello", stop_token_ids=[640]), Code.INVALID_ARGUMENT),
    "too many stop ids": (question("Hello", stop_token_ids=range(65)), Code.INVALID_ARGUMENT),
    "bias past the vocabulary": (question("Hello", logit_bias={640: 1.0}), Code.INVALID_ARGUMENT),
    "NaN bias": (question("Hello", logit_bias={5: NAN}), Code.INVALID_ARGUMENT),
    "absurd bias": (question("Hello", logit_bias={5: 1e30}), Code.INVALID_ARGUMENT),
    "n 1000": (with_fields(n=1000), Code.INVALID_ARGUMENT),
    "logprobs 1000": (with_fields(logprobs=1000), Code.INVALID_ARGUMENT),
    "prompt logprobs 1000": (with_fields(prompt_logprobs=1000), Code.INVALID_ARGUMENT),
    "empty stop string": (with_fields(stop=[""]), Code.INVALID_ARGUMENT),
    "too many stop strings": (with_fields(stop=["x"] * 17), Code.INVALID_ARGUMENT),
    "long salt": (with_fields(cache_salt="s" * 1000), Code.INVALID_ARGUMENT),
    "tenant": (with_fields(tenant="t" * 129), Code.INVALID_ARGUMENT),
    "priority": (with_fields(priority=1), Code.UNIMPLEMENTED),
    "session": (with_fields(session_id="s"), Code.UNIMPLEMENTED),
    "response format": (
        with_fields(response_format=generation_pb2.ResponseFormat(json_schema="{}")),
        Code.UNIMPLEMENTED,
    ),
    "tools": (with_fields(tools=[generation_pb2.Tool(definition_json="{}")]), Code.UNIMPLEMENTED),
    "template variables that are no JSON": (
        generation_pb2.GenerateRequest(
            chat=generation_pb2.ChatPrompt(
                messages=[generation_pb2.ChatMessage(role="user", content="x")],
                template_variables_json="{",
            )
        ),
        Code.INVALID_ARGUMENT,
    ),
}


@pytest.mark.usefixtures("unharmed")
async def test_bad_requests_are_refused_with_a_reason_and_leave_nothing(stack: Stack) -> None:
    wrong: list[str] = []
    for name, (request, code) in BAD_REQUESTS.items():
        complaint = await complain(stack.answer(request), code)
        if complaint:
            wrong.append(f"{name}: {complaint}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("unharmed")
async def test_a_message_of_100_megabytes_is_refused(stack: Stack) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stack.answer(generation_pb2.GenerateRequest(text="x" * 100_000_000))
    assert raised.value.code() is Code.RESOURCE_EXHAUSTED


def truncated(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def cut_header(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def lying_header(folder: Path) -> None:
    """Claims a header of many gigabytes."""
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(struct.pack("<Q", 1 << 40) + weights.read_bytes()[8:])


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def overlapping(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        first, second, *_ = (name for name in header if name != "__metadata__")
        header[second]["data_offsets"] = header[first]["data_offsets"]
        header[second]["shape"] = header[first]["shape"]

    rewrite(folder, change)


def wrong_shape(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        name = next(name for name in header if "lora_A" in name)
        rank, width = header[name]["shape"]
        header[name]["shape"] = [2 * rank, width // 2]

    rewrite(folder, change)


def unknown_tensor(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        name = next(name for name in header if "lora_A" in name)
        header[name.replace("_proj", "_prox")] = header.pop(name)

    rewrite(folder, change)


def not_a_number(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = b"\xff\xff\xff\x7f"
    weights.write_bytes(content)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def pickle_in_disguise(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"weights": [1] * 1000}))


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


BAD_ADAPTERS: dict[str, tuple[Callable[[Path], None], grpc.StatusCode]] = {
    "truncated": (truncated, Code.INVALID_ARGUMENT),
    "cut-header": (cut_header, Code.INVALID_ARGUMENT),
    "lying-header": (lying_header, Code.INVALID_ARGUMENT),
    "overlapping": (overlapping, Code.INVALID_ARGUMENT),
    "wrong-shape": (wrong_shape, Code.INVALID_ARGUMENT),
    "unknown-tensor": (unknown_tensor, Code.INVALID_ARGUMENT),
    "nan": (not_a_number, Code.INVALID_ARGUMENT),
    "pickle": (pickled, Code.INVALID_ARGUMENT),
    "pickle-in-disguise": (pickle_in_disguise, Code.INVALID_ARGUMENT),
    "config-no-json": (no_json, Code.INVALID_ARGUMENT),
    "rank-too-high": (configured(r=100_000), Code.INVALID_ARGUMENT),
    "dora-without-magnitudes": (configured(use_dora=True), Code.INVALID_ARGUMENT),
    "unknown-bias": (configured(bias="some"), Code.INVALID_ARGUMENT),
    "saved-weight-missing": (configured(modules_to_save=["lm_head"]), Code.INVALID_ARGUMENT),
    "alora": (configured(alora_invocation_tokens=[1]), Code.UNIMPLEMENTED),
    "trained-tokens": (configured(trainable_token_indices=[1]), Code.UNIMPLEMENTED),
    "another-method": (configured(peft_type="IA3"), Code.UNIMPLEMENTED),
}


@pytest.mark.usefixtures("unharmed")
async def test_bad_adapters_are_refused_with_a_reason_and_leave_nothing(stack: Stack, roots: Path) -> None:
    wrong: list[str] = []
    for name, (spoil, code) in BAD_ADAPTERS.items():
        folder = roots / name
        shutil.copytree(DEMO / "adapters" / "attention", folder)
        spoil(folder)
        complaint = await complain(load(stack, name, folder), code)
        if complaint:
            wrong.append(f"{name}: {complaint}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("unharmed")
async def test_bad_sources_and_names_are_refused(stack: Stack, roots: Path, tmp_path: Path) -> None:
    outside = shutil.copytree(DEMO / "adapters" / "attention", tmp_path / "outside")
    (roots / "link").symlink_to(outside)
    cases = [
        ("good", roots / "missing", Code.NOT_FOUND),
        ("good", outside, Code.PERMISSION_DENIED),
        ("good", roots / "link", Code.PERMISSION_DENIED),
        ("good", roots / ".." / outside.relative_to(roots.parent.parent), Code.PERMISSION_DENIED),
        ("../evil", DEMO / "adapters" / "attention", Code.INVALID_ARGUMENT),
        ("", DEMO / "adapters" / "attention", Code.INVALID_ARGUMENT),
        ("n" * 200, DEMO / "adapters" / "attention", Code.INVALID_ARGUMENT),
    ]
    wrong: list[str] = []
    for name, source, code in cases:
        complaint = await complain(load(stack, name, source), code)
        if complaint:
            wrong.append(f"{name} from {source}: {complaint}")
    assert not wrong, "\n".join(wrong)


async def load(stack: Stack, name: str, source: Path) -> Any:
    request = adapters_pb2.LoadAdapterRequest(name=name, source=str(source))
    return await stack.adapters.LoadAdapter(request, timeout=WAIT_SECONDS)


async def complain(call: Any, code: grpc.StatusCode) -> str:
    """What is wrong with how a call failed; empty when it failed as it should."""
    try:
        await call
    except grpc.aio.AioRpcError as raised:
        error = from_rpc(raised)
        if error.code is not code:
            return f"{error}, expected {code.name}"
        if not error.reason or error.reason == code.name or len(error.message) < 10:
            return f"says too little: {error}"
        return ""
    return f"was accepted, expected {code.name}"
