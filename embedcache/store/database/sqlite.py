"""SQLite through SQLAlchemy: connections, transactions, and its errors mapped to ours."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from embedcache.errors import (
    DiskFullError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreVersionError,
)
from embedcache.store.publish import one_line


class Database:
    """One SQLite file. Constructing it opens nothing; a forked child must make its own.

    Args:
        path: The file.
        lock_timeout_s: Seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, *, lock_timeout_s: float) -> None:
        self._path = path
        self._lock_timeout_s = lock_timeout_s
        self._engine: Engine | None = None
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading."""
        with self._mapped_errors(), self._connect().connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in one transaction, durable when the block ends."""
        with self._mapped_errors(), self._connect().connect() as connection:
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                yield connection

    def _connect(self) -> Engine:
        if self._engine is not None and self._process != os.getpid():
            raise StoreError(
                f"{self._path}: opened before a fork; open the store again in the child process"
            )
        self._process = os.getpid()
        if self._engine is None:
            self._engine = create_engine(
                URL.create("sqlite", database=str(self._path)),
                connect_args={"timeout": self._lock_timeout_s},
            )
            event.listen(self._engine, "connect", _set_pragmas)
            event.listen(self._engine, "begin", _begin)
        return self._engine

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DatabaseError) and error.orig else error
            raise self._mapped(cause) from error
        except sqlite3.Error as error:  # from `_set_pragmas`
            raise self._mapped(error) from error

    @contextmanager
    def mapped_damage(self) -> Iterator[None]:
        """For rows whose JSON is read."""
        try:
            yield
        except StoreVersionError as error:
            raise StoreVersionError(f"{self._path}: {error}") from None
        except (ValueError, TypeError) as error:
            raise self._mapped(error) from error

    def _mapped(self, cause: BaseException) -> StoreError:
        """The embedcache error for what SQLite says."""
        name, said = getattr(cause, "sqlite_errorname", ""), one_line(cause)
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreLockedError(
                f"{self._path}: another process has held the catalog for"
                f" {self._lock_timeout_s:g} s; let it finish, then run the same command again"
            )
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return StoreReadOnlyError(
                f"{self._path}: cannot be written ({said}); choose another store with --store, or"
                " change its permissions"
            )
        # A limit on the size of files (EFBIG) is "disk I/O error" in SQLite's words.
        if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            return DiskFullError(
                f"{self._path}: no space left on the device ({said}); free some and run the same"
                " command again"
            )
        if name.startswith("SQLITE_IOERR"):
            return StoreError(
                f"{self._path}: the device failed ({said}); run the same command again, and look"
                " after the disk if it stays so"
            )
        return StoreError(
            f"{self._path}: the catalog cannot be used ({said}); run `embedcache repair`, which"
            " puts it aside and makes a new one from the shards"
        )


def _set_pragmas(connection: Any, _record: object) -> None:
    # The driver's own transaction handling is switched off: `_begin` opens them.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL does not force the deletion of the journal, which is what commits: after a power
    # loss the journal may be there again, and undo what was acknowledged.
    cursor.execute("PRAGMA synchronous=EXTRA")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails with "locked" without waiting
    # for its turn: writers take the lock at once, readers never do.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
