"""Processes that look at packs find what a thread finds, and are not needed."""

import pickle
import signal
import threading

import numpy as np
import pytest

from adapter_store.concurrency.crew import Crew
from adapter_store.packs import filling, scan_processes
from adapter_store.packs.filling import PackFiller
from adapter_store.packs.reading import open_adapter
from adapter_store.packs.scan_processes import ScanProcesses
from adapter_store.packs.scanning import scan
from rpc.errors import LorikeetError
from tests.support.store_adapters import fill_pack, lora_tensors, toy_pack_layout, write_adapter

OFFSET = 256


@pytest.fixture
def arena(tmp_path):
    """A file, its bytes mapped, and processes that look at it."""
    path = tmp_path / "arena"
    np.zeros(1 << 16, np.uint8).tofile(path)
    scanners = ScanProcesses(path, 2)
    yield np.memmap(path, np.uint8, "r+").data, scanners
    scanners.close()


def test_a_pack_is_looked_at_by_processes_as_by_a_thread(tmp_path, arena, monkeypatch):
    mapped, scanners = arena
    tensors = lora_tensors()
    zero = sorted(tensors)[1]
    tensors[zero][:] = 0
    opened = open_adapter(write_adapter(tmp_path / "a", tensors), toy_pack_layout())
    expected = bytearray(opened.pack_bytes)
    scans = fill_pack(opened.plan, opened.files, memoryview(expected))
    monkeypatch.setattr(filling, "_MANY_TENSORS", 1)
    monkeypatch.setattr(filling, "_GROUP_TENSORS", 3)
    target = mapped[OFFSET : OFFSET + opened.pack_bytes]
    crew = Crew(1)
    for _ in range(2):  # the second time by processes that wait
        target[:] = bytes(len(target))
        filler = PackFiller(opened.plan, opened.files, crew=crew)
        filler.fill(target, look=scanners.look(OFFSET, target))
        assert filler.scans == scans
        assert filler.scans[zero].is_zero
        assert target == expected
    crew.close()


def test_a_process_names_what_is_not_finite(tmp_path, arena, monkeypatch):
    mapped, scanners = arena
    tensors = lora_tensors()
    name = sorted(tensors)[2]
    tensors[name][0, -1] = np.inf
    opened = open_adapter(write_adapter(tmp_path / "a", tensors), toy_pack_layout())
    monkeypatch.setattr(filling, "_MANY_TENSORS", 1)
    target = mapped[OFFSET : OFFSET + opened.pack_bytes]
    with pytest.raises(LorikeetError, match=name) as caught:
        PackFiller(opened.plan, opened.files).fill(target, look=scanners.look(OFFSET, target))
    assert caught.value.reason == "NOT_FINITE"


def test_processes_that_are_killed_are_replaced_and_none_is_needed(arena):
    mapped, scanners = arena
    mapped[OFFSET : OFFSET + 4] = b"abcd"
    ask = ("BF16", [0, 2], [2, 2])
    expected = scan(mapped[OFFSET:], *ask)
    look = scanners.look(OFFSET, mapped[OFFSET:])
    assert look(*ask) == expected
    [(process, _)] = scanners._idle
    process.kill()
    process.wait()
    assert look(*ask) == expected
    assert [other.poll() for other, _ in scanners._idle] == [None]
    scanners.close()
    assert look(*ask) == expected
    assert not scanners._idle


def test_processes_that_were_stopped_are_ended_and_replaced(arena, monkeypatch):
    mapped, scanners = arena
    mapped[OFFSET : OFFSET + 4] = b"abcd"
    ask = ("BF16", [0, 2], [2, 2])
    look = scanners.look(OFFSET, mapped[OFFSET:])
    expected = look(*ask)
    [(process, _)] = scanners._idle
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(scan_processes, "_MOST_SECONDS", 0.2)
    scanners._timer.cancel()
    scanners._timer = None
    assert look(*ask) == expected
    assert process.returncode == -signal.SIGKILL
    # Nor does one hold up the end.
    monkeypatch.setattr(scan_processes, "_MOST_SECONDS", 30.0)
    monkeypatch.setattr(scan_processes, "_CLOSE_SECONDS", 0.1)
    assert look(*ask) == expected
    stopped = [other for other, _ in scanners._idle]
    for other in stopped:
        other.send_signal(signal.SIGSTOP)
    scanners.close()
    assert [other.returncode for other in stopped] == [-signal.SIGKILL] * len(stopped) != []


def test_a_process_that_says_something_else_is_asked_nothing_more(arena, monkeypatch):
    mapped, scanners = arena
    mapped[OFFSET : OFFSET + 2] = b"ab"
    ask = ("BF16", [0], [2])
    look = scanners.look(OFFSET, mapped[OFFSET:])
    look(*ask)
    [(process, _)] = scanners._idle
    with monkeypatch.context() as patched:
        patched.setattr(scan_processes, "receive", lambda file: pickle.loads(b"?"))
        with pytest.raises(pickle.UnpicklingError):
            look(*ask)
    assert process.returncode is not None
    assert (scanners._busy, scanners._idle) == (0, [])
    assert look(*ask) == scan(mapped[OFFSET:], *ask)


def test_processes_are_asked_where_nobody_can_look_after_them(arena, monkeypatch):
    mapped, scanners = arena
    look = scanners.look(0, mapped)
    expected = scan(mapped, "F32", [0], [64])

    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Timer, "start", refuse)
        for _ in range(3):  # one after another, each of which gives its place back
            assert look("F32", [0], [64]) == expected
    assert scanners._timer is None  # pyright: ignore[reportPrivateUsage]
    assert look("F32", [0], [64]) == expected
    assert scanners._timer is not None  # pyright: ignore[reportPrivateUsage]
