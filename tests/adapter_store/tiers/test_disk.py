import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from adapter_store.concurrency.crew import ALONE, Urgency
from adapter_store.formats.layout import PackLayout
from adapter_store.packs.reading import read_adapter
from adapter_store.packs.recipe import Recipe
from adapter_store.tiers.disk import DiskTier, folder_bytes, open_disk
from adapter_store.tiers.files import copy_bytes, disk_errors
from adapter_store.tiers.objects import checksum_of, fill_from_object, open_object, refill_from_object
from rpc.errors import LorikeetError
from tests.support.store_adapters import lora_tensors, toy_pack_layout, write_adapter

LAYOUT = toy_pack_layout()


@pytest.fixture
def disk(tmp_path):
    disk = DiskTier(tmp_path / "data")
    yield disk
    disk.close()


def put(disk: DiskTier, seed: int = 0) -> str:
    staged = disk.stage()
    checked = read_adapter(write_adapter(staged, lora_tensors(seed=seed)), LAYOUT)
    disk.commit_object(staged, checked.digest)
    return checked.digest


def make(disk: DiskTier, digest: str, layout: PackLayout = LAYOUT) -> tuple[bytes, Recipe]:
    opened = open_object(disk, digest, layout)
    data = bytearray(b"\xff" * opened.pack_bytes)
    recipe = fill_from_object(disk, digest, opened, memoryview(data), ALONE, Urgency())
    assert recipe.read_manifest().digest == digest
    return bytes(data), recipe


def make_again(disk: DiskTier, digest: str, recipe: Recipe, checksum: bytes) -> tuple[bytes, bool]:
    data = bytearray(b"\xff" * recipe.pack_bytes)
    is_same = refill_from_object(disk, digest, recipe, checksum, memoryview(data), ALONE, Urgency())
    return bytes(data), is_same


def test_objects_have_their_places(disk, tmp_path):
    digest = put(disk)
    folder = tmp_path / "data/objects" / digest
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    statistics = disk.statistics()
    assert (statistics.objects, statistics.incoming) == (1, 0)
    assert statistics.used_bytes == folder_bytes(folder)


def test_the_same_content_twice_is_one_object(disk):
    assert put(disk) == put(disk)
    assert disk.statistics().objects == 1
    assert disk.statistics().incoming == 0


@pytest.mark.parametrize("damage", ["bit", "cut", "config", "gone"])
def test_a_damaged_object_is_said_and_put_out_of_the_way(disk, damage):
    digest = put(disk)
    weights = disk.object_path(digest) / "adapter_model.safetensors"
    match damage:
        case "bit":
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.write_bytes(data)
        case "cut":
            os.truncate(weights, 500)
        case "config":
            path = disk.object_path(digest) / "adapter_config.json"
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config | {"lora_alpha": 99}))
        case "gone":
            disk.discard(disk.object_path(digest))
    with pytest.raises(LorikeetError) as caught:
        make(disk, digest)
    assert (caught.value.code.name, caught.value.reason) == ("DATA_LOSS", "ADAPTER_LOST")
    assert "load it again from its source" in caught.value.message
    assert put(disk) == digest
    assert make(disk, digest)[0]


@pytest.mark.parametrize("dtype", ["TENSOR_TYPE_FLOAT32", "TENSOR_TYPE_BFLOAT16"])
def test_a_pack_whose_checksum_is_known_is_made_again_the_same(disk, dtype):
    digest = put(disk)
    first, recipe = make(disk, digest, toy_pack_layout(dtype=dtype))
    checksum = checksum_of(memoryview(first), recipe.manifest)
    assert make_again(disk, digest, recipe, checksum) == (first, True)
    assert make_again(disk, digest, recipe, bytes(32)) == (first, False)


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_damage_is_found_by_the_checksum_too(disk, damage):
    digest = put(disk)
    first, recipe = make(disk, digest)
    checksum = checksum_of(memoryview(first), recipe.manifest)
    weights = disk.object_path(digest) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.unlink()
    if damage != "gone":
        weights.write_bytes(data if damage == "bit" else data[:-100])
    assert make_again(disk, digest, recipe, checksum)[1] is False
    with pytest.raises(LorikeetError) as caught:
        make(disk, digest)
    assert (caught.value.code.name, caught.value.reason) == ("DATA_LOSS", "ADAPTER_LOST")


def test_an_object_that_does_not_fit_another_layout_stays(disk):
    digest = put(disk)
    with pytest.raises(LorikeetError) as caught:
        make(disk, digest, toy_pack_layout(max_rank=2))
    error = caught.value
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ADAPTER_DOES_NOT_FIT_BASE")
    assert "rank 4 is above the executor's maximum of 2" in error.message
    assert disk.object_path(digest).is_dir()


def test_setting_aside_takes_everything_of_a_digest(disk):
    digest = put(disk)
    trash = disk.set_aside(digest)
    statistics = disk.statistics()
    assert (statistics.objects, statistics.used_bytes, statistics.incoming) == (0, 0, 1)
    disk.discard(trash)
    assert disk.statistics().incoming == 0


def test_setting_aside_needs_no_room_on_a_full_disk(disk, monkeypatch):
    digest = put(disk)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    trash = disk.set_aside(digest)
    assert not disk.object_path(digest).exists()
    disk.discard(trash)
    disk.discard(disk.set_aside(digest))
    assert (disk.statistics().objects, disk.statistics().incoming) == (0, 0)


