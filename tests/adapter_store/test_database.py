import sqlite3

import pytest

from adapter_store.catalog import Catalog, ModuleReport, Version
from adapter_store.database import Database, DatabaseError


def version(number: int) -> Version:
    return Version(
        digest=f"{number:064x}",
        pack_bytes=100 + number,
        max_rank=8,
        modules=(ModuleReport(module="lm_head", rank=8, scaling=0.1 + number),),
        notes=("a note: ü",),
    )


def contents(catalog: Catalog):
    versions = [catalog.version(digest) for digest in sorted(catalog.digests)]
    return catalog.revision, catalog.pointers(), versions, catalog.retiring


def test_what_was_committed_is_read_again(tmp_path):
    database = Database(tmp_path)
    catalog = database.read_catalog()
    assert contents(catalog) == (0, [], [], frozenset())
    steps = [("a", 1), ("b", 2), ("a", 3), ("c", 1), ("b", None), ("d", 3)]
    for name, number in steps:
        if number is None:
            change = catalog.plan_remove(name)
        else:
            change = catalog.plan_point(name, version(number), f"/{name}", 1_700_000_000_000_000_001)
        assert change is not None
        database.commit(change)
        catalog.apply(change)
        assert contents(database.read_catalog()) == contents(catalog)
    assert catalog.retiring == {version(2).digest}
    assert not catalog.settle(version(2).digest)
    database.settle(version(2).digest, False)
    database.close()
    reopened = Database(tmp_path)
    assert contents(reopened.read_catalog()) == contents(catalog)
    reopened.read_catalog().check_integrity()
    reopened.close()


def test_a_change_that_fails_leaves_nothing_behind(tmp_path):
    database = Database(tmp_path)
    catalog = database.read_catalog()
    change = catalog.plan_point("a", version(1), "\ud800", 1)
    assert change is not None
    with pytest.raises(UnicodeEncodeError):
        database.commit(change)
    assert contents(database.read_catalog()) == (0, [], [], frozenset())
    database.close()


def test_layouts_are_remembered_in_the_order_of_registration(tmp_path):
    database = Database(tmp_path)
    for number in (1, 2, 1):
        database.save_layout(str(number), bytes([number]))
    assert database.read_layouts() == [b"\x02", b"\x01"]
    for number in range(10, 20):
        database.save_layout(str(number), bytes([number]))
    assert database.read_layouts() == [bytes([number]) for number in range(12, 20)]
    database.close()


def test_a_damaged_catalog_is_said(tmp_path):
    (tmp_path / "catalog.sqlite3").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(DatabaseError, match=r"cannot be read .* move it away"):
        Database(tmp_path)


def test_another_format_is_said(tmp_path):
    Database(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "catalog.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DatabaseError, match="has format 99, this release reads 2"):
        Database(tmp_path)
