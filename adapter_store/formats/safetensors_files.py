"""safetensors files, read with a parser of our own that believes nothing it has not checked.

A file is: the header's length (uint64, little endian), the header (JSON), the data. Every range of the data
must belong to exactly one tensor of the right size, so a truncated, padded, overlapping or lying file is
refused before a byte of it is used.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from adapter_store.formats.strict_json import load_object, printable
from rpc.errors import LorikeetError, invalid_argument

CONFIG_NAME = "adapter_config.json"
SINGLE_NAME = "adapter_model.safetensors"
INDEX_NAME = "adapter_model.safetensors.index.json"

_MAX_HEADER_BYTES = 16 << 20
_MAX_DIMENSIONS = 8
_MAX_EXTENT = 1 << 40

_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

# What is found under the name of a safetensors file now and then.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"PK\x03\x04", "a PyTorch archive, not safetensors: save it again with save_pretrained"),
    (b"\x80", "a pickle, not safetensors: save it again with save_pretrained"),
)

NUMPY_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that LoRA weights may have."""


class TensorEntry(NamedTuple):  # made twice as fast as a frozen dataclass; there are tens of thousands
    """Where a tensor lies: `begin` and `nbytes` within the file named `file`."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class Head(NamedTuple):
    """All that a file says of its tensors, and its size: where two are equal, so are the files' entries."""

    name: str
    header: bytes
    size: int


Heads: TypeAlias = tuple[Head, ...]
"""Of an adapter's files; the index of a sharded one comes as a file of its own."""


class TensorFiles:
    """All tensors of an adapter folder that we own, mapped read-only while their bytes are asked for.

    Maps the files, so hand it only folders that nobody else writes to: a file that shrinks under a map ends
    the process. A map keeps the bytes of a file that has been deleted, so none outlives `close`, nor are any
    left once the headers have been read.

    Args:
        known: the entries of files with these heads, if they have been read before.

    Raises:
        LorikeetError: INVALID_ARGUMENT, naming the file and what is wrong with it.
    """

    def __init__(
        self, folder: Path, known: Callable[[Heads], Mapping[str, TensorEntry] | None] = lambda heads: None
    ) -> None:
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}
        data = _index_bytes(folder)
        index = None if data is None else parse_index(data)
        heads = [] if data is None else [Head(INDEX_NAME, data, len(data))]
        try:
            for name in [SINGLE_NAME] if index is None else sorted(set(index.values())):
                mapped = self._mapped(name)
                heads.append(Head(name, mapped[: header_end(mapped)], len(mapped)))
            self.heads: Heads = tuple(heads)
            entries = known(self.heads)
            self.entries = _read_headers(self._maps, index) if entries is None else entries
        finally:
            self.close()

    def close(self) -> None:
        """Ends the maps, those of arrays with the arrays; what is asked for later is mapped again."""
        for mapped in self._maps.values():
            with suppress(BufferError):
                mapped.close()
        self._maps.clear()

    def path_of(self, entry: TensorEntry) -> Path:
        """The file that the tensor lies in, as long as nobody has moved the folder."""
        return self._folder / entry.file

    def bytes_of(self, entry: TensorEntry) -> memoryview:
        """The tensor's raw bytes; no copy."""
        return memoryview(self._mapped(entry.file))[entry.begin : entry.begin + entry.nbytes]

    def array(self, entry: TensorEntry) -> np.ndarray:
        """The tensor as an array of its own dtype (one of NUMPY_DTYPES); no copy."""
        dtype = NUMPY_DTYPES[entry.dtype]
        count = entry.nbytes // dtype.itemsize
        flat = np.frombuffer(self._mapped(entry.file), dtype=dtype, count=count, offset=entry.begin)
        return flat.reshape(entry.shape)

    def _mapped(self, file: str) -> mmap.mmap:
        mapped = self._maps.get(file)
        return mapped if mapped is not None else self._maps.setdefault(file, _map(self._folder / file))


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise _bad(path.name, f"it is truncated: {size} bytes cannot hold a header")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_headers(maps: Mapping[str, mmap.mmap], index: Mapping[str, str] | None) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for name, mapped in maps.items():
        for entry in read_header(name, mapped):
            if entry.name in entries:
                raise _bad(name, f"tensor {entry.name} stands in {entries[entry.name].file} too")
            entries[entry.name] = entry
    if index is not None:
        _check_index(index, entries)
    return entries


