import errno
import json
import os
from pathlib import Path

import pytest

from adapter_store.sources import folder as folder_module
from adapter_store.sources.folder import copy_source, open_below, resolve_source
from adapter_store.sources.opening import Sources
from rpc.errors import LorikeetError
from tests.support.store_adapters import write_adapter


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def refusal(source, *roots) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        Sources(roots=roots).open(str(source)).copy(Path("nowhere"), 1 << 30, lambda done, total: None)
    return caught.value


def copied(source, root, target) -> dict[str, bytes]:
    target.mkdir()
    copy_source(resolve_source(str(source), [root]), target, 1 << 30, lambda done, total: None)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_copies_the_files_of_an_adapter_and_no_others(root, tmp_path):
    folder = write_adapter(root / "a")
    (folder / "README.md").write_text("hello")
    (folder / "optimizer.pt").write_bytes(b"\x80")
    found = copied(folder, root, tmp_path / "out")
    assert sorted(found) == ["adapter_config.json", "adapter_model.safetensors"]
    assert found["adapter_config.json"] == (folder / "adapter_config.json").read_bytes()


def test_copies_all_shards(root, tmp_path):
    found = copied(write_adapter(root / "a", shards=3), root, tmp_path / "out")
    assert len(found) == 5


def test_relative_sources_are_looked_up_below_the_roots(root, tmp_path):
    other = tmp_path / "other"
    write_adapter(other / "team" / "a")
    source = resolve_source("team/a", [root, other])
    assert source.files[0][1] == other / "team" / "a" / "adapter_config.json"


def test_progress_counts_all_bytes(root, tmp_path):
    folder = write_adapter(root / "a")
    seen: list[tuple[int, int]] = []
    copy_source(
        resolve_source(str(folder), [root]), root, 1 << 30, lambda done, total: seen.append((done, total))
    )
    total = sum((folder / name).stat().st_size for name in os.listdir(folder))
    assert seen[-1] == (total, total)


