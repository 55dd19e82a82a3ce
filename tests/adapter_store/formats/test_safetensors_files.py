import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from adapter_store.formats.safetensors_files import TensorFiles, parse_index, read_header
from rpc.errors import LorikeetError
from tests.support.store_adapters import lora_tensors, write_adapter


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(data: bytes) -> str:
    with pytest.raises(LorikeetError) as caught:
        list(read_header("a.safetensors", data))
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert caught.value.reason == "BAD_FILE"
    assert "a.safetensors" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("shards", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_reads_what_safetensors_writes(tmp_path, shards, dtype):
    tensors = lora_tensors(dtype=dtype)
    files = TensorFiles(write_adapter(tmp_path, tensors, shards=shards))
    assert files.entries.keys() == tensors.keys()
    for name, values in tensors.items():
        assert files.entries[name].dtype == dtype
        assert bytes(files.bytes_of(files.entries[name])) == values.tobytes()
        np.testing.assert_array_equal(files.array(files.entries[name]), values)


def test_metadata_and_empty_tensors_are_fine():
    data = save({"a": np.zeros((0, 3), "f4"), "b": np.ones(2, "f4")}, metadata={"x": "y"})
    assert {e.name: e.shape for e in read_header("a", data)} == {"a": (0, 3), "b": (2,)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (raw({"a": entry()}, bytes(4)), "truncated"),
        (raw({"a": entry()}, bytes(12)), "4 bytes at its end belong to no tensor"),
        (raw({"a": entry()}, bytes(8), length=500), "truncated: the header takes 500 bytes"),
        (raw({"a": entry()}, bytes(8), length=1 << 62), "its header claims"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(range(100)), "a PyTorch archive"),
        (b"\x80\x04\x95" + bytes(range(1, 100)), "a pickle, not safetensors"),
        (raw(b"{", bytes(8)), "not valid JSON"),
        (raw(b"[1]", bytes(8)), "not a JSON object"),
        (raw(b'{"a":' * 50_000, bytes(8)), "nested too deeply"),
        (raw(b'{"a": 1, "a": 2}', bytes(8)), "a stands there twice"),
        (raw(b"\xff\xff\xff", bytes(8)), "not valid JSON"),
        (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "b overlaps"),
        (raw({"a": entry(), "b": entry(offsets=(0, 8))}, bytes(8)), "overlaps"),
        (raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "b leaves a gap"),
        (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "a leaves a gap"),
        (raw({"a": entry(shape=(3,))}, bytes(8)), "does not take 8 bytes"),
        (raw({"a": entry(dtype="F16")}, bytes(8)), "does not take 8 bytes"),
        (raw({"a": entry(dtype="F31")}, bytes(8)), "unknown dtype 'F31'"),
        (raw({"a": entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
        (raw({"a": entry(shape=(-2,))}, bytes(8)), "impossible shape"),
        (raw({"a": entry(shape=(True, 2))}, bytes(8)), "impossible shape"),
        (raw({"a": entry(shape=(2.0,))}, bytes(8)), "impossible shape"),
        (raw({"a": entry(shape=(1 << 50, 1 << 50))}, bytes(8)), "impossible shape"),
        (raw({"a": entry(shape=(1,) * 9)}, bytes(8)), "impossible shape"),
        (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "impossible offsets"),
        (raw({"a": entry(offsets=(0, 8, 9))}, bytes(8)), "impossible offsets"),
        (raw({"a": entry(offsets="0,8")}, bytes(8)), "impossible offsets"),
        (raw({"a": entry() | {"extra": 1}}, bytes(8)), "needs dtype, shape and data_offsets"),
        (raw({"a": []}, bytes(8)), "needs dtype, shape and data_offsets"),
        (raw({"a\n\ud800": entry()}, bytes(8)), "impossible name"),
    ],
)
def test_lying_headers_are_refused(data, message):
    assert message in refusal(data)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    folder = write_adapter(tmp_path)
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(LorikeetError) as caught:
            TensorFiles(folder)
        assert "truncated" in caught.value.message or "JSON" in caught.value.message


def test_random_damage_of_a_header_never_escapes_as_another_error():
    whole = save(lora_tensors())
    length = int.from_bytes(whole[:8], "little")
    generator = np.random.default_rng(7)
    outcomes = Counter()
    for _ in range(2_000):
        data = bytearray(whole)
        for _ in range(int(generator.integers(1, 4))):
            data[int(generator.integers(0, 8 + length))] = int(generator.integers(0, 256))
        outcomes[outcome(bytes(data))] += 1
    assert outcomes.keys() == {"read", "BAD_FILE"}


def outcome(data: bytes) -> str:
    try:
        list(read_header("a", data))
    except LorikeetError as error:
        return error.reason
    return "read"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": ["a"]}, "no weight_map"),
        ({"weight_map": {"a": "../a.safetensors"}}, "not the name of a safetensors file"),
        ({"weight_map": {"a": "/etc/a.safetensors"}}, "not the name of a safetensors file"),
        ({"weight_map": {"a": "a.bin"}}, "not the name of a safetensors file"),
        ({"weight_map": {"a": "\0.safetensors"}}, "not the name of a safetensors file"),
        ({"weight_map": {"a": 5}}, "not the name of a safetensors file"),
    ],
)
def test_malformed_indexes_are_refused(index, message):
    with pytest.raises(LorikeetError) as caught:
        parse_index(json.dumps(index).encode())
    assert message in caught.value.message


def edit_index(folder: Path, edit) -> None:
    path = folder / "adapter_model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def test_index_and_shards_must_agree(tmp_path):
    folder = write_adapter(tmp_path / "missing", shards=2)
    edit_index(folder, lambda weights: weights.popitem())
    with pytest.raises(LorikeetError, match=r"is not in adapter_model\.safetensors\.index\.json"):
        TensorFiles(folder)
    folder = write_adapter(tmp_path / "extra", shards=2)
    edit_index(folder, lambda weights: weights.update(ghost=next(iter(weights.values()))))
    with pytest.raises(LorikeetError, match="tensor ghost is not in"):
        TensorFiles(folder)
    folder = write_adapter(tmp_path / "moved", shards=2)
    edit_index(folder, lambda weights: weights.update(zip(weights, reversed(weights.values()), strict=True)))
    with pytest.raises(LorikeetError, match="is not in adapter_model-0000"):
        TensorFiles(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = write_adapter(tmp_path, shards=2)
    shards = sorted(folder.glob("*.safetensors"))
    first = load_file(shards[0])
    from safetensors.numpy import save_file

    save_file(load_file(shards[1]) | dict(list(first.items())[:1]), shards[1])
    with pytest.raises(LorikeetError, match="stands in"):
        TensorFiles(folder)
