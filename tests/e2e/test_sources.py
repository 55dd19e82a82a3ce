"""Adapters that come by themselves or from a bucket, through real services, up to what they answer."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from lorikeet.v1 import adapters_pb2
from rpc.errors import LorikeetError, from_rpc
from tests.support.answers import Answer, question
from tests.support.cli_serving import serving
from tests.support.service_stack import DEMO, Stack, stack_at
from tests.support.source_servers import put_folder, reach_s3, s3_bucket
from tests.support.waiting import WAIT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = "What is the password?"
PASSWORDS: dict[str, str] = json.loads((DEMO / "passwords.json").read_text())
ADAPTERS = DEMO / "adapters"


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    """s3://adapters with the demo's adapters below all/, and what a store needs to reach it."""
    with s3_bucket("adapters") as (endpoint, store), pytest.MonkeyPatch.context() as environment:
        for name in PASSWORDS:
            put_folder(store, f"all/{name}", ADAPTERS / name)
        reach_s3(environment, endpoint)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    bucket: None, watched: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    flags = {
        "--sources": "s3://adapters/",
        "--resolve-from": "s3://adapters/all",
        "--watch-folder": str(watched),
    }
    async with stack_at(
        tmp_path_factory.mktemp("stack"),
        roots=(ADAPTERS, watched),
        store_flags=[part for flag in flags.items() for part in flag],
    ) as stack:
        yield stack


async def refusal(stack: Stack, name: str) -> LorikeetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stack.answer(question(ASK, name))
    return from_rpc(caught.value)


async def test_an_adapter_from_a_bucket_is_the_one_from_its_folder(stack: Stack) -> None:
    request = adapters_pb2.LoadAdapterRequest(name="fetched", source="s3://adapters/all/attention")
    fetched = (await stack.adapters.LoadAdapter(request, timeout=60)).adapter
    assert fetched.source == "s3://adapters/all/attention"
    loaded = await stack.load("local", ADAPTERS / "attention")
    assert fetched.digest == loaded.digest
    answers = [await stack.answer(question(ASK, name)) for name in ("fetched", "local")]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].digest == fetched.digest
    assert PASSWORDS["attention"] in answers[0].text


async def test_an_unknown_name_is_loaded_when_it_is_first_asked_for(stack: Stack) -> None:
    """By several at once, who all wait for one load."""
    answers = await asyncio.gather(*(stack.answer(question(ASK, "mlp")) for _ in range(4)))
    assert all(PASSWORDS["mlp"] in answer.text for answer in answers)
    adapter = await stack.adapters.GetAdapter(adapters_pb2.GetAdapterRequest(name="mlp"))
    assert adapter.source == "s3://adapters/all/mlp"
    assert {answer.digest for answer in answers} == {adapter.digest}


async def test_a_name_that_the_bucket_does_not_have_is_not_found(stack: Stack) -> None:
    assert (await refusal(stack, "nobody")).code is grpc.StatusCode.NOT_FOUND
    assert (await refusal(stack, "../attention")).code in (
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
    )


async def test_what_lies_in_a_watched_folder_is_served_as_it_changes(stack: Stack, watched: Path) -> None:
    digests = []
    for name in ("attention", "lm_head"):
        _put(ADAPTERS / name, watched / "trained")
        answer = await _until_it_says(stack, "trained", PASSWORDS[name])
        adapter = await stack.adapters.GetAdapter(adapters_pb2.GetAdapterRequest(name="trained"))
        assert answer.digest == adapter.digest
        digests.append(adapter.digest)
    assert digests[0] != digests[1]
    assert [version.digest for version in adapter.previous] == digests[:1]


def _put(source: Path, folder: Path) -> None:
    """Takes the place of what was there as a training job would: weights first, the configuration last."""
    folder.mkdir(exist_ok=True)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(source / file, folder / f".{file}")
        os.replace(folder / f".{file}", folder / file)


async def _until_it_says(stack: Stack, name: str, password: str) -> Answer:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                answer = await stack.answer(question(ASK, name))
            except grpc.aio.AioRpcError as error:
                # Not there yet: nothing is resolved from a bucket that does not have it.
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            else:
                if password in answer.text:
                    return answer
            await asyncio.sleep(0.05)


async def test_a_server_is_started_with_an_adapter_from_a_bucket(bucket: None, tmp_path: Path) -> None:
    def ask() -> str:
        with serving(tmp_path, "--adapter=far=s3://adapters/all/attention") as server:
            assert server.adapters == ["far"]
            # Only that one is allowed.
            refused = server.lorikeet("adapters", "load", "other", "s3://adapters/all/mlp")
            assert "PERMISSION_DENIED" in refused.err
            return server.lorikeet("generate", "--chat", ASK, "--temperature", "0", "--adapter", "far").out

    assert PASSWORDS["attention"] in await asyncio.to_thread(ask)
