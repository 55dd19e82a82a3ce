"""What is refused early: by its config or its header, while the rest has yet to come."""

import json
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from adapter_store.formats.layout import PackLayout
from adapter_store.formats.safetensors_files import SINGLE_NAME, header_bytes
from adapter_store.packs.reading import OpenedAdapter, open_adapter
from adapter_store.sources.folder import copy_source, resolve_source
from adapter_store.sources.opening import Sources
from adapter_store.sources.reader import SourceReader
from adapter_store.tiers.files import copy_bytes
from rpc.errors import LorikeetError
from tests.support.source_servers import WebServer
from tests.support.store_adapters import lora_config, lora_tensors, write_adapter
from tests.support.store_ready import refusal
from tests.support.store_server import running_store
from tests.support.waiting import WAIT_SECONDS


def reader_of(web: WebServer) -> SourceReader:
    return Sources(roots=(), prefixes=[web.url]).open(f"{web.url}/adapters/a")


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_large_file_comes_no_further_than_a_header_that_is_refused(
    web, folder, tmp_path, monkeypatch, is_refused
):
    monkeypatch.setattr("adapter_store.sources.remote._LARGE_BYTES", 1)
    monkeypatch.setattr("adapter_store.sources.http_requests._CHUNK_BYTES", 16)
    weights = (folder / SINGLE_NAME).read_bytes()
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    come: list[bytes] = []
    told: list[int] = []

    def look() -> None:
        come.append((tmp_path / SINGLE_NAME).read_bytes())
        if is_refused:
            raise ValueError("refused")

    reader = reader_of(web)
    with pytest.raises(ValueError, match="refused") if is_refused else nullcontext():
        reader.copy(tmp_path, 1 << 30, lambda done, _: told.append(done), look)
    (at_header,) = come
    assert at_header.startswith(header)
    assert len(at_header) == len(weights)
    assert not any(at_header[len(header) + 16 :])
    assert (told[-1] < sum(path.stat().st_size for path in folder.iterdir())) == is_refused
    assert ((tmp_path / SINGLE_NAME).read_bytes() == weights) != is_refused


async def test_a_store_refuses_a_remote_adapter_by_its_header(web, tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.remote._LARGE_BYTES", 1)
    monkeypatch.setattr("adapter_store.sources.http_requests._CHUNK_BYTES", 16)
    folder = write_adapter(tmp_path / "b", lora_tensors() | {"unknown": np.ones(1, "f4")})
    web.files |= {f"/adapters/b/{path.name}": path.read_bytes() for path in folder.iterdir()}
    come: list[bytes] = []

    def look(staged: Path, layout: PackLayout) -> OpenedAdapter:
        come.append((staged / SINGLE_NAME).read_bytes())
        return open_adapter(staged, layout)

    monkeypatch.setattr("adapter_store.loads.loader.open_adapter", look)
    async with running_store(tmp_path, sources=(web.url,)) as running:
        await running.register()
        assert "unknown" in (await refusal(running.load("b", f"{web.url}/adapters/b"))).message
        assert len(come) == 1
        assert come[0] != (folder / SINGLE_NAME).read_bytes()
        assert (await running.load("a", f"{web.url}/adapters/a")).changed
        assert len(come) == 2


def test_of_a_large_adapter_whose_config_is_refused_no_weights_come(web, tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.remote._LARGE_BYTES", 1)
    web.files["/adapters/a/adapter_config.json"] = json.dumps(lora_config(use_qalora=True)).encode()
    (out := tmp_path / "out").mkdir()
    with pytest.raises(LorikeetError, match="QA-LoRA"):
        reader_of(web).copy(out, 1 << 30, lambda done, total: None)
    assert [path.name for path in out.iterdir()] == ["adapter_config.json"]


def test_of_a_large_folder_whose_config_is_refused_no_weights_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.folder._LARGE_BYTES", 1)
    folder = write_adapter(tmp_path / "a", config=lora_config(use_qalora=True), shards=2)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(LorikeetError, match="QA-LoRA"):
        copy_source(resolve_source(str(folder), [tmp_path]), out, 1 << 30, lambda done, total: None)
    assert [path.name for path in out.iterdir()] == ["adapter_config.json"]


async def test_a_copy_stops_once_its_headers_are_refused(running, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.folder._LARGE_BYTES", 1)
    folder = write_adapter(running.config.roots[0] / "large", lora_tensors() | {"unknown": np.zeros(1)})
    size = (folder / SINGLE_NAME).stat().st_size
    ends: list[str] = []

    def copy(source, target, size_of_part, advance):
        if size_of_part != size - header_bytes(source):
            return copy_bytes(source, target, size_of_part, advance)
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            try:
                threading.Event().wait(0.001)
                advance(0)
            except Exception as error:
                ends.append(type(error).__name__)
                raise
        ends.append("copied it all")
        return size_of_part

    monkeypatch.setattr("adapter_store.sources.folder.copy_bytes", copy)
    assert "unknown" in (await refusal(running.load("b", folder))).message
    assert ends == ["NotWantedError"]
    assert running.store.statistics().arena.packs == 0
