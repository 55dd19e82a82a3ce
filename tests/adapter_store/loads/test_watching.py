import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapter_store.concurrency.outside_reads import OutsideReads
from adapter_store.loads.request import LoadRequest
from adapter_store.loads.watching import Sightings, WatchedFolder, look_at
from adapter_store.sources.opening import Sources
from adapter_store.sources.reader import SourceReader
from lorikeet.v1 import adapters_pb2
from rpc.errors import invalid_argument, unavailable
from tests.support.store_adapters import lora_tensors, write_adapter
from tests.support.store_server import eventually, running_store

ONE, OTHER = (("f", 1, 1, 1),), (("f", 1, 2, 2),)


def test_a_folder_is_loaded_once_it_has_settled():
    sightings = Sightings()
    assert sightings.see({"a": ONE}) == []
    assert sightings.see({"a": OTHER}) == []
    assert sightings.see({"a": OTHER}) == ["a"]
    assert sightings.see({"a": OTHER}) == []


def test_a_folder_that_changes_or_comes_back_is_loaded_again():
    sightings = Sightings()
    for looks in ({"a": ONE}, {"a": ONE}, {"a": OTHER}):
        sightings.see(looks)
    assert sightings.see({"a": OTHER}) == ["a"]
    sightings.see({})
    sightings.see({"a": OTHER})
    assert sightings.see({"a": OTHER}) == ["a"]


def test_what_may_pass_is_tried_again_later():
    sightings = Sightings()
    sightings.see({"a": ONE})
    assert sightings.see({"a": ONE}) == ["a"]
    sightings.try_later("a")
    looks = [sightings.see({"a": ONE}) for _ in range(11)]
    assert looks == [[]] * 10 + [["a"]]


def test_only_whole_adapters_with_good_names_are_seen(tmp_path):
    write_adapter(tmp_path / "good")
    write_adapter(tmp_path / ".hidden")
    write_adapter(tmp_path / ".being-written")
    (write_adapter(tmp_path / "unfinished") / "adapter_config.json").unlink()
    (write_adapter(tmp_path / "unweighted") / "adapter_model.safetensors").unlink()
    (tmp_path / "file").write_text("x")
    assert list(look_at(tmp_path, lambda got=0: None)) == ["good"]


@contextmanager
def watching(
    folder: Path, open_source: Callable[[str], SourceReader], load: Any
) -> Iterator[Callable[..., Awaitable[None]]]:
    """Yields what looks at the folder so many times."""
    reads = OutsideReads(1, idle_seconds=20)
    watched = WatchedFolder(
        folder=folder, open_source=open_source, load=load, is_ready=lambda: True, reads=reads
    )

    async def look(times: int = 15) -> None:
        for _ in range(times):
            await watched.look()

    yield look
    reads.close()


async def test_a_folder_whose_name_is_none_for_an_adapter_is_told_once(tmp_path, caplog):
    write_adapter(tmp_path / "adapters" / "bad name\n")
    async with running_store(tmp_path) as running:
        await running.register()
        with watching(tmp_path / "adapters", running.store._sources.open, running.store.admin.load) as look:
            await look()
    assert [
        record.message.startswith("the watched adapter bad name\\n was not") for record in caplog.records
    ] == [True]


class Loads:
    """Remembers what was to be loaded; fails as told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.error: Exception | None = None

    async def __call__(self, request: LoadRequest) -> None:
        self.names.append(request.name)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "times"), [(invalid_argument("BAD", "x"), 1), (unavailable("AWAY", "x"), 2)]
)
async def test_a_broken_adapter_is_reported_once_per_change(tmp_path, error, times):
    folder = write_adapter(tmp_path / "a")
    loads = Loads()
    loads.error = error
    with watching(tmp_path, Sources(roots=[tmp_path]).open, loads) as look:
        await look()
        assert loads.names == ["a"] * times
        os.utime(folder / "adapter_config.json", (1, 1))
        loads.error = None
        await look()
        assert loads.names == ["a"] * (times + 1)


@pytest.mark.parametrize("error", [PermissionError(13, "no"), RuntimeError("a mistake of ours")])
async def test_what_goes_wrong_with_one_adapter_keeps_no_other_from_loading(tmp_path, error):
    for name in ("a", "b", "c"):
        write_adapter(tmp_path / name)
    loads = Loads()
    loads.error = error
    with watching(tmp_path, Sources(roots=[tmp_path]).open, loads) as look:
        await look(2)
        assert sorted(loads.names) == ["a", "b", "c"]
        loads.error = None
        await look(11)
        assert sorted(loads.names) == ["a", "a", "b", "b", "c", "c"]


async def test_what_an_admin_pinned_stays_pinned(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapter_store.loads.watching._SECONDS_BETWEEN_LOOKS", 0.01)
    watched = tmp_path / "adapters" / "live"
    folder = write_adapter(watched / "a")
    async with running_store(tmp_path, watch_folder=watched) as running:
        await running.register()
        pointers = running.store.catalog
        await eventually(lambda: pointers.revision == 1)
        request = adapters_pb2.LoadAdapterRequest(name="a", source=str(folder), pinned=True)
        assert (await running.catalog.Load(request)).adapter.pinned
        write_adapter(folder, lora_tensors(seed=1))
        await eventually(lambda: pointers.revision == 3)
        assert pointers.get("a").pinned


async def test_a_folder_does_not_replace_a_tenants_adapter(tmp_path: Path, caplog):
    theirs = write_adapter(tmp_path / "adapters" / "theirs")
    dropped = write_adapter(tmp_path / "adapters" / "live" / "a", lora_tensors(seed=1))
    async with running_store(tmp_path) as running:
        await running.register()
        request = adapters_pb2.LoadAdapterRequest(name="a", source=str(theirs), tenant="t")
        digest = (await running.catalog.Load(request)).adapter.digest
        with watching(dropped.parent, running.store._sources.open, running.store.admin.load) as look:
            await look()
        pointer = running.store.catalog.get("a")
    assert (pointer.digest, pointer.tenant) == (digest, "t")
    assert ["is a tenant's adapter" in record.message for record in caplog.records] == [True]


async def test_names_follow_the_folder(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapter_store.loads.watching._SECONDS_BETWEEN_LOOKS", 0.01)
    watched = tmp_path / "adapters" / "live"
    watched.mkdir(parents=True)
    async with running_store(tmp_path, watch_folder=watched) as running:
        await running.register()
        pointers = running.store.catalog
        write_adapter(watched / "a")
        await eventually(lambda: pointers.revision == 1)
        (first,) = pointers.pointers()
        new = write_adapter(tmp_path / "new", lora_tensors(seed=1))
        (new / "adapter_model.safetensors").rename(watched / "a" / "adapter_model.safetensors")
        await eventually(lambda: pointers.revision == 2)
        (second,) = pointers.pointers()
        assert (first.name, second.name) == ("a", "a")
        assert first.digest != second.digest
