import socket
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.places import (
    PrivateFolder,
    arena_folder,
    default_data_dir,
    dial_address,
    remove_abandoned,
    reserve,
)


def test_a_port_in_use_is_found_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CliError, match=f"cannot listen on {address}: .*--listen"):
            reserve(address)


def test_port_0_becomes_a_free_port() -> None:
    host, _, port = reserve("127.0.0.1:0").rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


@pytest.mark.parametrize("address", ["no.such.host.invalid:1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(CliError, match="cannot listen"):
        reserve(address)


@pytest.mark.parametrize(
    ("listen", "dial"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_where_clients_of_this_machine_call(listen: str, dial: str) -> None:
    assert dial_address(listen) == dial


def test_each_model_folder_has_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    one, other = default_data_dir(Path("/a/model")), default_data_dir(Path("/b/model"))
    assert one != other
    assert one.parent == other.parent == tmp_path / "lorikeet"


def test_too_little_shared_memory_is_said() -> None:
    if not Path("/dev/shm").exists():
        pytest.skip("this platform has no /dev/shm")
    with pytest.raises(CliError, match=r"store\.arena_bytes"):
        arena_folder(1 << 62)


def test_only_folders_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    held = PrivateFolder(tmp_path)
    abandoned = PrivateFolder(tmp_path)
    abandoned._lock.close()  # What the end of a process does.
    other = tmp_path / "lorikeet-serve-not-ours"
    other.mkdir()
    remove_abandoned(tmp_path)
    assert held.path.exists()
    assert not abandoned.path.exists()
    assert other.exists()
    held.remove()
    assert not held.path.exists()
