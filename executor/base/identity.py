"""The base model's identity: a digest of what its weights and settings compute, wherever they lie."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import blake3

_FULL_BYTES = 1 << 30
_SAMPLE_BYTES = 1 << 16
_SAMPLE_STRIDE = 1 << 24

# Of config.json; a key that is not known here counts as arithmetic.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def base_digest(model_dir: Path) -> str:
    """BLAKE3, as 64 hex digits, over config.json's arithmetic keys and every tensor's name, dtype, shape and
    bytes.

    It does not depend on how tensors are spread over files. Of a tensor in a checkpoint of more than 1 GiB
    only a part is read: 64 KiB of every 16 MiB, and its end. That tells checkpoints of different training
    apart, since training moves nearly every weight, but not two that were made to agree in those places:
    whoever may write to the model folder is trusted.

    Raises ValueError for files that are no safetensors, OSError for files that cannot be read.
    """
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    settings = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    digest = blake3.blake3(json.dumps(settings, sort_keys=True).encode())
    files = sorted(model_dir.glob("*.safetensors"))
    full = sum(path.stat().st_size for path in files) <= _FULL_BYTES
    digest.update(b"full" if full else b"sampled")
    for line in sorted(line for path in files for line in _tensors(path, full=full)):
        digest.update(line.encode())
    return digest.hexdigest()


def _tensors(path: Path, *, full: bool) -> Iterator[str]:
    """One line for each tensor of a file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header_end = 8 + int.from_bytes(content[:8], "little")
        if header_end > len(content):
            raise ValueError(f"{path} is not a safetensors file: its header is longer than the file")
        try:
            header = json.loads(content[8:header_end])
            header.pop("__metadata__", None)
            tensors = [
                (f"{name} {entry['dtype']} {entry['shape']}", *_span(entry["data_offsets"]))
                for name, entry in header.items()
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error!r}") from error
        for line, begin, end in tensors:
            tensor = blake3.blake3()
            for start, stop in _parts(header_end + begin, header_end + end, full=full):
                tensor.update(content[start:stop])
            yield f"{line} {tensor.hexdigest()}\n"


def _span(offsets: list[int]) -> tuple[int, int]:
    begin, end = offsets
    return int(begin), int(end)


def _parts(begin: int, end: int, *, full: bool) -> Iterator[tuple[int, int]]:
    if full:
        for start in range(begin, end, _SAMPLE_STRIDE):
            yield start, min(end, start + _SAMPLE_STRIDE)
        return
    for start in range(begin, end, _SAMPLE_STRIDE):
        yield start, min(end, start + _SAMPLE_BYTES)
    yield max(begin, end - _SAMPLE_BYTES), end
