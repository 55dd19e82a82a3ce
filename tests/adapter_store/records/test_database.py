import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_store.catalog.catalog import Catalog
from adapter_store.catalog.versions import ModuleReport, Version
from adapter_store.records.database import Database, DatabaseError
from adapter_store.records.reserve import Reserve


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
    database.settle({version(2).digest: False})
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


def test_a_catalog_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "catalog.sqlite3").mkdir()
    with pytest.raises(OSError, match=r"cannot be opened .* make room"):
        Database(tmp_path)


def test_another_format_is_said(tmp_path):
    Database(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "catalog.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DatabaseError, match="has format 99, this release reads 2"):
        Database(tmp_path)


def test_histories_and_terms_are_read_again(tmp_path):
    database = Database(tmp_path)
    catalog = database.read_catalog()
    steps = (
        lambda: catalog.plan_point("a", version(1), "/1", 1, tenant="t", pinned=True),
        lambda: catalog.plan_point("a", version(2), "/2", 2, tenant="t"),
        lambda: catalog.plan_rollback("a"),
    )
    for step in steps:
        change = step()
        assert change is not None
        database.commit(change)
        catalog.apply(change)
        assert contents(database.read_catalog()) == contents(catalog)
    assert catalog.settle(version(2).digest)
    database.settle({version(2).digest: True})
    assert contents(database.read_catalog()) == contents(catalog)
    assert [e.digest for e in database.read_catalog().get("a").previous] == [version(2).digest]
    database.close()


def test_a_catalog_of_the_first_format_is_taken_over(tmp_path):
    connection = sqlite3.connect(tmp_path / "catalog.sqlite3")
    connection.executescript(
        """
        CREATE TABLE revision (value INTEGER NOT NULL);
        INSERT INTO revision VALUES (7);
        CREATE TABLE pointers (
            name TEXT PRIMARY KEY, digest TEXT NOT NULL, source TEXT NOT NULL,
            revision INTEGER NOT NULL, load_time_ns INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE versions (
            digest TEXT PRIMARY KEY, pack_bytes INTEGER NOT NULL, max_rank INTEGER NOT NULL,
            report TEXT NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE retiring (digest TEXT PRIMARY KEY) WITHOUT ROWID;
        CREATE TABLE layouts (digest TEXT PRIMARY KEY, layout BLOB NOT NULL, registered INTEGER NOT NULL)
            WITHOUT ROWID;
        PRAGMA user_version = 1;
        """
    )
    report = '{"modules":[["lm_head",8,0.5]],"notes":["n"]}'
    connection.execute("INSERT INTO versions VALUES (?, 100, 8, ?)", (version(1).digest, report))
    connection.execute("INSERT INTO pointers VALUES ('a', ?, '/a', 7, 5)", (version(1).digest,))
    connection.commit()
    connection.close()
    for _ in range(2):
        database = Database(tmp_path)
        catalog = database.read_catalog()
        pointer = catalog.get("a")
        assert (catalog.revision, pointer.tenant, pointer.pinned, pointer.previous) == (7, "", False, ())
        (module,) = catalog.version(pointer.digest).modules
        assert (module.module, module.scaling, module.parts) == ("lm_head", 0.5, ())
        assert math.isnan(module.delta_norm)
        database.close()


def test_a_full_disk_is_called_that_and_the_next_change_works(tmp_path):
    database = Database(tmp_path)
    catalog = database.read_catalog()
    connection = database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    load = catalog.plan_point("a", replace(version(1), notes=("x" * 100_000,)), "/a", 1)
    assert load is not None
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.commit(load)
    connection.execute("PRAGMA max_page_count = 100000")
    database.commit(load)
    assert database.read_catalog().get("a").digest == version(1).digest
    database.close()


class FailingCommit:
    """A connection whose first COMMIT fails and leaves the transaction open, as SQLite may."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._fails = True

    def execute(self, statement: str, *arguments):
        if statement == "COMMIT" and self._fails:
            self._fails = False
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str):
        return getattr(self._connection, name)


def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path, monkeypatch):
    database = Database(tmp_path)
    catalog = database.read_catalog()
    monkeypatch.setattr(database, "_connection", FailingCommit(database._connection))
    change = catalog.plan_point("a", version(1), "/a", 1)
    assert change is not None
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        database.commit(change)
    assert contents(database.read_catalog()) == (0, [], [], frozenset())
    database.commit(change)
    catalog.apply(change)
    assert contents(database.read_catalog()) == contents(catalog)
    database.close()


class FullDisk:
    """A connection to a database on a disk that is full as long as a file is there."""

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._connection = connection
        self._file = file

    def execute(self, statement: str, *arguments):
        if self._file.exists() and statement.startswith(
            ("UPDATE", "INSERT", "DELETE", "PRAGMA journal_mode")
        ):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str):
        return getattr(self._connection, name)


def test_a_full_disk_refuses_loads_but_not_unloads(tmp_path, monkeypatch):
    database = Database(tmp_path)
    catalog = database.read_catalog()
    change = catalog.plan_point("a", version(1), "/a", 1)
    assert change is not None
    database.commit(change)
    catalog.apply(change)
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_size == 1 << 20
    monkeypatch.setattr(database, "_connection", FullDisk(database._connection, reserve))
    load = catalog.plan_point("b", version(2), "/b", 1)
    assert load is not None
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.commit(load)
    assert reserve.exists()
    removal = catalog.plan_remove("a")
    database.commit(removal)
    assert not reserve.exists()
    catalog.apply(removal)
    assert contents(database.read_catalog()) == contents(catalog)
    database.settle({})
    assert reserve.exists()
    database.close()


def test_a_catalog_is_opened_on_a_full_disk(tmp_path, monkeypatch):
    Database(tmp_path).close()
    reserve, connect = tmp_path / "reserve", sqlite3.connect

    def on_full_disk(*arguments, **options) -> FullDisk:
        return FullDisk(connect(*arguments, **options), reserve)

    monkeypatch.setattr(sqlite3, "connect", on_full_disk)
    monkeypatch.setattr(Reserve, "fill", lambda _: None)  # There is no room for it.
    database = Database(tmp_path)
    assert not reserve.exists()
    assert contents(database.read_catalog()) == (0, [], [], frozenset())
    database.close()
