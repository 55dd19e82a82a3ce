"""What an upload may say and where its bytes go. Decides; writing them is `uploads`' work.

A safetensors file's header stands before its data, and is known only at the end. So each file gets room for a
header first, which is filled with spaces up to its data, and a file whose header has no room left is followed
by another: every byte is written once, wherever the upload ends.
"""

import json
import math
import re
from dataclasses import dataclass, field

from adapter_store.catalog.adapter_names import check_name
from adapter_store.formats.safetensors_files import INDEX_NAME, SINGLE_NAME
from adapter_store.formats.strict_json import printable
from lorikeet.v1 import adapters_pb2
from rpc.digests import is_digest
from rpc.errors import LorikeetError, invalid_argument

MAX_CHUNK_BYTES = 4 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_TENSORS = 100_000
DATA_START = 128 << 10
"""Of each file's data; before it stand eight bytes of length and the header."""

_MAX_NAME_CHARACTERS = 256
_MAX_DIMENSIONS = 8
_MAX_EXTENT = 1 << 40
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
# The header's own braces; what a tensor's entry may take at most is counted exactly.
_BRACES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Bytes that go to the end of file number `file`."""

    file: int
    data: bytes


@dataclass(kw_only=True)
class _File:
    """One safetensors file in the making: its header's entries, the bytes of these and of its data."""

    entries: dict[str, str] = field(default_factory=dict)
    header_bytes: int = _BRACES
    data_bytes: int = 0


