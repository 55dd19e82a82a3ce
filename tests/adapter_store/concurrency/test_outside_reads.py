"""Reads that never return, as of a network file system whose server is gone."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from adapter_store.concurrency import outside_reads
from adapter_store.concurrency.outside_reads import Moved, OutsideReads
from adapter_store.loads.watching import WatchedFolder
from adapter_store.sources.folder import FolderReader, copy_source
from rpc.errors import LorikeetError, from_rpc
from tests.support.store_adapters import write_adapter
from tests.support.store_server import eventually, running_store
from tests.support.waiting import WAIT_SECONDS

IDLE = 0.02


class Hanging:
    """A read that does not return before it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self, moved: Moved) -> None:
        self.threads.append(threading.current_thread())
        self.release.wait(WAIT_SECONDS)
        moved()


@contextmanager
def reading(threads: int, *, idle_seconds: float = IDLE) -> Iterator[tuple[OutsideReads, Hanging]]:
    hanging, reads = Hanging(), OutsideReads(threads, idle_seconds=idle_seconds, most_lost=2)
    yield reads, hanging
    hanging.release.set()
    reads.close()


def nothing_hangs_now(reads: OutsideReads) -> None:
    """A thread of a busy machine may get no turn for as long as those that hang are waited for."""
    reads._idle_seconds = WAIT_SECONDS


async def refusal(reads: OutsideReads, hanging: Hanging, place: str = "nfs") -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        await reads.run(place, hanging)
    return caught.value


