import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorikeet.v1 import adapters_pb2
from tests.support.cli_fake_server import DIGEST, FakeServer, fake_server
from tests.support.cli_runner import lorikeet


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as state:
        yield state


def load(server: FakeServer, *names: str) -> None:
    for name in names:
        assert lorikeet("adapters", "load", name, "/adapters/x", "--target", server.target).code == 0


def test_load_says_what_was_loaded(server: FakeServer) -> None:
    done = lorikeet("adapters", "load", "alice", "/adapters/alice", "--target", server.target)
    assert done.out == f"alice: 1.5 KiB, rank 8, 129 modules, digest {DIGEST[:12]}\n"
    again = lorikeet("adapters", "load", "alice", "/adapters/alice", "--target", server.target)
    assert again.out.endswith(" (unchanged)\n")


def test_load_makes_local_folders_absolute(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    lorikeet("adapters", "load", "a", "mine", "--target", server.target)
    lorikeet("adapters", "load", "b", "theirs", "--target", server.target)
    assert server.names["a"].source == str(tmp_path / "mine")
    assert server.names["b"].source == "theirs"


def test_load_fails_with_the_servers_words(server: FakeServer) -> None:
    done = lorikeet("adapters", "load", "alice", "/missing", "--target", server.target)
    assert (done.code, done.out) == (1, "")
    assert done.err == "lorikeet: NOT_FOUND (SOURCE_NOT_FOUND): nothing at /missing\n"


def test_upload_says_what_is_wrong_with_a_folder(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    file = tmp_path / "adapter_model.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}'
    for data, said in (
        (b"", "is not a safetensors file"),
        (b"\0\1", "is not a safetensors file"),
        (len(header).to_bytes(8, "little") + header, "'a' of 'F32' and [-1] is no tensor"),
    ):
        file.write_bytes(data)
        done = lorikeet("adapters", "upload", "up", str(tmp_path), "--target", server.target)
        assert (done.code, done.out) == (2, "")
        assert said in done.err


def test_conditions_and_pins_are_sent(server: FakeServer) -> None:
    target = ("--target", server.target)
    lorikeet("adapters", "load", "a", "x", "--expect", "none", "--pin", "--tenant", "acme", *target)
    done = lorikeet("adapters", "rollback", "a", "--to", "f" * 64, "--expect", DIGEST, *target)
    assert done.out == f"a: digest {'f' * 12}\n"
    shown = lorikeet("adapters", "show", "a", *target).out
    assert f"\n{DIGEST}\t1970-01-01T00:00:00Z\tx\n" in shown
    assert "pinned:   yes\n" in shown
    lorikeet("adapters", "unload", "a", "--force", "--expect", "f" * 64, *target)
    assert server.changes == [
        adapters_pb2.LoadAdapterRequest(
            name="a", source="x", expected_digest="none", pinned=True, tenant="acme"
        ),
        adapters_pb2.RollbackAdapterRequest(name="a", digest="f" * 64, expected_digest=DIGEST),
        adapters_pb2.UnloadAdapterRequest(name="a", force=True, expected_digest="f" * 64),
    ]


def test_list_follows_all_pages(server: FakeServer) -> None:
    load(server, "b", "a", "c")
    done = lorikeet("adapters", "list", "--target", server.target)
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert rows[0][1:] == ["active", "warm", "8", "1.5 KiB", DIGEST[:12]]


def test_list_as_json(server: FakeServer) -> None:
    load(server, "a", "b")
    done = lorikeet("adapters", "list", "--json", "--target", server.target)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["name"] for line in lines] == ["a", "b"]
    assert lines[0]["state"] == "ADAPTER_STATE_ACTIVE"
    assert lines[0]["pack_bytes"] == "1536"


def test_show_prints_the_report(server: FakeServer) -> None:
    load(server, "alice")
    done = lorikeet("adapters", "show", "alice", "--target", server.target)
    assert f"digest:   {DIGEST}" in done.out
    assert "model.layers.0.self_attn.q_proj\t8\t2" in done.out
    experts = "model.layers.0.mlp.experts.*.up_proj\t4\t1\t0.25 to 0.5\tlora of 128 experts"
    assert experts in done.out
    as_json = json.loads(lorikeet("adapters", "show", "alice", "--json", "--target", server.target).out)
    assert as_json["report"]["modules"][0]["scaling"] == 2.0


def test_unload(server: FakeServer) -> None:
    load(server, "alice")
    assert lorikeet("adapters", "unload", "alice", "--target", server.target).out == "alice: unloaded\n"
    again = lorikeet("adapters", "unload", "alice", "--target", server.target)
    assert again.code == 1
    assert "NOT_FOUND (ADAPTER_NOT_FOUND)" in again.err


def test_watch_prints_events(server: FakeServer) -> None:
    load(server, "alice", "bob")
    done = lorikeet("adapters", "watch", "--target", server.target)
    assert done.out == f"alice\tactive\t{DIGEST[:12]}\nbob\tactive\t{DIGEST[:12]}\n"
    one = lorikeet("adapters", "watch", "bob", "--json", "--target", server.target)
    assert [json.loads(line)["adapter"]["name"] for line in one.out.splitlines()] == ["bob"]


def test_prefetch(server: FakeServer) -> None:
    load(server, "alice")
    done = lorikeet("adapters", "prefetch", "alice", "--target", server.target)
    assert (done.code, done.out) == (0, "")
    assert lorikeet("adapters", "prefetch", "bob", "--target", server.target).code == 1


def test_models_show(server: FakeServer) -> None:
    done = lorikeet("models", "show", "--target", server.target)
    assert "name:          fake-1b" in done.out
    assert "adapters:      8 resident at once, rank up to 64" in done.out
    as_json = json.loads(lorikeet("models", "show", "--json", "--target", server.target).out)
    assert as_json["context_length"] == 512
    assert as_json["default_sampling"]["temperature"] == 0.5