def test_links_below_the_roots_are_followed_and_keep_their_names(root, tmp_path):
    blobs = write_adapter(root / "blobs")
    snapshot = root / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        (blobs / name).rename(blobs / f"blob{number}")
        (snapshot / name).symlink_to(f"../../blobs/blob{number}")
    assert sorted(copied(snapshot, root, tmp_path / "out")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("form", ["absolute", "dots", "folder link", "file link", "absolute dots"])
def test_nothing_outside_the_roots_is_read(root, tmp_path, form):
    outside = write_adapter(tmp_path / "outside")
    match form:
        case "absolute":
            source = str(outside)
        case "dots":
            source = "../outside"
        case "absolute dots":
            source = f"{root}/../outside"
        case "folder link":
            (root / "link").symlink_to(outside)
            source = str(root / "link")
        case _:
            source = str(write_adapter(root / "a"))
            (root / "a" / "adapter_model.safetensors").unlink()
            (root / "a" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    error = refusal(source, root)
    assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "OUTSIDE_ROOTS")
    assert "link out of" in error.message or "--adapter-root" in error.message


def test_what_lies_outside_is_not_told(root, tmp_path):
    there, nowhere = refusal(tmp_path, root), refusal(tmp_path / "nowhere", root)
    assert there.message.replace(str(tmp_path), "") == nowhere.message.replace(
        str(tmp_path / "nowhere"), "", 1
    ).replace(str(tmp_path), "")


def test_no_roots_means_no_sources(tmp_path):
    error = refusal(tmp_path)
    assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "NO_ROOTS")
    assert "start it with roots" in error.message


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("", "INVALID_ARGUMENT", "BAD_SOURCE"),
        ("a\0b", "INVALID_ARGUMENT", "BAD_SOURCE"),
        ("x" * 5000, "INVALID_ARGUMENT", "BAD_SOURCE"),
        ("s3://bucket/a", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
        ("ftp://org/a", "INVALID_ARGUMENT", "UNSUPPORTED_SOURCE"),
        ("missing", "NOT_FOUND", "NO_SOURCE"),
        ("a-file", "NOT_FOUND", "NO_SOURCE"),
        ("empty", "NOT_FOUND", "NO_CONFIG"),
        ("unweighted", "NOT_FOUND", "NO_WEIGHTS"),
        ("unindexed", "NOT_FOUND", "NO_WEIGHTS"),
        ("half-sharded", "NOT_FOUND", "NO_FILE"),
        ("pickled", "INVALID_ARGUMENT", "PICKLE"),
        ("ambiguous", "INVALID_ARGUMENT", "AMBIGUOUS_WEIGHTS"),
        ("x/" * 1500, "NOT_FOUND", "NO_SOURCE"),
        ("x" * 300, "NOT_FOUND", "NO_SOURCE"),
        ("many-shards", "INVALID_ARGUMENT", "TOO_MANY_FILES"),
        ("loop", "NOT_FOUND", "NO_SOURCE"),
    ],
)
def test_sources_that_hold_no_adapter_are_refused(root, source, code, reason):
    (root / "a-file").write_text("x")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("loop")
    for name in ("unweighted", "pickled", "unindexed"):
        (write_adapter(root / name) / "adapter_model.safetensors").unlink()
    (root / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04")
    (root / "unindexed" / "adapter_model-00001-of-00002.safetensors").write_bytes(b"")
    sharded = write_adapter(root / "half-sharded", shards=2)
    (sharded / "adapter_model-00002-of-00002.safetensors").unlink()
    write_adapter(write_adapter(root / "ambiguous", shards=2))
    (write_adapter(root / "many-shards") / "adapter_model.safetensors").unlink()
    weight_map = {f"tensor{number}": f"{number}.safetensors" for number in range(200)}
    index = root / "many-shards" / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    error = refusal(source, root)
    assert (error.code.name, error.reason) == (code, reason)
    assert len(error.message) < 6000


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "lora.ckpt"])
def test_pickles_are_refused_saying_how_to_convert_them(root, name):
    folder = write_adapter(root / "a")
    (folder / "adapter_model.safetensors").rename(folder / name)
    error = refusal("a", root)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PICKLE")
    assert f"{name} is a pickle" in error.message
    assert "load it with PEFT and save it again with save_pretrained" in error.message


def test_a_pickle_beside_safetensors_is_ignored(root, tmp_path):
    folder = write_adapter(root / "a")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert "adapter_model.bin" not in copied(folder, root, tmp_path / "out")


def test_prompt_files_of_an_adapter_are_said(root):
    folder = write_adapter(root / "a")
    (folder / "chat_template.json").write_text("{}")
    assert "chat_template.json" in resolve_source(str(folder), [root]).notes[0]


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (errno.EMFILE, "UNAVAILABLE", "SOURCE_UNAVAILABLE"),
        (errno.ESTALE, "UNAVAILABLE", "SOURCE_UNAVAILABLE"),
        (errno.EACCES, "PERMISSION_DENIED", "UNREADABLE"),
    ],
)
def test_what_cannot_be_opened_now_is_not_the_adapters_fault(
    root, tmp_path, monkeypatch, what, number, code, reason
):
    folder = write_adapter(root / "a")

    def fail(path, roots, flags):
        if what == "folder" or path.name == "adapter_model.safetensors":
            raise OSError(number, os.strerror(number))
        return open_below(path, roots, flags)

    monkeypatch.setattr("adapter_store.sources.folder.open_below", fail)
    with pytest.raises(LorikeetError) as caught:
        copied(folder, root, tmp_path / "out")
    assert (caught.value.code.name, caught.value.reason) == (code, reason)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_read(root, tmp_path, kind, name):
    # A pipe that nobody writes to would keep a thread of the store for ever.
    folder = write_adapter(root / "a")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()
    with pytest.raises(LorikeetError, match="not a regular file"):
        copied(folder, root, tmp_path / "out")


