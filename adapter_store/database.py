"""The catalog on disk: SQLite, one transaction a change, durable once it is committed.

All methods block and belong to one thread at a time.
"""

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path

from adapter_store.catalog import Catalog, Change, ModuleReport, Pointer, Version

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE revision (value INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
CREATE TABLE pointers (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, source TEXT NOT NULL,
    revision INTEGER NOT NULL, load_time_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE versions (
    digest TEXT PRIMARY KEY, pack_bytes INTEGER NOT NULL, max_rank INTEGER NOT NULL, report TEXT NOT NULL
) WITHOUT ROWID; CREATE TABLE retiring (digest TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE layouts (digest
TEXT PRIMARY KEY, layout BLOB NOT NULL, registered INTEGER NOT NULL) WITHOUT ROWID;
"""
_INSERT_POINTER = "INSERT OR REPLACE INTO pointers VALUES (:name, :digest, :source, :revision, :load_time_ns)"
_KEPT_LAYOUTS = 8


class DatabaseError(ValueError):
    """The catalog cannot be opened; the message says what to do."""


class Database:
    """Reads and writes `catalog.sqlite3` in a data folder.

    Raises:
        DatabaseError: it is damaged, or of a version that this release does not read.
    """

    def __init__(self, data_dir: Path) -> None:
        path = data_dir / "catalog.sqlite3"
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise DatabaseError(
                f"the catalog {path} cannot be read ({error}): move it away, start with an empty one, and "
                "load the adapters again"
            ) from error
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def read_catalog(self) -> Catalog:
        """The catalog as of the last commit."""
        rows = self._connection.execute
        return Catalog(
            revision=rows("SELECT value FROM revision").fetchone()[0],
            pointers=[
                Pointer(name=name, digest=digest, source=source, revision=revision, load_time_ns=load_time_ns)
                for name, digest, source, revision, load_time_ns in rows(
                    "SELECT name, digest, source, revision, load_time_ns FROM pointers"
                )
            ],
            versions=[
                _read_version(*row)
                for row in rows("SELECT digest, pack_bytes, max_rank, report FROM versions")
            ],
            retiring=[digest for (digest,) in rows("SELECT digest FROM retiring")],
        )

    def commit(self, change: Change) -> None:
        """Writes one change of the catalog down."""
        with _Transaction(self._connection) as execute:
            execute("UPDATE revision SET value = ?", (change.revision,))
            if change.pointer is not None and change.version is not None:
                pointer = asdict(change.pointer)
                execute(
                    _INSERT_POINTER,
                    pointer,
                )
                execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?)", _write_version(change.version))
                execute("DELETE FROM retiring WHERE digest = ?", (change.version.digest,))
            if change.removed is not None:
                execute("DELETE FROM pointers WHERE name = ?", (change.removed,))
            if change.retired is not None:
                execute("INSERT OR REPLACE INTO retiring VALUES (?)", (change.retired,))

    def forget(self, digest: str) -> None:
        """Removes a digest that has retired."""
        with _Transaction(self._connection) as execute:
            execute("DELETE FROM retiring WHERE digest = ?", (digest,))
            execute("DELETE FROM versions WHERE digest = ?", (digest,))

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
                (_KEPT_LAYOUTS,),
            )

    def _prepare(self, path: Path) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        (version,) = execute("PRAGMA user_version").fetchone()
        if version == 0:
            with _Transaction(self._connection):
                for statement in _SCHEMA.split(";"):
                    execute(statement)
                execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif version != _SCHEMA_VERSION:
            raise DatabaseError(
                f"the catalog {path} has format {version}, this release reads {_SCHEMA_VERSION}: run the "
                "release that wrote it, or choose another data_dir"
            )
        (health,) = execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(health)


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when the block raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self):
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection.execute

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def _write_version(version: Version) -> tuple[str, int, int, str]:
    modules = [[report.module, report.rank, report.scaling] for report in version.modules]
    report = json.dumps({"modules": modules, "notes": version.notes}, separators=(",", ":"))
    return version.digest, version.pack_bytes, version.max_rank, report


def _read_version(digest: str, pack_bytes: int, max_rank: int, report: str) -> Version:
    content = json.loads(report)
    return Version(
        digest=digest,
        pack_bytes=pack_bytes,
        max_rank=max_rank,
        modules=tuple(
            ModuleReport(module=module, rank=rank, scaling=scaling)
            for module, rank, scaling in content["modules"]
        ),
        notes=tuple(content["notes"]),
    )
