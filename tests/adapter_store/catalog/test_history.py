"""Earlier versions, preconditions and limits, as the catalog decides them."""

import pytest

from adapter_store.catalog.catalog import Catalog, Change
from adapter_store.catalog.quota import Limits
from adapter_store.catalog.versions import Version
from rpc.errors import LorikeetError


def digest(number: int) -> str:
    return f"{number:064x}"


def point(catalog: Catalog, name: str, number: int, **terms) -> Change | None:
    version = Version(digest=digest(number), pack_bytes=100, max_rank=8, modules=(), notes=())
    change = catalog.plan_point(name, version, f"/from/{number}", number, **terms)
    if change is not None:
        catalog.apply(change)
        catalog.check_integrity()
    return change


def roll_back(catalog: Catalog, name: str, **terms) -> Change | None:
    change = catalog.plan_rollback(name, **terms)
    if change is not None:
        catalog.apply(change)
        catalog.check_integrity()
    return change


def previous(catalog: Catalog, name: str) -> list[str]:
    return [earlier.digest for earlier in catalog.get(name).previous]


def refusal(call, *arguments, **terms) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        call(*arguments, **terms)
    return caught.value


def test_a_rollback_returns_and_can_be_rolled_back():
    catalog = Catalog()
    point(catalog, "a", 1)
    point(catalog, "a", 2)
    change = roll_back(catalog, "a")
    assert change is not None
    pointer = catalog.get("a")
    assert (pointer.digest, pointer.source, pointer.load_time_ns) == (digest(1), "/from/1", 1)
    assert pointer.revision == catalog.revision == 3
    assert change.retired == (digest(2),)
    assert previous(catalog, "a") == [digest(2)]
    assert catalog.retiring == {digest(2)}
    roll_back(catalog, "a")
    assert (catalog.get("a").digest, previous(catalog, "a")) == (digest(2), [digest(1)])
    assert catalog.retiring == {digest(1)}


def test_a_named_version_is_rolled_back_to():
    catalog = Catalog(limits=Limits(keep_versions=3))
    for number in range(1, 5):
        point(catalog, "a", number)
    assert previous(catalog, "a") == [digest(3), digest(2), digest(1)]
    roll_back(catalog, "a", digest=digest(1))
    assert previous(catalog, "a") == [digest(4), digest(3), digest(2)]
    assert roll_back(catalog, "a", digest=digest(1)) is None
    error = refusal(catalog.plan_rollback, "a", digest(9))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "VERSION_NOT_KEPT")
    assert digest(4) in error.message
    assert refusal(catalog.plan_rollback, "a", "xyz").reason == "BAD_DIGEST"
    assert refusal(catalog.plan_rollback, "b").code.name == "NOT_FOUND"


def test_what_falls_out_of_the_history_goes_for_good():
    catalog = Catalog()
    for number in (1, 2):
        point(catalog, "a", number)
    assert catalog.settle(digest(1)), "kept, to roll back to"
    change = point(catalog, "a", 3)
    assert change is not None
    assert set(change.retired) == {digest(1), digest(2)}
    assert not catalog.settle(digest(1))
    assert catalog.settle(digest(2))
    assert catalog.digests == {digest(2), digest(3)}
    gone = catalog.plan_remove("a")
    assert set(gone.retired) == {digest(2), digest(3)}
    catalog.apply(gone)
    for number in (2, 3):
        assert not catalog.settle(digest(number))
    assert catalog.digests == frozenset()


def test_a_version_that_another_name_keeps_stays():
    catalog = Catalog()
    for name in ("a", "b"):
        point(catalog, name, 1)
        point(catalog, name, 2)
    assert catalog.settle(digest(1))
    catalog.apply(catalog.plan_remove("a"))
    assert catalog.keeps(digest(1))
    roll_back(catalog, "b")
    assert catalog.get("b").digest == digest(1)
    assert catalog.knows(digest(1))


def test_without_a_history_there_is_nothing_to_return_to():
    catalog = Catalog(limits=Limits(keep_versions=0))
    point(catalog, "a", 1)
    point(catalog, "a", 2)
    error = refusal(catalog.plan_rollback, "a")
    assert error.reason == "VERSION_NOT_KEPT"
    assert error.message.startswith("a has no earlier version to go back to")