def header_end(data: mmap.mmap) -> int:
    """Where a file's header ends, as far as it can be honest."""
    return min(8 + min(int.from_bytes(data[:8], "little"), _MAX_HEADER_BYTES), len(data))


def header_bytes(descriptor: int) -> int:
    """Bytes at a file's begin that its header takes, as far as they can be honest; moves no position."""
    return 8 + min(int.from_bytes(os.pread(descriptor, 8, 0), "little"), _MAX_HEADER_BYTES)


def read_index(folder: Path) -> dict[str, str] | None:
    """The weight_map of a sharded adapter: tensor name to file name; None for a single file."""
    data = _index_bytes(folder)
    return None if data is None else parse_index(data)


def _index_bytes(folder: Path) -> bytes | None:
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    if path.stat().st_size > _MAX_HEADER_BYTES:
        raise _bad(path.name, f"it is larger than {_MAX_HEADER_BYTES} bytes")
    return path.read_bytes()


def parse_index(data: bytes) -> dict[str, str]:
    """Reads an index.json. File names in it are plain names, so nothing outside the folder can be meant."""
    weight_map = _load_json(INDEX_NAME, data).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(INDEX_NAME, "it has no weight_map")
    for name in weight_map.values():
        plain = isinstance(name, str) and os.path.basename(name) == name and name.isprintable()
        if not plain or len(name) > 200 or not name.endswith(".safetensors"):
            raise _bad(INDEX_NAME, f"{str(name)[:100]!r} is not the name of a safetensors file beside it")
    return weight_map


def _check_index(index: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    for name, file in index.items():
        if name not in entries or entries[name].file != file:
            raise _bad(INDEX_NAME, f"tensor {printable(name)} is not in {file}")
    for name, entry in entries.items():
        if name not in index:
            raise _bad(entry.file, f"tensor {printable(name)} is not in {INDEX_NAME}")


def read_header(file: str, data: mmap.mmap | bytes) -> Iterator[TensorEntry]:
    """Yields a file's tensors in the order of their data, having checked all of them."""
    size = len(data)
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER_BYTES:
        for start, what in _IMPOSTORS:
            if data[: len(start)] == start:
                raise _bad(file, f"it is {what}")
        raise _bad(file, f"its header claims {length} bytes; more than {_MAX_HEADER_BYTES} is never honest")
    if 8 + length > size:
        raise _bad(file, f"it is truncated: the header takes {length} bytes of a file of {size}")
    header = _load_json(file, data[8 : 8 + length])
    header.pop("__metadata__", None)
    start = 8 + length
    entries = [_entry(file, name, value, start, size - start) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.nbytes))
    position = start
    for entry in entries:
        if entry.begin != position:
            problem = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise _bad(file, f"tensor {entry.name} {problem}")
        position += entry.nbytes
    if position != size:
        raise _bad(file, f"{size - position} bytes at its end belong to no tensor")
    yield from entries


def _entry(file: str, name: str, value: Any, start: int, available: int) -> TensorEntry:
    shown = printable(name)
    if shown != name:
        raise _bad(file, f"a tensor has the impossible name {shown}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(file, f"tensor {shown} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise _bad(file, f"tensor {shown} has the unknown dtype {str(dtype)[:50]!r}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _bad(file, f"tensor {shown} has the impossible shape {str(shape)[:100]}")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise _bad(file, f"tensor {shown} has the impossible offsets {str(offsets)[:100]}")
    begin, end = offsets
    if end > available:
        raise _bad(file, f"tensor {shown} ends at byte {end} of {available}: the file is truncated or lies")
    if end - begin != math.prod(shape) * _BYTES[dtype]:
        raise _bad(file, f"tensor {shown}: {dtype}{shape} does not take {end - begin} bytes")
    return TensorEntry(
        name=name, file=file, dtype=dtype, shape=tuple(shape), begin=start + begin, nbytes=end - begin
    )


def _are_counts(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - of thousands of short lists: `all` takes twice as long
        if type(item) is not int or not 0 <= item <= _MAX_EXTENT:
            return False
    return True


def _load_json(file: str, data: bytes) -> dict[str, Any]:
    try:
        return load_object(data)
    except ValueError as error:
        raise _bad(file, f"its header is not valid JSON: {error}") from error


def _bad(file: str, what: str) -> LorikeetError:
    return invalid_argument("BAD_FILE", f"{file}: {what}", file=file)
