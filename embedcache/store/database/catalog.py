"""The catalog: views, shards, datasets, runs. SQL through SQLAlchemy Core; no row per key.

Its tables are in parts: `ViewTables`, `ShardTables`, `DatasetTables` and `ModuleTables`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sqlalchemy import delete, func, insert, select

from embedcache.errors import (
    StoreError,
    StoreVersionError,
    UnknownNameError,
)
from embedcache.store.database import schema
from embedcache.store.database.catalog_datasets import DatasetTables
from embedcache.store.database.catalog_modules import ModuleTables
from embedcache.store.database.catalog_shards import ShardTables
from embedcache.store.database.catalog_tables import unknown_name
from embedcache.store.database.catalog_views import ViewTables
from embedcache.store.database.records import RunRecord
from embedcache.store.publish import FILE_MODE, mapped_os_errors, one_line

LOCK_TIMEOUT_S = 30.0


class Catalog(ViewTables, ShardTables, DatasetTables, ModuleTables):
    """The SQLite catalog of a store. Constructing it opens nothing.

    Every write is one transaction, durable when the call returns. Threads may use it at the
    same time; a forked child must open its own.
    """

    def __init__(self, path: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        super().__init__(path, lock_timeout_s=lock_timeout_s)

    def create(self) -> bool:
        """Make the catalog, or bring an old one up to date; fine if it is.

        Returns:
            Whether there was none.

        Raises:
            StoreError: if it cannot be written.
        """
        if self._version() >= len(schema.MIGRATIONS):
            return False
        with mapped_os_errors(self._path):
            # SQLite would make it readable to the group; its journals take after it.
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, FILE_MODE))
        with self._database.write() as connection:
            return schema.migrate(connection) == 0

    def check(self) -> None:
        """Raise unless the catalog is there and of a version that this code can read.

        One of an older version is brought up to date.
        """
        version = self._version()
        if 0 < version < len(schema.MIGRATIONS):
            self.create()
        if version > len(schema.MIGRATIONS):
            raise StoreVersionError(
                f"{self._path}: catalog version {version}, this embedcache reads up to"
                f" {len(schema.MIGRATIONS)}; upgrade embedcache"
            )
        if version == 0:
            raise StoreError(
                f"{self._path}: the catalog is missing or empty; `embedcache repair` makes a new"
                " one from what lies there, or run the same `embedcache build` again"
            )

    def _version(self) -> int:
        with mapped_os_errors(self._path):
            if not self._path.exists():
                return 0
        with self._database.read() as connection:
            if not connection.dialect.has_table(connection, "migrations"):
                return 0
            return schema.version_of(connection)

    @property
    def version(self) -> int:
        """How many migrations it has had; 0 where there is none.

        Raises:
            StoreError: if it cannot be read.
        """
        return self._version()

    def check_integrity(self) -> None:
        """Read all of it.

        Raises:
            StoreError: if a page or an index is damaged, or a table cannot be read.
        """
        with self._database.read() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        if found != "ok":
            raise StoreError(f"{self._path}: is damaged ({one_line(ValueError(found))})")
        for _ in (self.views(), self.datasets(), self.builds(), self.runs()):
            pass

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._database.close()

    # Runs

    def add_run(self, record: RunRecord) -> None:
        """Register a run whose files are durable."""
        with self._database.write() as connection:
            connection.execute(
                insert(schema.runs).values(
                    run=record.run,
                    dataset=record.dataset,
                    version=record.version,
                    view=record.view,
                    record_json=json.dumps(dict(record.record)),
                    created_at=record.created_at,
                )
            )

    def remove_run(self, run: str) -> bool:
        """Forget a run; whether there was one. Its files are the caller's to delete, after this."""
        with self._database.write() as connection:
            done = connection.execute(delete(schema.runs).where(schema.runs.c.run == run))
        return bool(done.rowcount)

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        statement = select(schema.runs).order_by(schema.runs.c.created_at)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with self._database.mapped_damage():
            return [
                RunRecord(
                    row.run, row.dataset, row.version, row.view, json.loads(row.record_json),
                    row.created_at,
                )
                for row in rows
            ]  # fmt: skip

    def find_run(self, prefix: str) -> RunRecord:
        """The run whose name begins so; ``last`` is the newest.

        Raises:
            UnknownNameError: if none does, or several.
        """
        known = self.runs()
        if prefix == "last" and known:
            return known[-1]
        exact = [record for record in known if record.run == prefix]
        found = exact or [record for record in known if record.run.startswith(prefix)]
        if prefix and len(found) == 1:
            return found[0]
        names = [record.run for record in known]
        raise UnknownNameError(unknown_name("run", prefix, names, several=len(found) > 1))

    def count(self) -> dict[str, int]:
        """How many dataset names and runs there are."""
        names = select(func.count(func.distinct(schema.datasets.c.name)))
        with self._database.read() as connection:
            return {
                "datasets": int(connection.execute(names).scalar_one()),
                "runs": int(connection.execute(select(func.count(schema.runs.c.run))).scalar_one()),
            }
