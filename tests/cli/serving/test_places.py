import contextlib
import fcntl
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

import cli.serving.places
from cli.errors import CliError
from cli.serving.places import (
    PrivateFolder,
    arena_folder,
    default_data_dir,
    dial_address,
    remove_abandoned,
    reserve,
    runtime_folder,
)
from rpc.server import Server


def test_a_port_in_use_is_found_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CliError, match=f"cannot listen on {address}: .*--listen"):
            reserve(address, contextlib.ExitStack())


async def test_port_0_becomes_a_free_port_for_servers_alone() -> None:
    with contextlib.ExitStack() as held:
        address = reserve("127.0.0.1:0", held)
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        for _ in range(2):
            server = Server()
            assert await server.start(address) == address
            await server.drain(0)
        if sys.platform == "linux":
            assert not _is_given_out(int(port))


def _is_given_out(port: int) -> bool:
    """Whether the system gives this port to who asks for any."""
    ip_local_port_range = 51
    with socket.socket() as asking:
        try:
            asking.setsockopt(socket.IPPROTO_IP, ip_local_port_range, struct.pack("I", port | port << 16))
        except OSError:
            pytest.skip("this kernel has no range of ports for a socket")
        try:
            asking.bind(("127.0.0.1", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("address", ["no.such.host.invalid:1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(CliError, match="cannot listen"):
        reserve(address, contextlib.ExitStack())


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
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_data_dir(Path("/a/model")).is_relative_to(tmp_path / "home")


def test_too_little_shared_memory_is_said() -> None:
    if not Path("/dev/shm").exists():
        pytest.skip("this platform has no /dev/shm")
    with pytest.raises(CliError, match=r"store\.arena_bytes"):
        arena_folder(1 << 62)


def test_where_no_folder_can_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CliError, match=r"cannot make a folder in .*: Not a directory"):
        PrivateFolder(tmp_path / "file")
    monkeypatch.setattr(cli.serving.places, "_SHORT", tmp_path / "nowhere")
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(CliError, match="TMPDIR"):
        runtime_folder()


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


def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another server that starts just then."""
    lock = fcntl.flock

    def late(file: IO[str], operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        remove_abandoned(tmp_path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    folder = PrivateFolder(tmp_path)
    assert list(tmp_path.iterdir()) == [folder.path]
    folder.remove()
