"""The base model's digest: what changes it and what does not."""

import json
import struct
from pathlib import Path

import pytest

from executor.base import identity
from executor.base.identity import base_digest

TENSORS = {"a": bytes(range(64)), "b": bytes(200_000)}


def write(folder: Path, files: dict[str, dict[str, bytes]], **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, **config}))
    for name, tensors in files.items():
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        data = b""
        for key, content in tensors.items():
            header[key] = {
                "dtype": "U8",
                "shape": [len(content)],
                "data_offsets": [len(data), len(data) + len(content)],
            }
            data += content
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


@pytest.mark.parametrize("full_bytes", [1 << 30, 0], ids=["full", "sampled"])
def test_content_counts_and_its_place_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_bytes: int
) -> None:
    monkeypatch.setattr(identity, "_FULL_BYTES", full_bytes)
    digest = base_digest(write(tmp_path / "one", {"model.safetensors": TENSORS}))
    sharded = {"m-1.safetensors": {"b": TENSORS["b"]}, "m-2.safetensors": {"a": TENSORS["a"]}}
    assert (
        base_digest(write(tmp_path / "sharded", sharded, transformers_version="9", use_cache=True)) == digest
    )
    changed = bytes(199_999) + b"\x01"
    for number, (files, config) in enumerate(
        [
            ({"model.safetensors": {**TENSORS, "b": changed}}, {}),
            ({"model.safetensors": {"c": TENSORS["a"], "b": TENSORS["b"]}}, {}),
            ({"model.safetensors": TENSORS}, {"rope_theta": 5}),
        ]
    ):
        assert base_digest(write(tmp_path / str(number), files, **config)) != digest


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 100,
        b"no header",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "U8", "shape": [1]}}',
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, null]}}',
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "one", {})
    header = content if content.startswith(b"\xff") else struct.pack("<Q", len(content)) + content
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        base_digest(folder)
