"""The catalog's tables of datasets: versions, the builds that made them, and their use."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from embedcache.errors import StoreError, UnknownNameError
from embedcache.store.database import schema
from embedcache.store.database.catalog_shards import DATASET, retire, unretire
from embedcache.store.database.catalog_tables import CatalogTables, unknown_name
from embedcache.store.database.records import BuildRecord, DatasetRecord, RetiredRecord, UseRecord
from embedcache.store.database.sqlite import Database

USE_PERIOD_S = 3600.0
"""A use is recorded at most so often: `gc` asks for days, and every record is a transaction."""
_USE_TIMEOUT_S = 0.1


class DatasetTables(CatalogTables):
    """Versions of registered corpora, the builds that made them, and when they were used."""

    def add_dataset(self, record: DatasetRecord, *, view: str, report: Mapping[str, Any]) -> None:
        """Register a dataset version and the build that made it, in one transaction."""
        now = time.time()
        with self._database.write() as connection:
            _add_version(connection, record, created_at=now)
            _add_build(connection, BuildRecord(record.name, record.version, view, report, now))
            _add_use(connection, UseRecord(view, record.version, now))

    def import_dataset(self, record: DatasetRecord, builds: Iterable[BuildRecord]) -> None:
        """Register a dataset version of another store with its builds, in one transaction.

        It keeps its place among the versions by the time that it was registered there; one
        that is known here keeps what is known of it, and builds that are known are not doubled.
        """
        table = schema.builds
        with self._database.write() as connection:
            if not _is_registered(connection, record.name, record.version):
                _add_version(connection, record, created_at=record.created_at)
            for build in builds:
                known = select(table.c.number).where(
                    table.c.dataset == build.dataset,
                    table.c.version == build.version,
                    table.c.view == build.view,
                )
                if connection.execute(known).first() is None:
                    _add_build(connection, build)
                    _add_use(connection, UseRecord(build.view, build.version, build.created_at))

    def remove_dataset(self, name: str, version: str, *, num_bytes: int) -> bool:
        """Forget a dataset version under one name.

        Args:
            name: The dataset's.
            version: The whole version.
            num_bytes: Of its files.

        Returns:
            Whether no other name has this version: its files are retired then.
        """
        table, builds = schema.datasets, schema.builds
        with self._database.write() as connection:
            connection.execute(
                delete(table).where(table.c.name == name, table.c.version == version)
            )
            connection.execute(
                delete(builds).where(builds.c.dataset == name, builds.c.version == version)
            )
            if connection.execute(select(table.c.name).where(table.c.version == version)).first():
                return False
            _retire_version(connection, version, num_bytes)
        return True

    def replace_version(self, old: str, new: DatasetRecord | None, *, num_bytes: int) -> None:
        """Put another version in the place of one, under every name that has it.

        Times, builds and uses are the new one's from now on; the files of the old one are
        retired. One transaction.

        Args:
            old: The version that goes.
            new: The one that comes, whose name and time are not looked at; None for none.
            num_bytes: Of the old one's files.
        """
        table, builds, uses = schema.datasets, schema.builds, schema.uses
        with self._database.write() as connection:
            for row in connection.execute(select(table).where(table.c.version == old)).all():
                if new is not None and not _is_registered(connection, row.name, new.version):
                    sources = json.loads(row.sources_json)
                    kept = DatasetRecord(
                        row.name, new.version, new.num_documents, new.num_unique, sources, 0.0
                    )
                    _add_version(connection, kept, created_at=row.created_at)
            connection.execute(delete(table).where(table.c.version == old))
            if new is not None:
                connection.execute(
                    update(builds).where(builds.c.version == old).values(version=new.version)
                )
                for row in connection.execute(select(uses).where(uses.c.version == old)).all():
                    _add_use(connection, UseRecord(row.view, new.version, row.used_at))
            connection.execute(delete(builds).where(builds.c.version == old))
            _retire_version(connection, old, num_bytes)

    def datasets(self) -> list[DatasetRecord]:
        """All versions of all datasets, oldest first."""
        statement = select(schema.datasets).order_by(schema.datasets.c.created_at)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with self._database.mapped_damage():
            return [
                DatasetRecord(
                    row.name,
                    row.version,
                    row.num_documents,
                    row.num_unique,
                    json.loads(row.sources_json),
                    row.created_at,
                )
                for row in rows
            ]

    def find_dataset(self, name: str | None = None) -> DatasetRecord:
        """The newest version of a dataset; ``NAME@VERSION`` names one; None is the newest of all.

        Raises:
            UnknownNameError: if there is no such dataset, or several versions begin so.
        """
        known = self.datasets()
        found = known if name is None else [record for record in known if record.name == name]
        wanted, at, version = (name or "").rpartition("@")
        if not found and at:
            found = [
                record
                for record in known
                if record.name == wanted and record.version.startswith(version)
            ]
        several = bool(version and at) and len({record.version for record in found}) > 1
        if found and not several:
            return found[-1]
        names = sorted({record.name for record in known})
        if wanted in names:
            names = [f"{wanted}@{record.version}" for record in known if record.name == wanted]
        raise UnknownNameError(unknown_name("dataset", name or "", names, several=several))

    def newest_view_of(self, version: str) -> str | None:
        """The view that a dataset version was last built under."""
        table = schema.builds
        statement = (
            select(table.c.view)
            .where(table.c.version == version)
            .order_by(table.c.number.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found: str | None = connection.execute(statement).scalar_one_or_none()
        return found

    def builds(self) -> list[BuildRecord]:
        """All builds of all datasets, oldest first."""
        statement = select(schema.builds).order_by(schema.builds.c.number)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with self._database.mapped_damage():
            return [
                BuildRecord(
                    row.dataset, row.version, row.view, json.loads(row.report_json), row.created_at
                )
                for row in rows
            ]

    # Use

    def uses(self) -> list[UseRecord]:
        """When each dataset version was last used under a view, the longest ago first."""
        statement = select(schema.uses).order_by(schema.uses.c.used_at)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [UseRecord(row.view, row.version, row.used_at) for row in rows]

    def record_use(self, view: str, version: str) -> None:
        """Keep that a dataset version's features under a view are used now.

        Cheap, and never an error: at most once in `USE_PERIOD_S` for each, and not at all
        where the store cannot be written, or another process holds its lock.

        Args:
            view: The view's fingerprint.
            version: The dataset's whole version.
        """
        now, table = time.time(), schema.uses
        found = select(table.c.used_at).where(table.c.view == view, table.c.version == version)
        # Of its own, so that it can be impatient.
        database = Database(self._path, lock_timeout_s=_USE_TIMEOUT_S)
        with suppress(StoreError), closing(database):
            with database.read() as connection:
                used_at = connection.execute(found).scalar_one_or_none()
            if used_at is None or now - used_at >= USE_PERIOD_S:
                with database.write() as connection:
                    _add_use(connection, UseRecord(view, version, now))


def _is_registered(connection: Connection, name: str, version: str) -> bool:
    table = schema.datasets
    found = select(table.c.name).where(table.c.name == name, table.c.version == version)
    return connection.execute(found).first() is not None


def _add_version(connection: Connection, record: DatasetRecord, *, created_at: float) -> None:
    row = {"created_at": created_at, "sources_json": json.dumps(list(record.sources))}
    statement = upsert(schema.datasets).values(
        name=record.name,
        version=record.version,
        num_documents=record.num_documents,
        num_unique=record.num_unique,
        **row,
    )
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name", "version"], set_=row)
    )
    unretire(connection, DATASET, record.version)


def _add_build(connection: Connection, record: BuildRecord) -> None:
    connection.execute(
        insert(schema.builds).values(
            dataset=record.dataset,
            version=record.version,
            view=record.view,
            report_json=json.dumps(dict(record.report)),
            created_at=record.created_at,
        )
    )


def _add_use(connection: Connection, record: UseRecord) -> None:
    table = schema.uses
    new = upsert(table).values(view=record.view, version=record.version, used_at=record.used_at)
    newest = {"used_at": func.max(table.c.used_at, record.used_at)}
    connection.execute(new.on_conflict_do_update(index_elements=["view", "version"], set_=newest))


def _retire_version(connection: Connection, version: str, num_bytes: int) -> None:
    uses = schema.uses
    connection.execute(delete(uses).where(uses.c.version == version))
    retire(connection, RetiredRecord(DATASET, version, "", num_bytes, time.time()))
