"""An adapter's identity: a digest of what it computes, whatever files it came in."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import blake3

from adapter_store.formats.adapted import AdaptedSlice, Cut


class TensorScan(NamedTuple):
    """What one pass over a tensor's bytes found: its BLAKE3, and which of it is zero: all, or some cuts."""

    digest: str
    is_zero: bool
    zero_cuts: frozenset[Cut] = frozenset()


class Identity(NamedTuple):
    """What an adapter's digest is taken of, but for its tensors' digests, which come between the `pieces`;
    `names` are those of the tensors' entries.
    """

    pieces: tuple[str, ...]
    names: tuple[str, ...]

    def digest(self, scans: Mapping[str, TensorScan]) -> str:
        """64 hex digits, by what was found in each tensor."""
        texts = [text for pair in zip(self.pieces, self._digests(scans), strict=True) for text in pair]
        return blake3.blake3("".join(texts).encode()).hexdigest()

    def _digests(self, scans: Mapping[str, TensorScan]) -> Iterator[str]:
        for name in self.names:
            yield f'"{scans[name].digest}"'
        yield ""


# A tensor's digest, as long as it is not known: nothing else is written like it.
_UNKNOWN = "\0"


def identity_of(slices: Sequence[AdaptedSlice], chat_template: str | None = None) -> Identity:
    """An adapter's identity.

    Its digest is the BLAKE3 over canonical JSON of the sorted (canonical tensor name, dtype, shape, BLAKE3 of
    the bytes), and of each module's effective scaling. r, lora_alpha, use_rslora and both patterns act
    through ranks (which are shapes) and scalings only, so two spellings of the same arithmetic have one
    digest. File layout, tensor order, metadata and PEFT's version are not in it, nor are tensors that are
    left out. A chat template that the adapter brings is: it decides what its chat prompts become. A tensor
    that is cut is in it once, whole, with the first of its cuts; the others follow from that and the shape.
    """
    tensors, scalings = [], []
    cut_names: set[str] = set()
    for adapted in slices:
        module = adapted.slice.module
        if adapted.rank:
            scalings.append([module, adapted.scaling.hex()])
        for part, entry in adapted.tensors():
            row = [f"{module}.{part}", entry.dtype, entry.shape, _UNKNOWN]
            if (cut := adapted.cut_of(part)) is not None:
                if entry.name in cut_names:
                    continue
                cut_names.add(entry.name)
                row.append(cut)
            tensors.append((row, entry.name))
    # No two have the same first element.
    tensors.sort(key=lambda tensor: tensor[0][0])
    content: dict[str, Any] = {
        "form": "lora-1",
        "scalings": sorted(scalings),
        "tensors": [row for row, _ in tensors],
    }
    if chat_template is not None:
        content["chat_template"] = blake3.blake3(chat_template.encode()).hexdigest()
    pieces = _canonical(content).split(_canonical(_UNKNOWN))
    assert len(pieces) == len(tensors) + 1
    return Identity(tuple(pieces), tuple(name for _, name in tensors))


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
