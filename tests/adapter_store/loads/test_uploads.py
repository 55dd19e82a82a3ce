"""Uploads into a real store over gRPC: they are served, or leave nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cli.uploading import Tensor, folder_config, folder_tensors, messages
from lorikeet.v1 import adapters_pb2 as pb
from rpc.errors import LorikeetError
from tests.support.store_adapters import lora_config, lora_tensors, write_adapter
from tests.support.store_server import RunningStore, error_of, eventually, running_store
from tests.support.waiting import WAIT_SECONDS

Code = grpc.StatusCode
Requests = Iterable[pb.UploadAdapterRequest]


def tensors(seed: int = 0) -> list[Tensor]:
    return [
        Tensor(name=name, dtype="F32", shape=array.shape, data=array)
        for name, array in lora_tensors(seed=seed).items()
    ]


def adapter(name: str = "a", *, seed: int = 0, **fields: Any) -> Requests:
    return messages(name, json.dumps(lora_config()), tensors(seed), **fields)


async def upload(running: RunningStore, requests: Requests) -> pb.LoadAdapterResponse:
    return await running.catalog.Upload(iter(requests), timeout=WAIT_SECONDS)


async def refusal(running: RunningStore, requests: Requests) -> LorikeetError:
    return await error_of(running.catalog.Upload(iter(requests), timeout=WAIT_SECONDS))


async def assert_clean(running: RunningStore) -> None:
    await running.settled()
    assert running.store.uploads.running == 0
    incoming = running.config.data_dir / "incoming"
    await eventually(lambda: not list(incoming.iterdir()))


async def test_an_upload_is_the_same_adapter_as_its_folder(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapters" / "a")
    async with running_store(tmp_path) as running:
        await running.register()
        loaded = (await running.load("from-disk", folder)).adapter
        response = await upload(running, adapter("from-memory", digest=loaded.digest))
        assert response.changed
        assert response.adapter.digest == loaded.digest
        assert response.adapter.source == "upload"
        assert response.adapter.report.modules == loaded.report.modules
        again = await upload(running, messages("from-memory", folder_config(folder), folder_tensors(folder)))
        assert not again.changed
        assert again.adapter.revision == response.adapter.revision
        await assert_clean(running)


async def test_new_content_moves_the_name(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        await running.register()
        first = (await upload(running, adapter())).adapter
        second = await upload(running, adapter(seed=1, expected_digest=first.digest))
        assert second.changed
        assert second.adapter.digest != first.digest
        await assert_clean(running)


async def test_more_tensors_than_one_header_holds(tmp_path: Path) -> None:
    # Spread over files, which are then read through their index: unknown names are what it fails for.
    many = [Tensor(name=f"{i:0100}", dtype="F32", shape=(1,), data=np.zeros(1, "f4")) for i in range(2000)]
    async with running_store(tmp_path) as running:
        await running.register()
        error = await refusal(running, messages("a", json.dumps(lora_config()), [*tensors(), *many]))
        assert error.code is Code.INVALID_ARGUMENT
        assert error.reason not in ("BAD_FILE", "NO_WEIGHTS")
        await assert_clean(running)


async def test_an_upload_that_cannot_be_spooled_is_not_its_senders_fault(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        await running.register()
        incoming = running.config.data_dir / "incoming"
        incoming.rmdir()
        error = await refusal(running, adapter())
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "FILES_FAILED")
        incoming.mkdir()
        assert (await upload(running, adapter())).changed
        await assert_clean(running)


async def test_another_digest_than_announced_is_data_loss(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        await running.register()
        error = await refusal(running, adapter(digest="0" * 64))
        assert (error.code, error.reason) == (Code.DATA_LOSS, "DIGEST_MISMATCH")
        listed = await running.catalog.List(pb.ListAdaptersRequest())
        assert not listed.adapters
        await assert_clean(running)
        assert running.store.statistics().disk.objects == 0


def reordered(*order: int) -> Requests:
    sent = list(adapter())
    return [sent[index] for index in order]


def poisoned() -> Requests:
    broken = tensors()
    data = np.array(broken[0].data)
    data.flat[3] = np.nan
    broken[0] = Tensor(name=broken[0].name, dtype="F32", shape=data.shape, data=data)
    return messages("a", json.dumps(lora_config()), broken)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([], "NO_START"),
        (reordered(1, 2, -1), "NO_START"),
        (reordered(0, 0), "SECOND_START"),
        (reordered(0, 1, 0), "SECOND_START"),
        (reordered(0, 1, 1), "BAD_TENSOR"),
        (reordered(0, 1), "NO_COMMIT"),
        (reordered(0, -1), "NO_TENSORS"),
        ([*reordered(0), pb.UploadAdapterRequest()], "UNKNOWN_MESSAGE"),
        # Refused at once: no tensor is waited for.
        ([next(iter(messages("a", json.dumps(lora_config(peft_type="LOHA")), [])))], "PEFT_TYPE"),
        (messages("a", "no json", tensors()), None),
        (messages("a", "{}", tensors()), None),
        (messages("a", json.dumps(lora_config(("q_proj",))), tensors()), None),
        (poisoned(), None),
    ],
)
async def test_what_cannot_be_served_leaves_nothing(tmp_path: Path, requests, reason) -> None:
    async with running_store(tmp_path) as running:
        await running.register()
        error = await refusal(running, requests)
        assert error.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
        assert reason in (None, error.reason)
        await assert_clean(running)
        assert running.store.statistics().disk.objects == 0


async def test_a_client_that_is_refused_while_it_sends_learns_why(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        await running.register()
        data = bytes(2 << 20)
        for _ in range(20):
            many = (Tensor(name=f"t{i}", dtype="F32", shape=(len(data) // 4,), data=data) for i in range(8))
            error = await refusal(running, messages("../bad", json.dumps(lora_config()), many))
            assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_NAME")


async def test_a_client_that_vanishes_mid_tensor_leaves_nothing(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        await running.register()
        call = running.catalog.Upload()
        sent = list(adapter())
        half = pb.UploadAdapterRequest()
        half.CopyFrom(sent[2])
        half.tensor.data = half.tensor.data[:8]
        for message in (*sent[:2], half):
            await call.write(message)
        incoming = running.config.data_dir / "incoming"
        await eventually(lambda: list(incoming.glob("*/*.part")))
        call.cancel()
        await eventually(lambda: running.store.uploads.running == 0)
        await assert_clean(running)


async def test_a_silent_client_is_given_up(tmp_path: Path) -> None:
    async with running_store(tmp_path, upload_idle_seconds=0.05) as running:
        await running.register()
        call = running.catalog.Upload()
        # On a busy machine it is given up before it has said anything.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(next(iter(adapter())))
        error = await error_of(call)
        assert (error.code, error.reason) == (Code.ABORTED, "UPLOAD_IDLE")
        await assert_clean(running)


async def test_a_client_that_always_says_a_little_is_given_up(tmp_path: Path) -> None:
    async with running_store(tmp_path, upload_seconds=0.3) as running:
        await running.register()
        start, tensor, *_ = adapter()
        byte = pb.UploadAdapterRequest(tensor=pb.UploadTensor(data=b"\0"))
        tensor.tensor.shape[0] = 1 << 20
        tensor.tensor.data = b""

        async def trickle() -> AsyncIterator[pb.UploadAdapterRequest]:
            yield start
            yield tensor
            while True:
                yield byte

        error = await error_of(running.catalog.Upload(trickle()))
        assert (error.code, error.reason) == (Code.ABORTED, "UPLOAD_SLOW")
        await assert_clean(running)


async def test_a_flood_of_starts_is_bounded(tmp_path: Path) -> None:
    async with running_store(tmp_path, max_uploads=2) as running:
        await running.register()
        calls = [running.catalog.Upload() for _ in range(2)]
        for call in calls:
            await call.write(next(iter(adapter())))
        await eventually(lambda: running.store.uploads.running == 2)
        errors = await asyncio.gather(*(refusal(running, adapter()) for _ in range(20)))
        assert {error.reason for error in errors} == {"TOO_MANY_UPLOADS"}
        assert all(error.retry_after for error in errors)
        assert len(list((running.config.data_dir / "incoming").iterdir())) <= 2
        for call in calls:
            call.cancel()
        await eventually(lambda: running.store.uploads.running == 0)
        assert (await upload(running, adapter())).changed
        await assert_clean(running)


async def test_the_stores_own_limits_hold(tmp_path: Path) -> None:
    async with running_store(tmp_path, max_adapter_bytes=1000, max_rank=2) as running:
        await running.register()
        assert (await refusal(running, adapter())).reason == "ADAPTER_TOO_LARGE"
        await assert_clean(running)
    async with running_store(tmp_path, max_rank=2) as running:
        error = await refusal(running, adapter())
        assert error.reason == "RANK_TOO_LARGE"
        assert "the store's max_rank of 2" in error.message
        await assert_clean(running)


async def test_a_tenants_quota_holds(tmp_path: Path) -> None:
    async with running_store(tmp_path, max_adapters_per_tenant=1) as running:
        await running.register()
        await upload(running, adapter("one", tenant="acme"))
        error = await refusal(running, adapter("two", seed=1, tenant="acme"))
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert (await upload(running, adapter("two", seed=1, tenant="other"))).changed
        await assert_clean(running)
    async with running_store(tmp_path, max_bytes_per_tenant=1) as running:
        error = await refusal(running, adapter("three", seed=2, tenant="third"))
        assert error.code is Code.RESOURCE_EXHAUSTED
        await assert_clean(running)
