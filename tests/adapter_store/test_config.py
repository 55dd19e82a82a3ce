import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adapter_store.app import run
from adapter_store.config import StoreConfig
from tests.support.waiting import WAIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_work(tmp_path):
    config = StoreConfig(data_dir=tmp_path)
    assert config.roots == ()
    if sys.platform == "linux":
        assert config.arena_folder == Path(f"/dev/shm/lorikeet-{os.getuid()}")


def test_roots_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    assert StoreConfig(data_dir=tmp_path, roots=(Path("adapters"),)).roots == (tmp_path / "adapters",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"listen": "nonsense"}, "listen is 'nonsense': give host:port or unix:/path"),
        ({"listen": "unix:"}, "give host:port"),
        ({"listen": "a:99999"}, "give host:port"),
        ({"arena_bytes": 1000}, "arena_bytes is 1000: choose from"),
        ({"workers": -1}, "workers is -1"),
        ({"max_adapter_bytes": 0}, "max_adapter_bytes is 0"),
        ({"max_pending_loads": 0}, "max_pending_loads is 0"),
        ({"follower_seconds": float("nan")}, "follower_seconds is nan"),
        ({"executor_grace_seconds": -1.0}, "executor_grace_seconds is -1.0"),
        ({"roots": (Path("/no/such/folder"),)}, "/no/such/folder is not a folder: create it"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError) as caught:
        StoreConfig(data_dir=tmp_path, **change)
    assert message in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/shm")
def test_a_machine_without_shared_memory_needs_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.config._SHARED_MEMORY", tmp_path / "shm")
    with pytest.raises(ValueError, match=r"arena_dir: there is no .*name a folder on another tmpfs"):
        StoreConfig(data_dir=tmp_path)
    StoreConfig(data_dir=tmp_path, arena_dir=tmp_path)


async def test_run_says_when_it_is_ready_and_stops_when_told(tmp_path):
    config = StoreConfig(
        data_dir=tmp_path / "data", listen="127.0.0.1:0", arena_dir=tmp_path / "arena", arena_bytes=1 << 20
    )
    for _ in range(2):
        bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        serving = asyncio.ensure_future(run(config, ready=bound.set_result, stop=stop))
        host, port = (await asyncio.wait_for(bound, WAIT_SECONDS)).split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        stop.set()
        await asyncio.wait_for(serving, WAIT_SECONDS)


async def test_an_address_in_use_is_said_and_nothing_stays_locked(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = StoreConfig(
            data_dir=tmp_path / "data",
            listen=f"127.0.0.1:{taken.getsockname()[1]}",
            arena_dir=tmp_path / "arena",
            arena_bytes=1 << 20,
        )
        for _ in range(2):
            with pytest.raises(OSError, match="cannot listen on"):
                await run(config)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "-m", "cli", "store", "--data-dir", str(tmp_path / "data")]
    ended = subprocess.run(
        [*command, "--arena-bytes", "12"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    lines = ended.stderr.decode().splitlines()
    assert len(lines) == 1
    assert "arena_bytes is 12" in lines[0]
