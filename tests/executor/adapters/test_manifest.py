"""Manifests that lie, each in one field."""

from collections.abc import Callable

import pytest

from executor.adapters.manifest import ManifestChecker, ManifestError
from executor.adapters.recent import Recent
from lorikeet.v1 import layout_pb2
from rpc.digests import layout_digest
from tests.support.executor_store import small_layout

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
    ManifestChecker(LAYOUT, layout_digest(LAYOUT)).check(pack, DIGEST)


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


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_about_what_was_good_before_is_found(lie: Change) -> None:
    checker, pack = ManifestChecker(LAYOUT, layout_digest(LAYOUT)), manifest()
    places = checker.check(pack, DIGEST)
    assert checker.check(manifest(), DIGEST) is places
    lie(pack)
    with pytest.raises(ManifestError):
        checker.check(pack, DIGEST)
    assert checker.check(manifest(), DIGEST) is places


def test_adapters_that_are_alike_are_checked_once_and_still_by_name() -> None:
    checker, pack, other = ManifestChecker(LAYOUT, layout_digest(LAYOUT)), manifest(), manifest()
    other.digest = "b" * 64
    places = checker.check(pack, DIGEST)
    assert checker.check(other, other.digest) is places
    with pytest.raises(ManifestError, match="got a pack of"):
        checker.check(other, DIGEST)
    other.slices[0].a_offset += 1
    with pytest.raises(ManifestError, match="not aligned"):
        checker.check(other, other.digest)


def test_what_is_true_of_a_pack_may_change() -> None:
    checker, pack = ManifestChecker(LAYOUT, layout_digest(LAYOUT)), manifest()
    places = checker.check(pack, DIGEST)
    pack.slices[1].scaling *= 2
    changed = checker.check(pack, DIGEST)
    assert (changed.scaling / places.scaling).tolist() == [1, 2]


def test_what_was_found_recently_is_bounded() -> None:
    recent: Recent[int] = Recent(3)
    for number, slices in enumerate((2, 0, 0, 5, 1)):
        recent.keep(str(number), number, slices)
    assert [recent.find(str(number)) for number in range(5)] == [None, 1, 2, None, 4]
    recent.keep("4", 4, 3)
    assert [recent.find(str(number)) for number in range(5)] == [None, None, None, None, 4]


FORMS_LAYOUT = small_layout()
FORMS_LAYOUT.slices[0].has_bias = True
FORMS_LAYOUT.slices[1].is_replaceable = True

FORMS: dict[str, tuple[int, int, set[str]]] = {
    "DoRA on a biased module": (0, 5, {"magnitude", "shift"}),
    "DoRA elsewhere": (1, 5, {"magnitude"}),
    "DoRA with a bias": (0, 5, {"magnitude", "bias", "shift"}),
    "lora_bias": (1, 5, {"lora_bias", "shift"}),
    "both biases": (0, 5, {"lora_bias", "bias", "shift"}),
    "only a bias": (0, 0, {"bias", "shift"}),
    "only a weight": (1, 0, {"weight"}),
}
NOT_FORMS: dict[str, tuple[int, int, set[str]]] = {
    "nothing": (0, 0, set()),
    "only a shift": (0, 0, {"shift"}),
    "magnitude alone": (1, 0, {"magnitude"}),
    "lora_bias alone": (1, 0, {"lora_bias", "shift"}),
    "DoRA with lora_bias": (0, 5, {"magnitude", "lora_bias", "shift"}),
    "no room for a shift": (0, 5, {"magnitude"}),
    "no use for a shift": (1, 5, {"magnitude", "shift"}),
    "a bias where the base has none": (1, 5, {"bias", "shift"}),
    "a weight and a LoRA": (1, 5, {"weight"}),
    "a weight and a bias": (1, 0, {"weight", "bias", "shift"}),
    "a weight that may not be replaced": (0, 0, {"weight"}),
}


def pack_of(index: int, rank: int, parts: set[str]) -> layout_pb2.PackManifest:
    """One slice, its tensors behind each other."""
    place = layout_pb2.SlicePlacement(slice=index, rank=rank, padded_rank=-(-rank // 8) * 8)
    offset = 0
    if rank:
        place.b_offset, offset = 512, 1024
    for part in sorted(parts):
        setattr(place, f"{part}_offset", offset)
        offset += 1024 if part == "weight" else 128
    return layout_pb2.PackManifest(
        digest=DIGEST, layout_digest=layout_digest(FORMS_LAYOUT), total_bytes=max(offset, 128), slices=[place]
    )


def check_form(pack: layout_pb2.PackManifest) -> None:
    ManifestChecker(FORMS_LAYOUT, layout_digest(FORMS_LAYOUT)).check(pack, DIGEST)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_forms_of_pefts_lora_pass(form: tuple[int, int, set[str]]) -> None:
    check_form(pack_of(*form))


@pytest.mark.parametrize("form", NOT_FORMS.values(), ids=NOT_FORMS.keys())
def test_forms_that_peft_does_not_have_are_refused(form: tuple[int, int, set[str]]) -> None:
    with pytest.raises(ManifestError, match=r"m[01]"):
        check_form(pack_of(*form))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("offset", [64, 1 << 40, 1 << 63])
def test_vectors_and_weights_lie_inside_the_pack(form: tuple[int, int, set[str]], offset: int) -> None:
    for part in form[2]:
        pack = pack_of(*form)
        setattr(pack.slices[0], f"{part}_offset", offset)
        with pytest.raises(ManifestError, match=rf"{part} of m[01]"):
            check_form(pack)
