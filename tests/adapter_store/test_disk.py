import errno
import json
import os

import pytest

from adapter_store.formats.plan import plan_pack
from adapter_store.formats.reading import read_adapter
from adapter_store.tiers.building import rebuild_pack, store_pack
from adapter_store.tiers.disk import DiskTier
from adapter_store.tiers.files import copy_bytes, disk_errors
from adapter_store.tiers.key import PackKey
from rpc.errors import LorikeetError
from tests.support.store_adapters import toy_pack_layout, write_adapter

LAYOUT = toy_pack_layout()


@pytest.fixture
def disk(tmp_path):
    disk = DiskTier(tmp_path / "data")
    yield disk
    disk.close()


def put(disk: DiskTier) -> str:
    staged = disk.stage()
    checked = read_adapter(write_adapter(staged), LAYOUT)
    disk.commit_object(staged, checked.digest)
    store_pack(disk, checked, plan_pack(checked.digest, checked.slices, LAYOUT))
    return checked.digest


def test_objects_and_packs_have_their_places(disk, tmp_path):
    digest = put(disk)
    key = PackKey(layout=LAYOUT.digest, digest=digest)
    stored = disk.find_pack(key)
    assert stored is not None
    assert stored.path.read_bytes()
    assert stored.manifest.digest == digest
    assert sorted(p.name for p in (tmp_path / "data/objects" / digest).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    statistics = disk.statistics()
    assert (statistics.objects, statistics.packs, statistics.incoming) == (1, 1, 0)


def test_the_same_content_twice_is_one_object(disk):
    assert put(disk) == put(disk)
    assert disk.statistics().objects == 1
    assert disk.statistics().incoming == 0


def test_a_rebuilt_pack_is_the_same(disk):
    key = PackKey(layout=LAYOUT.digest, digest=put(disk))
    before = disk.find_pack(key)
    assert before is not None
    content = before.path.read_bytes()
    disk.forget_pack(key)
    assert disk.find_pack(key) is None
    after = rebuild_pack(disk, key.digest, LAYOUT)
    assert (after.checksum, after.path.read_bytes()) == (before.checksum, content)


@pytest.mark.parametrize("damage", ["cut", "no manifest", "no pack", "other manifest", "garbage"])
def test_packs_that_are_not_whole_are_not_found(disk, tmp_path, damage):
    key = PackKey(layout=LAYOUT.digest, digest=put(disk))
    pack = tmp_path / "data/packs" / key.layout / f"{key.digest}.pack"
    manifest = pack.with_suffix(".manifest")
    match damage:
        case "cut":
            os.truncate(pack, 128)
        case "no manifest":
            manifest.unlink()
        case "no pack":
            pack.unlink()
        case "other manifest":
            manifest.rename(manifest.with_name("1" * 64 + ".manifest"))
            pack.rename(pack.with_name("1" * 64 + ".pack"))
            key = PackKey(layout=LAYOUT.digest, digest="1" * 64)
        case "garbage":
            manifest.write_bytes(b"\xff" * 100)
    assert disk.find_pack(key) is None


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
        rebuild_pack(disk, digest, LAYOUT)
    assert (caught.value.code.name, caught.value.reason) == ("DATA_LOSS", "ADAPTER_LOST")
    assert "load it again from its source" in caught.value.message
    assert put(disk) == digest
    assert rebuild_pack(disk, digest, LAYOUT).manifest.digest == digest


def test_an_object_that_does_not_fit_another_layout_stays(disk):
    digest = put(disk)
    with pytest.raises(LorikeetError) as caught:
        rebuild_pack(disk, digest, toy_pack_layout(max_rank=2))
    assert caught.value.reason == "RANK_TOO_LARGE"
    assert disk.object_path(digest).is_dir()


def test_setting_aside_takes_everything_of_a_digest(disk):
    digest = put(disk)
    trash = disk.set_aside(digest)
    statistics = disk.statistics()
    assert (statistics.objects, statistics.packs, statistics.incoming) == (0, 0, 1)
    disk.discard(trash)
    assert disk.statistics().incoming == 0


def test_a_sweep_leaves_what_is_wanted_and_nothing_else(disk, tmp_path):
    digest = put(disk)
    data = tmp_path / "data"
    (data / "incoming" / "half").mkdir()
    (data / "incoming" / "half" / "x").write_text("x")
    (data / "incoming" / "file").write_text("x")
    (data / "objects" / ("2" * 64)).mkdir()
    (data / "packs" / ("3" * 64)).mkdir()
    (data / "packs" / LAYOUT.digest / f"{'2' * 64}.pack").write_text("x")
    assert disk.sweep({digest, "4" * 64}, {LAYOUT.digest}) == ["4" * 64]
    statistics = disk.statistics()
    assert (statistics.objects, statistics.packs, statistics.incoming) == (1, 1, 0)
    assert disk.sweep((), ()) == []
    statistics = disk.statistics()
    assert (statistics.objects, statistics.packs, statistics.incoming) == (0, 0, 0)


def test_one_store_at_a_time(disk, tmp_path):
    with pytest.raises(BlockingIOError):
        DiskTier(tmp_path / "data")


def test_a_failed_write_leaves_nothing(disk):
    key = PackKey(layout=LAYOUT.digest, digest=put(disk))
    stored = disk.find_pack(key)
    assert stored is not None

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    disk.forget_pack(key)
    with pytest.raises(LorikeetError) as caught:
        disk.write_pack(stored.manifest, full)
    assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
    assert disk.find_pack(key) is None
    assert disk.statistics().incoming == 0


def test_only_a_full_disk_is_translated(tmp_path):
    with pytest.raises(OSError, match="Input/output"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("in_kernel", [True, False])
def test_copying_reports_its_steps(tmp_path, monkeypatch, in_kernel):
    if not in_kernel:

        def refuse(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    content = os.urandom(9 << 20)
    (tmp_path / "a").write_bytes(content)
    steps: list[int] = []
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
        assert copy_bytes(source.fileno(), target.fileno(), len(content) + 5, steps.append) == len(content)
    assert (tmp_path / "b").read_bytes() == content
    assert sum(steps) == len(content)
    assert len(steps) >= 3
