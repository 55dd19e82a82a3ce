"""An adapter's identity: a digest of what it computes, whatever files it came in."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import blake3

from adapter_store.formats.adapted import AdaptedSlice, Cut


class TensorScan(NamedTuple):
    """What one pass over a tensor's bytes found: its BLAKE3, and which of it is zero: all, or some cuts."""

    digest: str
    is_zero: bool
    zero_cuts: frozenset[Cut] = frozenset()


def adapter_digest(
    slices: Sequence[AdaptedSlice], scans: Mapping[str, TensorScan], chat_template: str | None = None
) -> str:
    """The digest of an adapter: 64 hex digits.

    BLAKE3 over canonical JSON of the sorted (canonical tensor name, dtype, shape, BLAKE3 of the bytes), and
    of each module's effective scaling. r, lora_alpha, use_rslora and both patterns act through ranks (which
    are shapes) and scalings only, so two spellings of the same arithmetic have one digest. File layout,
    tensor order, metadata and PEFT's version are not in it, nor are tensors that are left out. A chat
    template that the adapter brings is: it decides what its chat prompts become. A tensor that is cut is in
    it once, whole, with the first of its cuts; the others follow from that and the shape.

    Args:
        scans: by the name of the tensor's entry.
    """
    tensors, scalings = [], []
    cut_names: set[str] = set()
    for adapted in slices:
        module = adapted.slice.module
        if adapted.rank:
            scalings.append([module, adapted.scaling.hex()])
        for part, entry in adapted.tensors():
            row = [f"{module}.{part}", entry.dtype, entry.shape, scans[entry.name].digest]
            if (cut := adapted.cut_of(part)) is not None:
                if entry.name in cut_names:
                    continue
                cut_names.add(entry.name)
                row.append(cut)
            tensors.append(row)
    content: dict[str, Any] = {
        "form": "lora-1",
        "scalings": sorted(scalings),
        "tensors": sorted(tensors),
    }
    if chat_template is not None:
        content["chat_template"] = blake3.blake3(chat_template.encode()).hexdigest()
    return blake3.blake3(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