def test_a_large_adapter_is_refused_before_it_is_copied(root, tmp_path):
    source = resolve_source(str(write_adapter(root / "a")), [root])
    (tmp_path / "out").mkdir()
    with pytest.raises(LorikeetError) as caught:
        copy_source(source, tmp_path / "out", 1000, lambda done, total: None)
    assert caught.value.reason == "ADAPTER_TOO_LARGE"
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["shorter", "in place", "replaced", "gone"])
def test_a_source_that_changes_meanwhile_is_refused(root, tmp_path, how, name):
    folder = write_adapter(root / "a")
    source = resolve_source(str(folder), [root])
    (tmp_path / "out").mkdir()
    path = folder / name
    os.utime(path, (1, 1))

    def change(done, total):
        # Once the first file has been copied, the next not yet.
        match how:
            case "shorter":
                os.truncate(path, 10)
            case "in place":
                path.write_bytes(bytes(path.stat().st_size))
            case "replaced":
                (folder / "new").write_bytes(path.read_bytes())
                (folder / "new").rename(path)
            case "gone":
                path.unlink(missing_ok=True)

    with pytest.raises(LorikeetError) as caught:
        copy_source(source, tmp_path / "out", 1 << 30, change)
    assert (caught.value.code.name, caught.value.reason) == ("ABORTED", "SOURCE_CHANGED")


@pytest.mark.parametrize("changes", [True, False])
def test_a_refusal_of_what_changed_meanwhile_says_that_it_changed(root, tmp_path, changes, monkeypatch):
    """The config is looked at before the weights come: half of it may be anything."""
    monkeypatch.setattr(folder_module, "_LARGE_BYTES", 1)
    folder = write_adapter(root / "a")
    config = folder / "adapter_config.json"
    config.write_text("{")
    source = resolve_source(str(folder), [root])
    (tmp_path / "out").mkdir()

    def write_the_rest(done, total):
        if changes:
            config.write_text("{}")

    with pytest.raises(LorikeetError) as caught:
        copy_source(source, tmp_path / "out", 1 << 30, write_the_rest)
    assert caught.value.reason == ("SOURCE_CHANGED" if changes else "BAD_CONFIG")


def test_a_folder_swapped_for_a_link_after_it_was_resolved_is_not_followed(root, tmp_path):
    outside = write_adapter(tmp_path / "outside")
    source = resolve_source(str(write_adapter(root / "team" / "a")), [root])
    (root / "team" / "a").rename(root / "team" / "b")
    (root / "team" / "a").symlink_to(outside)
    (tmp_path / "out").mkdir()
    with pytest.raises(LorikeetError, match="not a regular file"):
        copy_source(source, tmp_path / "out", 1 << 30, lambda done, total: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_url_is_a_folder(root):
    error = refusal(f"file://{root}/missing", root)
    assert error.reason == "NO_SOURCE"


def test_headers_of_a_large_file_are_there_before_the_rest(root, tmp_path, monkeypatch):
    monkeypatch.setattr("adapter_store.sources.folder._LARGE_BYTES", 1)
    weights = (folder := write_adapter(root / "a")) / "adapter_model.safetensors"
    header = weights.read_bytes()[: 8 + int.from_bytes(weights.read_bytes()[:8], "little")]
    target = tmp_path / "out"
    target.mkdir()
    seen: list[bytes] = []

    def headers_there() -> None:
        assert (target / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()
        seen.append((target / weights.name).read_bytes())

    source = resolve_source(str(folder), [root])
    copy_source(source, target, 1 << 30, lambda done, total: None, headers_there)
    assert [content[: len(header)] for content in seen] == [header]
    assert len(seen[0]) == weights.stat().st_size
    assert not any(seen[0][len(header) :])
    assert (target / weights.name).read_bytes() == weights.read_bytes()