class UploadProtocol:
    """One upload: `start`, then `tensor` for each message, then `commit`.

    Args:
        max_bytes: of the adapter's tensors together.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._files: list[_File] = []
        self._names: set[str] = set()
        self._current = ""
        self._missing = 0
        self._total = 0

    @property
    def total_bytes(self) -> int:
        """Of all tensors announced so far."""
        return self._total

    def start(self, message: adapters_pb2.UploadAdapterRequest | None) -> adapters_pb2.UploadStart:
        """Checks the first message. Raises LorikeetError: INVALID_ARGUMENT."""
        if message is None or message.WhichOneof("message") != "start":
            raise invalid_argument("NO_START", "the first message of an upload is UploadStart")
        start = message.start
        check_name(start.name)
        size = len(start.config_json.encode("utf-8", "surrogatepass"))
        if not 0 < size <= MAX_CONFIG_BYTES:
            raise invalid_argument(
                "BAD_CONFIG",
                f"config_json has {size} bytes: send the text of adapter_config.json, "
                f"at most {MAX_CONFIG_BYTES} bytes",
            )
        return start

    def tensor(self, chunk: adapters_pb2.UploadTensor) -> Chunk:
        """Where a chunk goes. Raises LorikeetError: INVALID_ARGUMENT."""
        data = chunk.data  # once: each access copies
        if len(data) > MAX_CHUNK_BYTES:
            raise invalid_argument(
                "CHUNK_TOO_LARGE",
                f"a message has {len(data)} bytes of data: send at most {MAX_CHUNK_BYTES} in one",
            )
        if chunk.name:
            self._begin(chunk)
        elif not self._names:
            raise invalid_argument("NO_TENSOR", "a chunk came before any tensor: the first has its name")
        elif chunk.dtype or chunk.shape:
            raise invalid_argument(
                "UNNAMED_TENSOR", "a chunk has a dtype or a shape but no name: a tensor's first chunk has all"
            )
        elif not data:
            raise invalid_argument("EMPTY_CHUNK", f"a chunk of {self._current} has no data: leave it out")
        if len(data) > self._missing:
            raise invalid_argument(
                "TENSOR_TOO_LONG",
                f"{self._current}: {len(data)} bytes came where its dtype and shape leave {self._missing}",
            )
        self._missing -= len(data)
        return Chunk(file=len(self._files) - 1, data=data)

    def commit(self, commit: adapters_pb2.UploadCommit) -> str:
        """Ends the upload; the digest that its content must have, or "". Raises INVALID_ARGUMENT."""
        self._check_complete()
        if not self._names:
            raise invalid_argument("NO_TENSORS", "the upload has no tensors: send some before the commit")
        if commit.digest and not is_digest(commit.digest):
            raise invalid_argument("BAD_DIGEST", "the commit's digest is not 64 lower-case hex digits")
        return commit.digest

    def file_names(self) -> list[str]:
        """What the files are to be called."""
        count = len(self._files)
        if count == 1:
            return [SINGLE_NAME]
        return [f"adapter_model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]

    def headers(self) -> list[bytes]:
        """The first DATA_START bytes of each file."""
        parts: list[bytes] = []
        for file in self._files:
            text = "{" + ",".join(file.entries.values()) + "}"
            parts.append((DATA_START - 8).to_bytes(8, "little") + text.encode().ljust(DATA_START - 8))
        return parts

    def index(self) -> tuple[str, bytes] | None:
        """Name and content of the file that says which tensor is where; None when one file has them all."""
        names = self.file_names()
        if len(names) == 1:
            return None
        weight_map = {
            tensor: name for name, file in zip(names, self._files, strict=True) for tensor in file.entries
        }
        return INDEX_NAME, json.dumps({"weight_map": weight_map}).encode()

    def _begin(self, chunk: adapters_pb2.UploadTensor) -> None:
        self._check_complete()
        name = chunk.name
        if len(name) > _MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
            raise _bad_tensor(
                name[:_MAX_NAME_CHARACTERS],
                f"its name is not one of PEFT's: letters, digits, '.', '_' and '-', up to "
                f"{_MAX_NAME_CHARACTERS} characters",
            )
        if name in self._names:
            raise _bad_tensor(name, "it was sent before: send each tensor once")
        if len(self._names) >= MAX_TENSORS:
            raise _bad_tensor(name, f"it is one more than the {MAX_TENSORS} tensors that an upload may have")
        shape = list(chunk.shape)
        size = _tensor_bytes(name, chunk.dtype, shape)
        if self._total + size > self._max_bytes:
            raise invalid_argument(
                "ADAPTER_TOO_LARGE",
                f"with {name} the upload has {self._total + size} bytes; the store takes up to "
                f"{self._max_bytes}",
            )
        self._names.add(name)
        self._current, self._missing = name, size
        self._total += size
        self._add_entry(name, chunk.dtype, shape, size)

    def _add_entry(self, name: str, dtype: str, shape: list[int], size: int) -> None:
        for is_new in (not self._files, True):
            if is_new:
                self._files.append(_File())
            file = self._files[-1]
            offsets = [file.data_bytes, file.data_bytes + size]
            value = json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})
            entry = f"{json.dumps(name)}:{value}"
            if file.header_bytes + len(entry) + 1 <= DATA_START - 8:
                break
        file.entries[name] = entry
        file.header_bytes += len(entry) + 1
        file.data_bytes += size

    def _check_complete(self) -> None:
        if self._missing:
            raise invalid_argument(
                "TENSOR_TOO_SHORT", f"{self._current}: {self._missing} of its bytes did not come"
            )


def _tensor_bytes(name: str, dtype: str, shape: list[int]) -> int:
    if dtype not in _ITEM_BYTES:
        known = ", ".join(_ITEM_BYTES)
        raise _bad_tensor(name, f"its dtype is {printable(dtype, 50)!r}: send one of {known}")
    if not 1 <= len(shape) <= _MAX_DIMENSIONS or not all(0 < extent <= _MAX_EXTENT for extent in shape):
        raise _bad_tensor(name, f"its shape {str(shape[:_MAX_DIMENSIONS])[:200]} is impossible")
    return math.prod(shape) * _ITEM_BYTES[dtype]


def _bad_tensor(name: str, what: str) -> LorikeetError:
    return invalid_argument("BAD_TENSOR", f"{printable(name)}: {what}", tensor=printable(name))
