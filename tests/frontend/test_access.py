"""Who may do what at a frontend: tokens, tenants, ports, TLS."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adapter_store.catalog.adapter_names import unknown_name
from frontend.adapters.rights import hidden
from lorikeet.v1 import adapters_pb2 as pb
from lorikeet.v1 import adapters_pb2_grpc, generation_pb2, generation_pb2_grpc
from rpc.channel import open_channel
from rpc.errors import from_rpc
from rpc.tls import ClientTls
from rpc.tokens import new_token
from tests.support.frontend_harness import Rig, running_rig
from tests.support.waiting import WAIT_SECONDS

Code = grpc.StatusCode
OURS, THEIRS, SHARED = "a" * 64, "b" * 64, "c" * 64
BOSS, ACME_ADMIN, ACME, STRANGER = (new_token() for _ in range(4))


def tokens_file(folder: Path) -> Path:
    path = folder / "tokens.json"
    entries = [
        {"name": "boss", "role": "admin", "token_sha256": BOSS[1]},
        {"name": "acme-admin", "role": "admin", "tenant": "acme", "token_sha256": ACME_ADMIN[1]},
        {"name": "acme", "role": "generate", "tenant": "acme", "token_sha256": ACME[1]},
    ]
    path.write_text(json.dumps(entries))
    path.chmod(0o600)
    return path


def shown(token: tuple[str, str] | None) -> dict[str, Any]:
    metadata = (("authorization", f"Bearer {token[0]}"),) if token is not None else ()
    return {"metadata": metadata, "timeout": WAIT_SECONDS}


async def ask(rig: Rig, token: tuple[str, str] | None, **fields: Any) -> str:
    """OK, or the reason of a refusal."""
    request = generation_pb2.GenerateRequest(text="Hello", sampling={"max_tokens": 1}, **fields)
    try:
        async for _ in rig.generation.Generate(request, **shown(token)):
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason
    return "OK"


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason
    return "OK"


async def test_each_call_shows_a_token_of_the_right_role(model_folder: Path, tmp_path: Path) -> None:
    async with running_rig(model_folder, auth_file=tokens_file(tmp_path)) as rig:
        assert await ask(rig, None) == "NO_TOKEN"
        assert await ask(rig, STRANGER) == "UNKNOWN_TOKEN"
        assert await ask(rig, ACME) == "OK"
        listing = pb.ListAdaptersRequest()
        assert await outcome(rig.adapters.ListAdapters(listing, **shown(None))) == "NO_TOKEN"
        assert await outcome(rig.adapters.ListAdapters(listing, **shown(ACME))) == "ADMIN_ROLE_NEEDED"
        assert await outcome(rig.adapters.ListAdapters(listing, **shown(BOSS))) == "OK"
        health: Any = health_pb2_grpc.HealthStub(rig.channel)
        assert await outcome(health.Check(health_pb2.HealthCheckRequest())) == "OK"


async def test_a_watcher_whose_token_is_withdrawn_hears_no_more(model_folder: Path, tmp_path: Path) -> None:
    path = tokens_file(tmp_path)
    async with running_rig(model_folder, auth_file=path, adapters={"a": OURS, "b": THEIRS}) as rig:
        rig.store.next_event.clear()
        calls: list[Any] = [
            rig.adapters.WatchAdapters(pb.WatchAdaptersRequest(), **shown(token))
            for token in (BOSS, ACME_ADMIN)
        ]
        for call in calls:
            assert (await call.read()).adapter.name == "a"
        entries = [entry for entry in json.loads(path.read_text()) if entry["name"] != "acme-admin"]
        path.write_text(json.dumps(entries))
        assert rig.frontend.reload_tokens()
        rig.store.next_event.set()
        assert (await calls[0].read()).adapter.name == "b"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls[1].read()
        assert from_rpc(caught.value).reason == "UNKNOWN_TOKEN"
        calls[0].cancel()


async def test_a_tenant_sees_its_own_adapters_and_those_of_none(model_folder: Path, tmp_path: Path) -> None:
    async with running_rig(model_folder, auth_file=tokens_file(tmp_path)) as rig:
        for name, tenant, digest in (("ours", "acme", OURS), ("theirs", "x", THEIRS), ("shared", "", SHARED)):
            rig.store.tenants[name] = tenant
            await rig.store.point(name, digest)
        for adapter, reason in (
            ("", "OK"),
            ("ours", "OK"),
            ("shared", "OK"),
            ("theirs", "ADAPTER_NOT_FOUND"),
            (f"b3:{OURS}", "OK"),
            (f"b3:{THEIRS}", "UNKNOWN_DIGEST"),
        ):
            assert await ask(rig, ACME, adapter=adapter) == reason, adapter
        assert await ask(rig, BOSS, adapter="theirs") == "OK"
        assert await ask(rig, ACME, tenant="acme") == "OK"
        assert await ask(rig, ACME, tenant="x") == "OTHER_TENANT"

        listed = await rig.adapters.ListAdapters(pb.ListAdaptersRequest(), **shown(ACME_ADMIN))
        assert [adapter.name for adapter in listed.adapters] == ["ours", "shared"]
        for name, reason in (
            ("theirs", "ADAPTER_NOT_FOUND"),
            ("shared", "SHARED_ADAPTER"),
            ("ours", "OK"),
        ):
            unload = rig.adapters.UnloadAdapter(pb.UnloadAdapterRequest(name=name), **shown(ACME_ADMIN))
            assert await outcome(unload) == reason, name
        # The store decides again, for names that this frontend has not heard of yet.
        assert rig.store.tenants_that_unload == ["acme"]
        theirs = pb.UnloadAdapterRequest(name="ours", tenant="x")
        assert await outcome(rig.adapters.UnloadAdapter(theirs, **shown(ACME_ADMIN))) == "OTHER_TENANT"
        for name, reason in (("theirs", "NAME_TAKEN"), ("shared", "NAME_TAKEN"), ("new", "OK")):
            request = pb.LoadAdapterRequest(name=name, source="somewhere")
            assert await outcome(rig.adapters.LoadAdapter(request, **shown(ACME_ADMIN))) == reason, name
        assert rig.store.tenants["new"] == "acme"


async def test_a_prefetch_does_not_tell_what_other_tenants_have(model_folder: Path, tmp_path: Path) -> None:
    async with running_rig(model_folder, auth_file=tokens_file(tmp_path)) as rig:
        rig.store.tenants |= {"theirs": "x", "ours": "acme", "unheard": "x"}
        await rig.store.point("theirs", THEIRS)
        await rig.store.point("ours", OURS)
        # The store knows it, this frontend has not heard of it yet.
        rig.store.digests["unheard"] = SHARED

        async def told(adapter: str) -> str:
            request = pb.PrefetchAdapterRequest(adapter=adapter)
            try:
                await rig.adapters.PrefetchAdapter(request, **shown(ACME_ADMIN))
            except grpc.aio.AioRpcError as error:
                return str(from_rpc(error)).replace(adapter.removeprefix("b3:"), "...")
            return "OK"

        assert await told("ours") == await told(f"b3:{OURS}") == "OK"
        for theirs, nobodys in (
            ("theirs", "nothing"),
            ("unheard", "nothing"),
            (f"b3:{THEIRS}", f"b3:{'0' * 64}"),
            (f"b3:{SHARED}", f"b3:{'0' * 64}"),
        ):
            assert await told(theirs) == await told(nobodys) != "OK", theirs


def upload_messages(name: str, count: int) -> list[pb.UploadAdapterRequest]:
    start = pb.UploadAdapterRequest(start=pb.UploadStart(name=name, config_json="{}"))
    chunk = pb.UploadAdapterRequest(tensor=pb.UploadTensor(name="t", data=bytes(1 << 20)))
    return [start, *[chunk] * count, pb.UploadAdapterRequest(commit=pb.UploadCommit())]


async def test_an_upload_is_passed_on_for_its_tenant(model_folder: Path, tmp_path: Path) -> None:
    async with running_rig(model_folder, auth_file=tokens_file(tmp_path)) as rig:
        call: Any = rig.adapters.UploadAdapter(iter(upload_messages("new", 8)), **shown(ACME_ADMIN))
        assert (await call).changed
        assert len(rig.store.upload_messages) == 10
        assert rig.store.tenants["new"] == "acme"
        assert await ask(rig, ACME, adapter="new") == "OK"
        rig.store.tenants["theirs"] = "x"
        await rig.store.point("theirs", THEIRS)
        call = rig.adapters.UploadAdapter(iter(upload_messages("theirs", 1)), **shown(ACME_ADMIN))
        assert await outcome(call) == "NAME_TAKEN"
        await rig.store.until(lambda: rig.store.uploads_running == 0)


async def test_an_upload_ends_when_either_side_does(model_folder: Path) -> None:
    async with running_rig(model_folder) as rig:
        refused: Any = rig.adapters.UploadAdapter(timeout=WAIT_SECONDS)
        # The client says nothing more: the store's refusal reaches it all the same.
        await refused.write(upload_messages("refused", 0)[0])
        assert await outcome(refused) == "BAD_NAME"
        left: Any = rig.adapters.UploadAdapter(timeout=WAIT_SECONDS)
        await left.write(upload_messages("left", 0)[0])
        async with asyncio.timeout(WAIT_SECONDS):
            await rig.store.until(lambda: rig.store.uploads_running == 1)
            left.cancel()
            await rig.store.until(lambda: rig.store.uploads_running == 0)


async def test_a_token_taken_out_of_the_file_counts_no_more(model_folder: Path, tmp_path: Path) -> None:
    path = tokens_file(tmp_path)
    async with running_rig(model_folder, auth_file=path) as rig:
        assert await ask(rig, ACME) == "OK"
        path.write_text("[]")
        assert rig.frontend.reload_tokens()
        assert await ask(rig, ACME) == "UNKNOWN_TOKEN"


async def test_admin_calls_have_an_address_of_their_own(model_folder: Path, tmp_path: Path) -> None:
    local = f"unix:{tmp_path}/local.sock"
    async with running_rig(
        model_folder,
        admin_listen=f"unix:{tmp_path}/admin.sock",
        local_listen=local,
        auth_file=tokens_file(tmp_path),
    ) as rig:
        listing = pb.ListAdaptersRequest()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.adapters.ListAdapters(listing, **shown(BOSS))
        assert caught.value.code() is Code.UNIMPLEMENTED
        async with open_channel(rig.frontend.admin_address) as channel:
            admin = adapters_pb2_grpc.AdapterServiceStub(channel)
            assert await outcome(admin.ListAdapters(listing, **shown(None))) == "NO_TOKEN"
            assert await outcome(admin.ListAdapters(listing, **shown(BOSS))) == "OK"
            generation = generation_pb2_grpc.GenerationServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generation.GetModel(generation_pb2.GetModelRequest(), **shown(BOSS))
            assert caught.value.code() is Code.UNIMPLEMENTED
        async with open_channel(local) as channel:
            both = (
                adapters_pb2_grpc.AdapterServiceStub(channel),
                generation_pb2_grpc.GenerationServiceStub(channel),
            )
            assert await outcome(both[0].ListAdapters(listing, **shown(None))) == "OK"
            assert await outcome(both[1].GetModel(generation_pb2.GetModelRequest(), **shown(None))) == "OK"


async def test_tls_with_a_token(model_folder: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    async with running_rig(
        model_folder,
        auth_file=tokens_file(tmp_path),
        tls_cert=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
    ) as rig:
        async with open_channel(rig.address, ClientTls(ca=tmp_path / "ca.pem").credentials()) as channel:
            generation = generation_pb2_grpc.GenerationServiceStub(channel)
            call = generation.GetModel(generation_pb2.GetModelRequest(), **shown(ACME))
            assert await outcome(call) == "OK"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generation.GetModel(generation_pb2.GetModelRequest(), timeout=WAIT_SECONDS)
        assert from_rpc(caught.value).code is Code.UNAVAILABLE


def test_another_tenants_adapter_is_told_as_one_that_there_is_not() -> None:
    """By the frontend as by the store, which knows the names that there are not."""
    ours, stores = hidden("theirs/v-1.2"), unknown_name("theirs/v-1.2")
    assert str(ours) == str(stores)
    assert ours.metadata == stores.metadata