async def test_results_and_errors_come_back():
    with reading(1, idle_seconds=WAIT_SECONDS) as (reads, _):
        assert await asyncio.gather(*(reads.run("a", lambda _, n=n: n) for n in range(5))) == [*range(5)]
        with pytest.raises(ZeroDivisionError):
            await reads.run("a", lambda _: 1 // 0)
        assert (reads.running, reads.lost) == (0, 0)


async def test_a_read_that_hangs_is_given_up_and_keeps_no_turn(caplog):
    with reading(1) as (reads, hanging):
        error = await refusal(reads, hanging)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SOURCE_UNAVAILABLE")
        nothing_hangs_now(reads)
        assert await reads.run("nfs", lambda _: "read") == "read"
        assert (reads.running, reads.lost) == (0, 1)
        assert [record.message.startswith("nfs has given nothing") for record in caplog.records] == [True]
        hanging.release.set()
        await eventually(lambda: not reads.lost)
        # Another thread has its place: it ends.
        await eventually(lambda: not hanging.threads[0].is_alive())


async def test_a_place_that_keeps_too_many_is_asked_nothing_until_one_returns():
    with reading(1) as (reads, hanging):
        for _ in range(2):
            await refusal(reads, hanging)
        error = await refusal(reads, hanging)
        assert error.message.startswith("2 reads of nfs were given up")
        assert len(hanging.threads) == 2
        nothing_hangs_now(reads)
        assert await reads.run("disk", lambda _: "read") == "read"
        hanging.release.set()
        await eventually(lambda: not reads.lost)
        assert await reads.run("nfs", lambda _: "read") == "read"


async def test_a_read_that_gets_on_is_not_given_up():
    looks, enough = [0], threading.Event()

    def slow(moved: Moved) -> str:
        while not enough.is_set():
            # Between any two looks, however long this thread gets no turn.
            before = looks[0]
            moved()
            while looks[0] == before and not enough.wait(0.001):
                pass
        return "read"

    with reading(1) as (reads, _):
        look = reads._look

        def count(read: Any) -> None:
            if looks[0] and read.got == read.seen:
                asyncio.get_running_loop().call_later(0.001, count, read)
                return
            looks[0] += 1
            look(read)

        reads._look = count
        task = asyncio.ensure_future(reads.run("nfs", slow))
        await eventually(lambda: looks[0] > 20 or task.done())
        assert not task.done()
        enough.set()
        assert await task == "read"


async def test_a_read_that_drips_is_given_up():
    def drip(moved: Moved) -> None:
        while not release.wait(0.0005):
            moved(1)

    release = threading.Event()
    with reading(1) as (reads, _):
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(LorikeetError, match="next to nothing"):
                await reads.run("nfs", drip)
        await eventually(lambda: not reads.lost)
        release.set()


async def test_a_read_that_was_given_up_does_nothing_more():
    ends: list[str] = []

    def read(moved: Moved) -> None:
        release.wait(WAIT_SECONDS)
        try:
            moved()
        except Exception as error:
            ends.append(type(error).__name__)
            raise
        ends.append("went on")

    release = threading.Event()
    with reading(1) as (reads, _):
        with pytest.raises(LorikeetError):
            await reads.run("nfs", read)
        release.set()
        await eventually(lambda: bool(ends))
        assert ends == ["_GivenUpError"]


async def test_a_read_that_hangs_does_not_keep_a_store_from_closing(monkeypatch):
    monkeypatch.setattr(outside_reads, "_CLOSE_SECONDS", 0.01)
    with reading(1, idle_seconds=WAIT_SECONDS) as (reads, hanging):
        task = asyncio.ensure_future(reads.run("nfs", hanging))
        await eventually(lambda: bool(hanging.threads))
        reads.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hanging.threads[0].daemon


def test_what_hangs_together_is_a_root(tmp_path):
    roots = [tmp_path / "a" / "b", tmp_path / "a", tmp_path / "c"]
    assert FolderReader(str(tmp_path / "a" / "b" / "x"), roots).place == str(tmp_path / "a")
    assert FolderReader(str(tmp_path / "c" / ".." / "c" / "x"), roots).place == str(tmp_path / "c")
    assert FolderReader("x", roots[:1]).place == str(roots[0])
    assert FolderReader("x", roots).place == FolderReader("/x", roots).place == "the store's roots"


async def test_loads_go_on_beside_a_folder_that_hangs(tmp_path, monkeypatch):
    release = threading.Event()

    def copy(found, *args):
        if "hanging" in str(found.files[0][1]):
            release.wait(WAIT_SECONDS)
        copy_source(found, *args)

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", copy)
    roots = {name: tmp_path / name for name in ("hanging", "adapters")}
    folders = {name: write_adapter(root / "a") for name, root in roots.items()}
    async with running_store(
        tmp_path, roots=tuple(roots.values()), workers=2, source_idle_seconds=IDLE
    ) as running:
        await running.register()
        calls = (running.load(f"a{number}", folders["hanging"]) for number in range(6))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {from_rpc(error).reason for error in errors} == {"SOURCE_UNAVAILABLE"}  # pyright: ignore[reportArgumentType]
        nothing_hangs_now(running.store._threads.reads)
        assert (await running.load("a", folders["adapters"])).changed
        now = running.store.statistics()
        assert 4 <= now.lost_reads < 4 + 2
        assert now.disk.incoming == 0
        release.set()
        await eventually(lambda: not running.store.statistics().lost_reads)
        assert (await running.load("b", folders["hanging"])).changed
        assert running.store.statistics().disk.incoming == 0


async def test_headers_that_come_after_their_load_was_given_up_take_no_room(tmp_path, monkeypatch):
    release = threading.Event()

    def copy(found, staged, max_bytes, progress, headers_there):
        copy_source(found, staged, max_bytes, progress)
        release.wait(WAIT_SECONDS)
        headers_there()

    monkeypatch.setattr("adapter_store.sources.folder.copy_source", copy)
    folder = write_adapter(tmp_path / "adapters/a")
    async with running_store(tmp_path, source_idle_seconds=IDLE) as running:
        await running.register()
        # Deleting takes its time.
        monkeypatch.setattr(running.store._disk, "discard", lambda path: None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.load("a", folder)
        assert from_rpc(caught.value).reason == "SOURCE_UNAVAILABLE"
        release.set()
        await eventually(lambda: not running.store.statistics().lost_reads)
        await eventually(lambda: not running.store.statistics().running_work)
        assert running.store.statistics().arena.packs == 0


async def test_a_watched_folder_that_hangs_is_told_once_and_found_again(tmp_path, monkeypatch, caplog):
    looks, release = [0], threading.Event()
    with reading(1) as (reads, hanging):
        monkeypatch.setattr(
            "adapter_store.loads.watching.look_at",
            lambda _, moved: {} if release.is_set() else hanging(moved),
        )

        async def wait(_: float) -> None:
            looks[0] += 1
            if looks[0] == 5:
                release.set()
                hanging.release.set()
                nothing_hangs_now(reads)
                await eventually(lambda: not reads.lost)

        async def load(_: object) -> None: ...

        def open_source(_: str) -> FolderReader: ...

        watched = WatchedFolder(
            folder=tmp_path, open_source=open_source, load=load, is_ready=lambda: True, reads=reads, wait=wait
        )
        task = asyncio.ensure_future(watched.run())
        await eventually(lambda: looks[0] >= 6)
        task.cancel()
        told = [record for record in caplog.records if record.name == "adapter_store.loads.watching"]
        # That it hangs, and that it is asked no more.
        assert len(told) == 2
