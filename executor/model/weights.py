"""Safetensors checkpoints, single or sharded, straight into the decoder's parameters."""

import json
import re
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from executor.model.checkpoint_names import canonical_names, stacked_layers
from executor.model.config import ModelConfig
from executor.model.parameters import Parameters

Progress = Callable[[int, int], None]
"""Called with bytes loaded so far and bytes in all."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_RECOMPUTED = re.compile(r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq")
_READABLE = {"F32", "BF16", "F16"}


def load_parameters(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Parameters:
    """Read a model folder's weights, converted to the compute `dtype`.

    Raises ValueError when a file is missing or damaged, or when names, shapes or dtypes differ from what
    `config` makes of them; the message names the tensors.
    """
    parameters = Parameters.allocate(config, dtype=dtype, device=device or torch.device("cpu"))
    with ExitStack() as stack:
        files = {path: _open(stack, path) for path in _files(folder)}
        places = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
        stored = canonical_names(places.keys(), config)
        destinations = parameters.destinations(config, stacked=stacked_layers(stored.keys()))
        _check_names(stored.keys(), destinations.keys(), config, folder)
        total = sum(view.numel() * view.element_size() for view in destinations.values())
        done = 0
        for canonical, view in destinations.items():
            name = stored[canonical]
            _check_tensor(name, places[name], view)
            view.copy_(places[name].get_tensor(name))
            done += view.numel() * view.element_size()
            if progress is not None:
                progress(done, total)
    return parameters


def _files(folder: Path) -> Iterator[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        yield single
        return
    if not index.is_file():
        raise ValueError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error}") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}, which is not a file beside it")
        if not (folder / shard).is_file():
            raise ValueError(f"{index} names {shard}, which is missing; download the checkpoint again")
        yield folder / shard


def _open(stack: ExitStack, path: Path) -> safe_open:
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _check_names(found: Set[str], wanted: Set[str], config: ModelConfig, folder: Path) -> None:
    missing = sorted(wanted - found)
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors that {config.family} needs: {_some(missing)}"
        )
    harmless = {"lm_head.weight"} if config.tied_head else set()
    unexpected = sorted(name for name in found - wanted - harmless if not _RECOMPUTED.fullmatch(name))
    if unexpected:
        raise ValueError(
            f"{folder} holds {len(unexpected)} tensors unknown to {config.family}: {_some(unexpected)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _check_tensor(name: str, file: safe_open, view: Tensor) -> None:
    header = file.get_slice(name)
    shape, dtype = list(header.get_shape()), header.get_dtype()
    if shape != list(view.shape):
        raise ValueError(f"{name} has shape {shape}, but the config makes it {list(view.shape)}")
    if dtype not in _READABLE:
        raise ValueError(f"{name} is stored as {dtype}; supported are {', '.join(sorted(_READABLE))}")
