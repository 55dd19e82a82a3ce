"""Objects whose headers were read once: bounded, and gone with their adapter."""

import pytest

from adapter_store.formats.reading import OpenedAdapter, open_adapter
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.opened import OpenedObjects
from tests.support.store_adapters import lora_config, lora_tensors, toy_pack_layout, write_adapter


@pytest.fixture
def opened(tmp_path) -> OpenedAdapter:
    write_adapter(tmp_path / "a", lora_tensors(), lora_config())
    return open_adapter(tmp_path / "a", toy_pack_layout())


def _key(number: int, layout: str = "x") -> PackKey:
    return PackKey(layout=layout, digest=str(number))


def test_the_least_recently_used_is_given_up(opened):
    each = len(opened.plan.tensors)
    objects = OpenedObjects(most_tensors=3 * each)
    for number in range(3):
        objects.keep(_key(number), opened)
    assert objects.find(_key(0)) is opened
    objects.keep(_key(3), opened)
    found = [objects.find(_key(number)) is not None for number in range(4)]
    assert found == [True, False, True, True]


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out(opened):
    objects = OpenedObjects(most_tensors=len(opened.plan.tensors))
    objects.keep(_key(0), opened)
    small = OpenedObjects(most_tensors=len(opened.plan.tensors) - 1)
    small.keep(_key(0), opened)
    assert objects.find(_key(0)) is opened
    assert small.find(_key(0)) is None


def test_a_digest_is_forgotten_in_every_layout(opened):
    objects = OpenedObjects(most_tensors=2 * len(opened.plan.tensors))
    objects.keep(_key(0, "x"), opened)
    objects.keep(_key(0, "y"), opened)
    objects.forget_digest("0")
    objects.keep(_key(1), opened)
    objects.keep(_key(2), opened)
    assert objects.find(_key(0, "y")) is None
    # What was forgotten takes no room.
    assert objects.find(_key(1)) is opened