def test_a_sweep_leaves_what_is_wanted_and_nothing_else(disk, tmp_path):
    digest = put(disk)
    data = tmp_path / "data"
    (data / "incoming" / "half").mkdir()
    (data / "incoming" / "half" / "x").write_text("x")
    (data / "incoming" / "file").write_text("x")
    (data / "objects" / ("2" * 64)).mkdir()
    (data / "packs" / ("3" * 64)).mkdir(parents=True)
    assert disk.sweep({digest, "4" * 64}) == ["4" * 64]
    assert sorted(path.name for path in data.iterdir()) == ["incoming", "lock", "objects"]
    assert disk.statistics().objects == 1
    assert disk.sweep(()) == []
    assert (disk.statistics().objects, disk.statistics().used_bytes) == (0, 0)
    assert not list((data / "objects").iterdir()) + list((data / "incoming").iterdir())


def test_one_store_at_a_time(disk, tmp_path):
    with pytest.raises(BlockingIOError):
        DiskTier(tmp_path / "data")


@pytest.mark.parametrize("name", ["incoming", "objects", "packs"])
def test_somebody_elses_files_are_not_swept_away(tmp_path, name):
    file = tmp_path / name / "thesis.txt"
    file.parent.mkdir()
    file.touch()
    with pytest.raises(ValueError, match=f"has files in {name} .*--data-dir"):
        open_disk(tmp_path, quota_bytes=0)
    # A catalog that was moved away leaves the lock: the folder is a store's.
    (tmp_path / "lock").touch()
    with closing(open_disk(tmp_path, quota_bytes=0)) as disk:
        disk.sweep(())
    assert not file.exists()


def test_a_data_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    for folder, why in (("file", "File exists"), ("file/data", "Not a directory")):
        with pytest.raises(ValueError, match=rf"cannot be kept in .*file.* \({why}: .*--data-dir"):
            open_disk(tmp_path / folder, quota_bytes=0)


def test_a_data_folder_that_cannot_be_written_to_now_may_be_later(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "data")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match=r"cannot be kept in .* \(No space left on device: data\): make room"):
        open_disk(tmp_path / "data", quota_bytes=0)


def test_an_object_that_comes_back_while_it_is_set_aside_is_counted(disk, monkeypatch):
    digest, rename, again = put(disk), Path.rename, []

    def rename_and_load(path, target):
        moved = rename(path, target)
        if path == disk.object_path(digest) and not again:
            again.append(True)
            assert put(disk) == digest
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_and_load)
        disk.discard(disk.set_aside(digest))
    assert disk.bytes_of(digest) == folder_bytes(disk.object_path(digest)) == disk.statistics().used_bytes


def test_an_object_that_cannot_be_set_aside_stays_and_counts(disk, monkeypatch):
    digest = put(disk)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="Input/output error"):
            disk.set_aside(digest)
    assert disk.bytes_of(digest) == folder_bytes(disk.object_path(digest)) == disk.statistics().used_bytes


def test_a_full_disk_leaves_nothing(disk, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("adapter_store.tiers.disk.sync_file", full)
    with pytest.raises(LorikeetError) as caught:
        put(disk)
    assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
    assert (disk.statistics().objects, disk.statistics().used_bytes) == (0, 0)


def test_an_object_whose_name_could_not_be_made_durable_is_not_there(disk, tmp_path, monkeypatch):
    def fail(path):
        if path.name == "objects":
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("adapter_store.tiers.disk.sync_file", fail)
        with pytest.raises(OSError, match="Input/output error"):
            put(disk)
    assert list((tmp_path / "data" / "objects").iterdir()) == []
    assert disk.statistics().used_bytes == 0
    # Else the next load would take it for one that is durable, and its bytes would count for nothing.
    digest = put(disk)
    assert disk.bytes_of(digest) == folder_bytes(disk.object_path(digest)) == disk.statistics().used_bytes


def test_a_quota_refuses_what_does_not_fit(tmp_path):
    with closing(DiskTier(tmp_path / "a")) as disk:
        put(disk)
        one = disk.statistics().used_bytes
    with closing(DiskTier(tmp_path / "data", quota_bytes=2 * one + one // 2)) as disk:
        digests = [put(disk, seed) for seed in range(2)]
        staged = disk.stage()
        write_adapter(staged, lora_tensors(seed=2))
        assert 0 < disk.missing_bytes(staged, "9" * 64) <= one - one // 2
        with pytest.raises(LorikeetError) as caught:
            disk.commit_object(staged, "9" * 64)
        assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "DISK_QUOTA")
        assert "larger disk_bytes" in caught.value.message
        assert put(disk) == digests[0]  # there already: takes nothing
        disk.discard(disk.set_aside(digests[1]))
        disk.commit_object(staged, "9" * 64)
    with closing(DiskTier(tmp_path / "data", quota_bytes=one)) as disk:
        assert disk.statistics().used_bytes == 2 * one  # a lower quota deletes nothing


def test_only_a_full_disk_is_translated(tmp_path):
    with pytest.raises(OSError, match="Input/output"), disk_errors():
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("in_kernel", [True, False])
def test_copying_reports_its_steps(tmp_path, monkeypatch, in_kernel):
    if not in_kernel:

        def refuse(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr("adapter_store.tiers.files._CHUNK_BYTES", 1 << 17)
    content = os.urandom(9 << 20)
    (tmp_path / "a").write_bytes(content)
    steps: list[int] = []
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
        assert copy_bytes(source.fileno(), target.fileno(), len(content) + 5, steps.append) == len(content)
    assert (tmp_path / "b").read_bytes() == content
    assert sum(steps) == len(content)
    assert len(steps) >= 3
