"""Manifests that lie, each in one field."""

from collections.abc import Callable

import pytest

from executor.adapters.manifest import ManifestError, check_manifest
from lorikeet.v1 import layout_pb2
from rpc.digests import layout_digest
from tests.support.execsvc_store import small_layout

DIGEST = "a" * 64
LAYOUT = small_layout()


def manifest() -> layout_pb2.PackManifest:
    """Rank 5, padded to 8, on both slices."""
    tensor = 16 * 8 * 4
    pack = layout_pb2.PackManifest(digest=DIGEST, layout_digest=layout_digest(LAYOUT), total_bytes=4 * tensor)
    for index in range(2):
        pack.slices.add(
            slice=index,
            a_offset=2 * index * tensor,
            b_offset=(2 * index + 1) * tensor,
            rank=5,
            padded_rank=8,
            scaling=0.5,
        )
    return pack


def check(pack: layout_pb2.PackManifest) -> None:
    check_manifest(pack, digest=DIGEST, layout=LAYOUT, layout_digest=layout_digest(LAYOUT))


Change = Callable[[layout_pb2.PackManifest], object]

LIES: dict[str, Change] = {
    "digest": lambda pack: setattr(pack, "digest", "b" * 64),
    "layout": lambda pack: setattr(pack, "layout_digest", "b" * 64),
    "tensor-parallel rank": lambda pack: setattr(pack, "tensor_parallel_rank", 1),
    "no bytes": lambda pack: setattr(pack, "total_bytes", 0),
    "odd bytes": lambda pack: setattr(pack, "total_bytes", pack.total_bytes + 4),
    "too many bytes": lambda pack: setattr(pack, "total_bytes", 1 << 40),
    "too few bytes": lambda pack: setattr(pack, "total_bytes", pack.total_bytes - 128),
    "slice twice": lambda pack: setattr(pack.slices[1], "slice", 0),
    "slice beyond": lambda pack: setattr(pack.slices[1], "slice", 2),
    "rank 0": lambda pack: setattr(pack.slices[1], "rank", 0),
    "rank over the maximum": lambda pack: (
        setattr(pack.slices[1], "rank", 17),
        setattr(pack.slices[1], "padded_rank", 24),
    ),
    "padding": lambda pack: setattr(pack.slices[1], "padded_rank", 16),
    "scaling": lambda pack: setattr(pack.slices[1], "scaling", float("nan")),
    "unaligned": lambda pack: setattr(pack.slices[0], "a_offset", 64),
    "outside": lambda pack: setattr(pack.slices[1], "b_offset", 1 << 40),
}


def test_a_true_manifest_passes() -> None:
    check(manifest())


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_is_found(lie: Change) -> None:
    pack = manifest()
    lie(pack)
    with pytest.raises(ManifestError):
        check(pack)
