"""The catalog on disk: SQLite, one transaction a change, durable once it is committed.

All methods block and belong to one thread at a time.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from adapter_store.catalog.catalog import Catalog, Change
from adapter_store.catalog.quota import Limits
from adapter_store.records.reserve import Reserve
from adapter_store.records.rows import (
    POINTER_COLUMNS,
    VERSION_COLUMNS,
    read_pointer,
    read_version,
    write_pointer,
    write_version,
)
from rpc.errors import resource_exhausted

log = logging.getLogger(__name__)

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE revision (value INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
CREATE TABLE pointers (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, source TEXT NOT NULL,
    revision INTEGER NOT NULL, load_time_ns INTEGER NOT NULL, tenant TEXT NOT NULL DEFAULT '',
    pinned INTEGER NOT NULL DEFAULT 0, previous TEXT NOT NULL DEFAULT '[]'
) WITHOUT ROWID;
CREATE TABLE versions (
    digest TEXT PRIMARY KEY, pack_bytes INTEGER NOT NULL, max_rank INTEGER NOT NULL, report TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE retiring (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE layouts (
    digest TEXT PRIMARY KEY, layout BLOB NOT NULL, registered INTEGER NOT NULL
) WITHOUT ROWID;
"""
# From each older format to the one after it.
_MIGRATIONS = {
    1: """
ALTER TABLE pointers ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE pointers ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE pointers ADD COLUMN previous TEXT NOT NULL DEFAULT '[]';
""",
}
KEPT_LAYOUTS = 8
_NO_ROOM = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR))
# What the machine is to blame for, and not what the file holds.
_OF_THE_MACHINE = _NO_ROOM | {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

Settled: TypeAlias = Mapping[str, bool]
"""Digests that have retired, and whether they stay because a name can go back to them."""


class DatabaseError(ValueError):
    """The catalog cannot be opened; the message says what to do."""


@contextmanager
def database_errors() -> Iterator[None]:
    """Turns what SQLite raises into LorikeetError: RESOURCE_EXHAUSTED."""
    try:
        yield
    except sqlite3.Error as error:
        log.exception("the catalog cannot be written")
        raise resource_exhausted(
            "CATALOG_NOT_WRITTEN", f"the store cannot write its catalog ({error}): check its disk"
        ) from error


class Database:
    """Reads and writes `catalog.sqlite3` in a data folder.

    Raises:
        DatabaseError: it is damaged, or of a version that this release does not read.
        OSError: its disk is full or fails, or this user may not write to it.
    """

    def __init__(self, data_dir: Path) -> None:
        path = data_dir / "catalog.sqlite3"
        self._reserve = Reserve(data_dir / "reserve")
        try:
            self._connection = self._open(path)
        except sqlite3.DatabaseError as error:
            if _code(error) in _OF_THE_MACHINE:
                raise OSError(
                    f"the catalog {path} cannot be opened ({error}): make room on its disk, let this user "
                    "write to its folder and files"
                ) from error
            raise DatabaseError(
                f"the catalog {path} cannot be read ({error}): move it away, start with an empty one, and "
                "load the adapters again"
            ) from error
        self._reserve.fill()

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return _open(path)
        except sqlite3.OperationalError as error:
            # To open one takes room, too, for what stands beside it.
            if _code(error) not in _NO_ROOM or not self._reserve.give_up():
                raise
            return _open(path)

    def close(self) -> None:
        self._connection.close()

    def read_catalog(self, limits: Limits = Limits()) -> Catalog:  # noqa: B008 - frozen
        """The catalog as of the last commit."""
        rows = self._connection.execute
        return Catalog(
            revision=rows("SELECT value FROM revision").fetchone()[0],
            pointers=[read_pointer(*row) for row in rows(f"SELECT {POINTER_COLUMNS} FROM pointers")],  # noqa: S608 - constant
            versions=[
                read_version(*row)
                for row in rows(f"SELECT {VERSION_COLUMNS} FROM versions")  # noqa: S608 - constant
            ],
            retiring=[digest for (digest,) in rows("SELECT digest FROM retiring")],
            limits=limits,
        )

    def commit(self, change: Change, settled: Settled = MappingProxyType({})) -> None:
        """Writes one change of the catalog down, and before it what has retired; a removal also on a full
        disk."""
        try:
            self._commit(change, settled)
        except sqlite3.OperationalError:
            if change.removed is None or not self._reserve.give_up():
                raise
            self._commit(change, settled)

    def _commit(self, change: Change, settled: Settled) -> None:
        with _Transaction(self._connection) as execute:
            _settle(execute, settled)
            execute("UPDATE revision SET value = ?", (change.revision,))
            if change.pointer is not None and change.version is not None:
                execute(
                    f"INSERT OR REPLACE INTO pointers ({POINTER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constant
                    write_pointer(change.pointer),
                )
                execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?)", write_version(change.version))
                execute("DELETE FROM retiring WHERE digest = ?", (change.version.digest,))
            if change.removed is not None:
                execute("DELETE FROM pointers WHERE name = ?", (change.removed,))
            for digest in change.retired:
                execute("INSERT OR REPLACE INTO retiring VALUES (?)", (digest,))

    def settle(self, settled: Settled) -> None:
        """Digests have retired. Keeps room for the next removal, too, now that some was freed."""
        if settled:
            with _Transaction(self._connection) as execute:
                _settle(execute, settled)
        self._reserve.fill()

    def read_layouts(self) -> list[bytes]:
        """Serialised layouts, the one registered last at the end."""
        rows = self._connection.execute("SELECT layout FROM layouts ORDER BY registered")
        return [layout for (layout,) in rows]

    def save_layout(self, digest: str, layout: bytes) -> None:
        """Remembers a layout as the last one registered, and forgets the oldest of many."""
        with _Transaction(self._connection) as execute:
            (last,) = execute("SELECT COALESCE(MAX(registered), 0) FROM layouts").fetchone()
            execute("INSERT OR REPLACE INTO layouts VALUES (?, ?, ?)", (digest, layout, last + 1))
            execute(
                "DELETE FROM layouts WHERE digest NOT IN "
                "(SELECT digest FROM layouts ORDER BY registered DESC LIMIT ?)",
                (KEPT_LAYOUTS,),
            )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0 where an error is not its own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    execute = connection.execute
    execute("PRAGMA journal_mode = WAL")
    execute("PRAGMA synchronous = FULL")
    (version,) = execute("PRAGMA user_version").fetchone()
    if version == 0:
        with _Transaction(connection):
            for statement in _SCHEMA.split(";"):
                execute(statement)
            execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        version = _SCHEMA_VERSION
    while version in _MIGRATIONS:
        with _Transaction(connection):
            for statement in _MIGRATIONS[version].split(";"):
                execute(statement)
            version += 1
            execute(f"PRAGMA user_version = {version}")
    if version != _SCHEMA_VERSION:
        raise DatabaseError(
            f"the catalog {path} has format {version}, this release reads {_SCHEMA_VERSION}: run the "
            "release that wrote it, or choose another data_dir"
        )
    (health,) = execute("PRAGMA quick_check(1)").fetchone()
    if health != "ok":
        raise sqlite3.DatabaseError(health)


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when the block or COMMIT raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self):
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection.execute

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            # SQLite may have rolled back by itself where the disk is full.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _settle(execute: Callable[..., object], settled: Settled) -> None:
    for digest, stays in settled.items():
        execute("DELETE FROM retiring WHERE digest = ?", (digest,))
        if not stays:
            execute("DELETE FROM versions WHERE digest = ?", (digest,))
