import random

import pytest

from adapter_store.catalog.adapter_names import check_name
from adapter_store.catalog.catalog import Catalog, Change
from adapter_store.catalog.quota import Limits
from adapter_store.catalog.versions import ModuleReport, Version
from rpc.errors import LorikeetError


def version(number: int) -> Version:
    return Version(
        digest=f"{number:064x}",
        pack_bytes=100 + number,
        max_rank=8,
        modules=(ModuleReport(module="lm_head", rank=8, scaling=0.5),),
        notes=(),
    )


def point(catalog: Catalog, name: str, number: int) -> Change:
    change = catalog.plan_point(name, version(number), f"/from/{name}", 1)
    assert change is not None
    catalog.apply(change)
    return change


def test_a_name_points_and_moves_in_one_step():
    catalog = Catalog()
    assert point(catalog, "a", 1).retired == ()
    moved = point(catalog, "a", 2)
    assert (catalog.revision, catalog.get("a").digest) == (2, version(2).digest)
    assert moved.retired == (version(1).digest,)
    assert catalog.retiring == {version(1).digest}
    assert catalog.knows(version(1).digest)
    # Kept to go back to, but in no executor and not in memory.
    assert catalog.settle(version(1).digest)
    assert not catalog.knows(version(1).digest)
    assert catalog.keeps(version(1).digest)
    catalog.check_integrity()


def test_the_same_content_changes_nothing():
    catalog = Catalog()
    point(catalog, "a", 1)
    assert catalog.plan_point("a", version(1), "/elsewhere", 2) is None
    assert catalog.revision == 1


def test_a_digest_retires_with_its_last_name():
    catalog = Catalog()
    point(catalog, "a", 1)
    point(catalog, "b", 1)
    change = catalog.plan_remove("a")
    assert change.retired == ()
    catalog.apply(change)
    change = catalog.plan_remove("b")
    assert change.retired == (version(1).digest,)
    catalog.apply(change)
    assert catalog.pointers() == []
    # Loaded again before it was gone: it stays.
    point(catalog, "c", 1)
    assert catalog.retiring == frozenset()
    catalog.check_integrity()


def test_a_plan_made_before_another_change_is_not_applied():
    catalog = Catalog()
    first = catalog.plan_point("a", version(1), "", 1)
    second = catalog.plan_point("b", version(2), "", 1)
    assert first is not None
    assert second is not None
    catalog.apply(first)
    with pytest.raises(AssertionError):
        catalog.apply(second)


def test_names_and_digests_are_resolved():
    catalog = Catalog()
    point(catalog, "a", 1)
    assert catalog.resolve("a") == catalog.resolve(f"b3:{version(1).digest}") == version(1).digest
    for unknown in ("b", "b3:", f"b3:{version(2).digest}", "b3:\ud800", ""):
        with pytest.raises(LorikeetError) as caught:
            catalog.resolve(unknown)
        assert caught.value.code.name == "NOT_FOUND"
        caught.value.message.encode()


def test_pages_cover_all_names_once():
    catalog = Catalog()
    names = [f"team-{number:03}/x" for number in range(25)]
    for number, name in enumerate(random.Random(0).sample(names, 25)):
        point(catalog, name, number)
    found, token, pages = [], "", 0
    while True:
        page, token = catalog.page(10, token)
        found += [pointer.name for pointer in page]
        pages += 1
        if not token:
            break
        # What changes meanwhile neither repeats nor skips the others.
        change = catalog.plan_remove(page[-1].name)
        catalog.apply(change)
    assert (found, pages) == (names, 3)
    assert catalog.page(0, "")[1] == ""


@pytest.mark.parametrize("token", ["x", "====", "bmFtZXM6", "bmFtZXM6/w==", "b3RoZXI6YQ==", "\ud800", "é"])
def test_tokens_of_other_lists_are_refused(token):
    with pytest.raises(LorikeetError) as caught:
        Catalog().page(10, token)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN")


def test_huge_pages_are_refused():
    with pytest.raises(LorikeetError, match="page_size is 1001"):
        Catalog().page(1001, "")


@pytest.mark.parametrize("name", ["a", "A-1.b_c/d", "x" * 128, "0", "a/b..c", "a/.b"])
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "-a", ".a", "/a", "a b", "a\n", "x" * 129, "ä", "b3:a", "a\0", "\ud800"),
        *("a/../b", "a//b", "a/", "a/.", "a/..", "a/./b"),
    ],
)
def test_bad_names(name):
    with pytest.raises(LorikeetError) as caught:
        check_name(name)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "BAD_NAME")
    caught.value.message.encode()


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_keep_the_books(seed):
    generator = random.Random(seed)
    catalog = Catalog(limits=Limits(keep_versions=seed))
    model: dict[str, str] = {}
    for _ in range(2_000):
        name = f"n{generator.randrange(8)}"
        if generator.random() < 0.2 and name in model and catalog.get(name).previous:
            before = catalog.get(name)
            to = generator.choice(before.previous).digest if generator.random() < 0.5 else ""
            change = catalog.plan_rollback(name, to, before.digest)
            assert change is not None
            model[name] = to or before.previous[0].digest
        elif generator.random() < 0.6:
            number = generator.randrange(6)
            change = catalog.plan_point(name, version(number), "", 1)
            assert (change is None) == (model.get(name) == version(number).digest)
            model[name] = version(number).digest
        elif name in model:
            change = catalog.plan_remove(name)
            del model[name]
        else:
            with pytest.raises(LorikeetError):
                catalog.plan_remove(name)
            continue
        if change is not None:
            assert not set(change.retired) & set(model.values())
            catalog.apply(change)
        if catalog.retiring and generator.random() < 0.2:
            catalog.settle(generator.choice(sorted(catalog.retiring)))
        catalog.check_integrity()
        assert {pointer.name: pointer.digest for pointer in catalog.pointers()} == model