def test_other_terms_of_the_same_content_move_nothing():
    catalog = Catalog()
    point(catalog, "a", 1)
    point(catalog, "a", 2)
    change = point(catalog, "a", 2, pinned=True)
    assert change is not None
    assert change.retired == ()
    assert catalog.pinned == {digest(2)}
    assert previous(catalog, "a") == [digest(1)]
    assert point(catalog, "a", 2, pinned=True) is None
    assert point(catalog, "a", 2) is None, "nothing was said of the pin"
    roll_back(catalog, "a")
    assert catalog.pinned == {digest(1)}
    assert point(catalog, "a", 1, pinned=False) is not None
    assert catalog.pinned == set()


def test_preconditions_name_both_digests():
    catalog = Catalog()
    error = refusal(point, catalog, "a", 1, expected=digest(7))
    assert (error.code.name, error.reason) == ("ABORTED", "DIGEST_CHANGED")
    assert "points to nothing" in error.message
    point(catalog, "a", 1, expected="none")
    for call, arguments in (
        (point, (catalog, "a", 2)),
        (catalog.plan_rollback, ("a", "")),
        (catalog.plan_remove, ("a",)),
    ):
        for expected in ("none", digest(7)):
            error = refusal(call, *arguments, expected=expected)
            assert error.reason == "DIGEST_CHANGED"
            assert digest(1) in error.message
            assert error.metadata == {"expected_digest": expected, "digest": digest(1)}
        assert refusal(call, *arguments, expected="0" * 63).reason == "BAD_DIGEST"
    point(catalog, "a", 2, expected=digest(1))
    roll_back(catalog, "a", expected=digest(2))
    catalog.apply(catalog.plan_remove("a", digest(1)))
    assert refusal(catalog.plan_remove, "a", digest(1)).code.name == "NOT_FOUND"


def test_limits_are_refused_by_name():
    limits = Limits(max_adapters=4, max_adapters_per_tenant=2, max_bytes_per_tenant=150, max_pinned_bytes=150)
    catalog = Catalog(limits=limits)
    point(catalog, "a", 1, tenant="t", pinned=True)
    error = refusal(point, catalog, "b", 2, tenant="t")
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "MAX_BYTES_PER_TENANT")
    # The same pack under another name takes nothing more.
    point(catalog, "b", 1, tenant="t")
    assert refusal(point, catalog, "c", 1, tenant="t").reason == "MAX_ADAPTERS_PER_TENANT"
    assert refusal(point, catalog, "c", 2, tenant="u", pinned=True).reason == "PINNED_FULL"
    point(catalog, "c", 2, tenant="u")
    point(catalog, "d", 3)
    assert refusal(point, catalog, "e", 4, tenant="v").reason == "MAX_ADAPTERS"
    # A name moves within its limits.
    point(catalog, "d", 4)


def test_a_name_stays_with_its_owner_until_it_is_unloaded():
    catalog = Catalog()
    point(catalog, "a", 1, tenant="t")
    point(catalog, "shared", 1)
    for name, tenant in (("a", "u"), ("shared", "t")):
        # Whatever is expected: what a name points to is no other tenant's business.
        error = refusal(point, catalog, name, 2, tenant=tenant, expected="none")
        assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "NAME_TAKEN")
    assert refusal(point, catalog, "a", 2, for_everyone=True).reason == "NAME_TAKEN"
    # By an admin of all: it stays as private as it was.
    point(catalog, "a", 2)
    assert catalog.get("a").tenant == "t"
    point(catalog, "a", 2, pinned=True)
    assert (catalog.get("a").tenant, catalog.get("a").pinned) == ("t", True)
    catalog.apply(catalog.plan_remove("a"))
    point(catalog, "a", 1, tenant="u")
    assert catalog.get("a").tenant == "u"


def test_what_was_there_before_a_limit_was_lowered_can_move_and_go():
    catalog = Catalog()
    for number, name in enumerate("abc"):
        point(catalog, name, number, tenant="t")
    lowered = Catalog(
        revision=catalog.revision,
        pointers=catalog.pointers(),
        versions=[catalog.version(digest(number)) for number in range(3)],
        limits=Limits(max_adapters=1, max_adapters_per_tenant=1, max_bytes_per_tenant=1),
    )
    point(lowered, "a", 9, tenant="t")
    roll_back(lowered, "a")
    lowered.apply(lowered.plan_remove("a"))
