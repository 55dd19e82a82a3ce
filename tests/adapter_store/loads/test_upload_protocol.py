"""What an upload may say."""

import json
from typing import Any

import pytest

from adapter_store.loads.upload_protocol import DATA_START, MAX_CHUNK_BYTES, UploadProtocol
from lorikeet.v1 import adapters_pb2 as pb
from rpc.errors import LorikeetError


def start(**changes: Any) -> pb.UploadAdapterRequest:
    fields: dict[str, Any] = {"name": "a", "config_json": "{}"}
    return pb.UploadAdapterRequest(start=pb.UploadStart(**(fields | changes)))


def chunk(name: str = "", data: bytes = b"", **fields) -> pb.UploadTensor:
    if name:
        fields = {"dtype": "F32", "shape": [2]} | fields
    return pb.UploadTensor(name=name, data=data, **fields)


def begun(max_bytes: int = 1 << 30) -> UploadProtocol:
    protocol = UploadProtocol(max_bytes=max_bytes)
    protocol.start(start())
    return protocol


def refused(reason: str):
    return pytest.raises(LorikeetError, match=rf"^INVALID_ARGUMENT \({reason}\)")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "NO_START"),
        (pb.UploadAdapterRequest(tensor=chunk("t", bytes(8))), "NO_START"),
        (pb.UploadAdapterRequest(commit=pb.UploadCommit()), "NO_START"),
        (pb.UploadAdapterRequest(), "NO_START"),
        (start(name="../up"), "BAD_NAME"),
        (start(name="x" * 129), "BAD_NAME"),
        (start(config_json=""), "BAD_CONFIG"),
        (start(config_json="x" * ((1 << 20) + 1)), "BAD_CONFIG"),
    ],
)
def test_a_bad_beginning_is_refused(message, reason) -> None:
    with refused(reason):
        UploadProtocol(max_bytes=1 << 30).start(message)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (chunk("", b"1234"), "NO_TENSOR"),
        (chunk("t", bytes(MAX_CHUNK_BYTES + 1)), "CHUNK_TOO_LARGE"),
        (chunk("t", bytes(9)), "TENSOR_TOO_LONG"),
        (chunk("t", dtype="F64"), "BAD_TENSOR"),
        (chunk("t", dtype=""), "BAD_TENSOR"),
        (chunk("t", shape=[]), "BAD_TENSOR"),
        (chunk("t", shape=[0]), "BAD_TENSOR"),
        (chunk("t", shape=[2**63]), "BAD_TENSOR"),
        (chunk("t", shape=[2**64 - 1, 2**64 - 1]), "BAD_TENSOR"),
        (chunk("t", shape=[2**40] * 8), "ADAPTER_TOO_LARGE"),
        (chunk("t", shape=[1] * 9), "BAD_TENSOR"),
        (chunk("../../etc/passwd"), "BAD_TENSOR"),
        (chunk("a/b"), "BAD_TENSOR"),
        (chunk('quote"'), "BAD_TENSOR"),
        (chunk("x" * 257), "BAD_TENSOR"),
    ],
)
def test_a_bad_tensor_is_refused(message, reason) -> None:
    with refused(reason):
        begun().tensor(message)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (chunk("t", bytes(8)), "TENSOR_TOO_SHORT"),
        (chunk("u", bytes(8)), "TENSOR_TOO_SHORT"),
        (chunk("", bytes(5)), "TENSOR_TOO_LONG"),
        (chunk("", b""), "EMPTY_CHUNK"),
        (chunk("", bytes(4), dtype="F32"), "UNNAMED_TENSOR"),
    ],
)
def test_a_tensor_goes_on_until_it_is_whole(message, reason) -> None:
    protocol = begun()
    protocol.tensor(chunk("t", bytes(4)))
    with refused(reason):
        protocol.tensor(message)


def test_a_tensor_comes_once() -> None:
    protocol = begun()
    protocol.tensor(chunk("t", bytes(8)))
    with refused("BAD_TENSOR"):
        protocol.tensor(chunk("t", bytes(8)))


def test_the_whole_upload_is_bounded() -> None:
    protocol = begun(max_bytes=12)
    protocol.tensor(chunk("t", bytes(8)))
    with refused("ADAPTER_TOO_LARGE"):
        protocol.tensor(chunk("u", bytes(8)))
    assert protocol.total_bytes == 8


@pytest.mark.parametrize(
    ("data", "digest", "reason"),
    [(b"", "", "NO_TENSORS"), (bytes(4), "", "TENSOR_TOO_SHORT"), (bytes(8), "feed", "BAD_DIGEST")],
)
def test_a_commit_is_checked(data, digest, reason) -> None:
    protocol = begun()
    if data:
        protocol.tensor(chunk("t", data))
    with refused(reason):
        protocol.commit(pb.UploadCommit(digest=digest))


def test_one_file_with_a_header_up_to_its_data() -> None:
    protocol = begun()
    assert protocol.tensor(chunk("t", b"12345678")).file == 0
    assert protocol.tensor(chunk("u", b"1234", dtype="BF16", shape=[1, 2])).file == 0
    (header,) = protocol.headers()
    assert len(header) == DATA_START
    assert int.from_bytes(header[:8], "little") == DATA_START - 8
    assert json.loads(header[8:]) == {
        "t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "u": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]},
    }
    assert protocol.file_names() == ["adapter_model.safetensors"]
    assert protocol.index() is None


def test_a_full_header_begins_another_file() -> None:
    protocol = begun()
    count = 2000
    files = [protocol.tensor(chunk(f"{i:0100}", bytes(8))).file for i in range(count)]
    last = files[-1]
    assert last >= 1
    assert files == sorted(files)
    assert all(len(header) == DATA_START for header in protocol.headers())
    held = [json.loads(header[8:]) for header in protocol.headers()]
    assert [len(entries) for entries in held] == [files.count(number) for number in range(last + 1)]
    index = protocol.index()
    assert index is not None
    weight_map = json.loads(index[1])["weight_map"]
    assert [protocol.file_names().index(weight_map[f"{i:0100}"]) for i in range(count)] == files
