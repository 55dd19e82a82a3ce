"""From an adapter's folder to a checked adapter with an identity."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter_store.formats.checks import AdaptedSlice, match_adapter
from adapter_store.formats.identity import TensorScan, adapter_digest, scan_tensor
from adapter_store.formats.layout import PackLayout
from adapter_store.formats.peft_config import parse_peft_config
from adapter_store.formats.safetensors_files import CONFIG_NAME, TensorFiles
from rpc.errors import invalid_argument

_MAX_CONFIG_BYTES = 4 << 20

_Scanned = tuple[AdaptedSlice, Mapping[str, TensorScan]]


@dataclass(frozen=True, kw_only=True)
class CheckedAdapter:
    """An adapter that fits a layout. `slices` are in the layout's order."""

    digest: str
    slices: tuple[AdaptedSlice, ...]
    notes: tuple[str, ...]
    files: TensorFiles

    @property
    def max_rank(self) -> int:
        return max(adapted.rank for adapted in self.slices)


def read_adapter(
    folder: Path, layout: PackLayout, progress: Callable[[int, int], None] = lambda done, total: None
) -> CheckedAdapter:
    """Checks a folder that we own against a layout and computes the adapter's digest.

    Args:
        folder: holds adapter_config.json and safetensors files; nobody else may write to it.
        layout: what the adapter must fit.
        progress: called with (bytes done, bytes in all) as tensors are read.

    Raises:
        LorikeetError: INVALID_ARGUMENT or UNIMPLEMENTED, saying what is wrong, where, and what to do.
    """
    path = folder / CONFIG_NAME
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise invalid_argument("BAD_CONFIG", f"{CONFIG_NAME} is larger than {_MAX_CONFIG_BYTES} bytes")
    config = parse_peft_config(path.read_bytes())
    files = TensorFiles(folder)
    match = match_adapter(files.entries, config, layout)
    total = sum(entry.nbytes for adapted in match.slices for _, entry in adapted.tensors())
    done = 0
    scanned: list[_Scanned] = []
    for adapted in match.slices:
        scans = {}
        for part, entry in adapted.tensors():
            scans[part] = scan_tensor(files, entry)
            done += entry.nbytes
        scanned.append((adapted, scans))
        progress(done, total)
    return CheckedAdapter(
        digest=adapter_digest(scanned),
        slices=match.slices,
        notes=match.notes + _idle_notes(scanned),
        files=files,
    )


def _idle_notes(scanned: list[_Scanned]) -> tuple[str, ...]:
    idle = [adapted.slice.module for adapted, scans in scanned if _is_idle(adapted, scans)]
    if len(idle) == len(scanned):
        return ("the adapter changes nothing: every module has a zero lora_A, lora_B or scaling",)
    return tuple(f"{module}: changes nothing (a zero lora_A, lora_B or scaling)" for module in idle)


def _is_idle(adapted: AdaptedSlice, scans: Mapping[str, TensorScan]) -> bool:
    only_lora = scans.keys() == {"lora_a", "lora_b"}
    return only_lora and (scans["lora_a"].is_zero or scans["lora_b"].is_zero or adapted.scaling == 0)
