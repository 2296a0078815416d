"""The catalog: views, shards, datasets, runs. SQL through SQLAlchemy Core; no row per key."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import case, delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from embedcache.errors import (
    StoreError,
    StoreVersionError,
    UnknownNameError,
)
from embedcache.store import schema
from embedcache.store.publish import FILE_MODE, mapped_os_errors
from embedcache.store.records import (
    DatasetRecord,
    ModulePin,
    RunRecord,
    ShardRecord,
    ViewRecord,
)
from embedcache.store.sqlite import Database
from embedcache.view import FeatureView

LOCK_TIMEOUT_S = 30.0


class Catalog:
    """The SQLite catalog of a store. Constructing it opens nothing.

    Every write is one transaction, durable when the call returns. Threads may use it at the
    same time; a forked child must open its own.
    """

    def __init__(self, path: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self._path = path
        self._database = Database(path, lock_timeout_s=lock_timeout_s)

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
                f"{self._path}: the catalog is missing or empty; run the same `embedcache build`"
                " again, which makes a new one from the shards"
            )

    def _version(self) -> int:
        with mapped_os_errors(self._path):
            if not self._path.exists():
                return 0
        with self._database.read() as connection:
            if not connection.dialect.has_table(connection, "migrations"):
                return 0
            return schema.version_of(connection)

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._database.close()

    # Views

    def add_view(self, view: FeatureView, handle: str, *, preprocess: str = "") -> None:
        """Make a view known, or renew the handles of a known one."""
        row = {"view_json": view.to_json(), "handle": handle}
        statement = upsert(schema.views).values(
            fingerprint=view.fingerprint, created_at=time.time(), **row
        )
        details = upsert(schema.view_details).values(
            fingerprint=view.fingerprint, preprocess=preprocess, checked_texts=0, max_difference=0.0
        )
        with self._database.write() as connection:
            connection.execute(
                statement.on_conflict_do_update(index_elements=["fingerprint"], set_=row)
            )
            connection.execute(
                details.on_conflict_do_update(
                    index_elements=["fingerprint"], set_={"preprocess": preprocess}
                )
            )

    def add_check(self, fingerprint: str, *, texts: int, max_difference: float) -> None:
        """Keep what comparing some of a view's texts with its module has shown."""
        table = schema.view_details
        # Also where there is no row: a view of an older version's catalog has none.
        new = upsert(table).values(
            fingerprint=fingerprint,
            preprocess="",
            checked_texts=texts,
            max_difference=max_difference,
        )
        worse = case(
            (table.c.max_difference > max_difference, table.c.max_difference), else_=max_difference
        )
        both = {"checked_texts": table.c.checked_texts + texts, "max_difference": worse}
        with self._database.write() as connection:
            connection.execute(new.on_conflict_do_update(index_elements=["fingerprint"], set_=both))

    def views(self) -> list[ViewRecord]:
        """All views, oldest first."""
        views, details = schema.views, schema.view_details
        statement = (
            select(views, details.c.preprocess, details.c.checked_texts, details.c.max_difference)
            .outerjoin(details, views.c.fingerprint == details.c.fingerprint)
            .order_by(views.c.created_at)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with self._database.mapped_damage():
            return [
                ViewRecord(
                    row.fingerprint,
                    FeatureView.from_json(row.view_json),
                    row.handle,
                    row.preprocess or "",
                    row.checked_texts or 0,
                    row.max_difference or 0.0,
                )
                for row in rows
            ]

    def find_view(self, prefix: str) -> ViewRecord:
        """The view whose fingerprint begins so.

        Raises:
            UnknownNameError: if none does, or several.
        """
        known = self.views()
        found = [record for record in known if record.fingerprint.startswith(prefix)]
        if prefix and len(found) == 1:
            return found[0]
        names = [record.fingerprint for record in known]
        raise UnknownNameError(_unknown("view", prefix, names, several=len(found) > 1))

    # Shards

    def add_shard(self, record: ShardRecord) -> None:
        """Acknowledge a shard whose file is durable."""
        statement = upsert(schema.shards).values(
            digest=record.digest,
            view=record.view,
            num_texts=record.num_texts,
            num_tokens=record.num_tokens,
            num_bytes=record.num_bytes,
            created_at=time.time(),
        )
        with self._database.write() as connection:
            connection.execute(statement.on_conflict_do_nothing())

    def shards(self, view: str | None = None) -> list[ShardRecord]:
        """The shards of one view, or of all, oldest first."""
        table = schema.shards
        statement = select(table).order_by(table.c.created_at, table.c.digest)
        if view is not None:
            statement = statement.where(table.c.view == view)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [
            ShardRecord(row.digest, row.view, row.num_texts, row.num_tokens, row.num_bytes)
            for row in rows
        ]

    def remove_shard(self, digest: str) -> None:
        """Forget a shard: its texts become misses."""
        with self._database.write() as connection:
            connection.execute(delete(schema.shards).where(schema.shards.c.digest == digest))

    # Datasets

    def add_dataset(self, record: DatasetRecord, *, view: str, report: Mapping[str, Any]) -> None:
        """Register a dataset version and the build that made it, in one transaction."""
        now = time.time()
        row = {"created_at": now, "sources_json": json.dumps(list(record.sources))}
        statement = upsert(schema.datasets).values(
            name=record.name,
            version=record.version,
            num_documents=record.num_documents,
            num_unique=record.num_unique,
            **row,
        )
        with self._database.write() as connection:
            connection.execute(
                statement.on_conflict_do_update(index_elements=["name", "version"], set_=row)
            )
            connection.execute(
                insert(schema.builds).values(
                    dataset=record.name,
                    version=record.version,
                    view=view,
                    report_json=json.dumps(dict(report)),
                    created_at=now,
                )
            )

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
        raise UnknownNameError(_unknown("dataset", name or "", names, several=several))

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
        raise UnknownNameError(_unknown("run", prefix, names, several=len(found) > 1))

    # What is known of modules

    def module_facts(self, digest: str) -> str | None:
        """What a probe of the module with this digest found, as JSON."""
        table = schema.module_facts
        statement = select(table.c.facts_json).where(table.c.digest == digest)
        with self._database.read() as connection:
            found: str | None = connection.execute(statement).scalar_one_or_none()
        return found

    def add_module_facts(self, digest: str, facts_json: str) -> None:
        """Keep what a probe found."""
        row = {"facts_json": facts_json}
        statement = upsert(schema.module_facts).values(digest=digest, **row)
        with self._database.write() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=row))

    def module_pin(self, handle: str) -> str | None:
        """The digest that a module's files must have; None if the handle is new."""
        table = schema.module_pins
        statement = select(table.c.digest).where(table.c.handle == handle)
        with self._database.read() as connection:
            found: str | None = connection.execute(statement).scalar_one_or_none()
        return found

    def pin_module(self, handle: str, digest: str) -> None:
        """From now on the files behind a handle must have this digest."""
        row = {"digest": digest, "pinned_at": time.time()}
        statement = upsert(schema.module_pins).values(handle=handle, **row)
        with self._database.write() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["handle"], set_=row))

    def unpin_module(self, handle: str) -> bool:
        """Forget a pin; whether there was one."""
        table = schema.module_pins
        with self._database.write() as connection:
            done = connection.execute(delete(table).where(table.c.handle == handle))
        return bool(done.rowcount)

    def module_pins(self) -> list[ModulePin]:
        """All pins, oldest first."""
        statement = select(schema.module_pins).order_by(schema.module_pins.c.pinned_at)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [ModulePin(row.handle, row.digest, row.pinned_at) for row in rows]

    def module_digest(self, path: str, stamp: str) -> str | None:
        """The digest of a module's files, if they still have this stamp (sizes and times)."""
        table = schema.module_files
        statement = select(table.c.digest).where(table.c.path == path, table.c.stamp == stamp)
        with self._database.read() as connection:
            found: str | None = connection.execute(statement).scalar_one_or_none()
        return found

    def add_module_digest(self, path: str, stamp: str, digest: str) -> None:
        """Keep the digest of a module's files."""
        row = {"stamp": stamp, "digest": digest}
        statement = upsert(schema.module_files).values(path=path, **row)
        with self._database.write() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["path"], set_=row))

    def count(self) -> dict[str, int]:
        """How many dataset names and runs there are."""
        names = select(func.count(func.distinct(schema.datasets.c.name)))
        with self._database.read() as connection:
            return {
                "datasets": int(connection.execute(names).scalar_one()),
                "runs": int(connection.execute(select(func.count(schema.runs.c.run))).scalar_one()),
            }


def _unknown(what: str, name: str, known: Sequence[str], *, several: bool) -> str:
    if several:
        return f"several {what}s begin with {name!r}: {', '.join(known)}; write more of the name"
    if not known:
        maker = "train" if what == "run" else "build"
        return f"no {what} {name!r}: the store has none yet; `embedcache {maker}` makes one"
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"no {what} {name!r}; there are: {shown}"
