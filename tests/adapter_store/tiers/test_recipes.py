"""Recipes: they make the pack that a plan makes, are bounded, and go with their adapter."""

from pathlib import Path

import pytest

from adapter_store.packs.reading import open_adapter
from adapter_store.packs.recipe import Recipe, recipe_of
from adapter_store.tiers.key import PackKey
from adapter_store.tiers.recipes import Recipes
from tests.support.store_adapters import fill_pack, lora_config, lora_tensors, toy_pack_layout, write_adapter

SUM = b"s" * 32


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_adapter(tmp_path / "a", lora_tensors(), lora_config())
    return recipe_of(open_adapter(tmp_path / "a", toy_pack_layout()).plan)


def _key(number: int, layout: str = "x") -> PackKey:
    return PackKey(layout=layout, digest=str(number))


def _kept(recipe: Recipe, *numbers: int, times: float) -> Recipes:
    recipes = Recipes(most_bytes=int(times * recipe.nbytes))
    for number in numbers:
        recipes.keep(_key(number), recipe, SUM)
    return recipes


@pytest.mark.parametrize("dtype", ["TENSOR_TYPE_FLOAT32", "TENSOR_TYPE_BFLOAT16", "TENSOR_TYPE_FLOAT16"])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_a_recipe_makes_the_pack_of_its_plan(tmp_path, dtype, rank):
    write_adapter(tmp_path / "a", lora_tensors(rank=rank), lora_config(r=rank))
    opened = open_adapter(tmp_path / "a", toy_pack_layout(dtype=dtype))
    whole, again = (bytearray(b"\xff" * opened.pack_bytes) for _ in range(2))
    fill_pack(opened.plan, opened.files, memoryview(whole))
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    recipe_of(opened.plan).fill(tmp_path / "elsewhere", memoryview(again))
    assert again == whole


def test_the_least_recently_used_is_given_up(recipe):
    recipes = _kept(recipe, 0, 1, 2, times=3)
    assert recipes.find(_key(0)) == (recipe, SUM)
    recipes.keep(_key(3), recipe, SUM)
    found = [recipes.find(_key(number)) is not None for number in range(4)]
    assert found == [True, False, True, True]


def test_what_is_too_large_is_not_kept(recipe):
    assert _kept(recipe, 0, times=1).find(_key(0)) is not None
    assert _kept(recipe, 0, times=0.99).find(_key(0)) is None


def test_a_recipe_is_not_used_until_it_is_known_what_it_brings(recipe):
    recipes = Recipes()
    recipes.note_checksum(_key(0), SUM)
    recipes.keep(_key(0), recipe, b"")
    assert recipes.find(_key(0)) is None
    recipes.note_checksum(_key(0), SUM)
    assert recipes.find(_key(0)) == (recipe, SUM)
    recipes.keep(_key(0), recipe, b"")
    assert recipes.find(_key(0)) is None


def test_a_digest_is_forgotten_in_every_layout(recipe):
    recipes = _kept(recipe, 0, times=2)
    recipes.keep(_key(0, "y"), recipe, SUM)
    recipes.forget_digest("0")
    recipes.keep(_key(1), recipe, SUM)
    recipes.keep(_key(2), recipe, SUM)
    assert recipes.find(_key(0, "y")) is None
    # What was forgotten takes no room.
    assert recipes.find(_key(1)) is not None
