"""The catalog's tables of modules: what a probe found, digests of files, pins."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.sqlite import insert as upsert

from embedcache.store.database import schema
from embedcache.store.database.catalog_tables import CatalogTables
from embedcache.store.database.records import ModulePin


class ModuleTables(CatalogTables):
    """What is known of modules."""

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

    def module_files(self) -> dict[str, str]:
        """The digest of the files at each path that was ever looked at."""
        table = schema.module_files
        with self._database.read() as connection:
            rows = connection.execute(select(table.c.path, table.c.digest)).all()
        return {row.path: row.digest for row in rows}

    def module_facts_bytes(self) -> dict[str, int]:
        """The size of what is known of the module with each digest."""
        table = schema.module_facts
        statement = select(table.c.digest, func.length(table.c.facts_json).label("size"))
        with self._database.read() as connection:
            return {row.digest: int(row.size) for row in connection.execute(statement)}

    def forget_modules(self, *, paths: Sequence[str], digests: Sequence[str]) -> None:
        """Drop what is known of files at these paths, and of modules with these digests.

        It is found again when it is needed: a module is probed, its files are read.
        """
        with self._database.write() as connection:
            for path in paths:
                table = schema.module_files
                connection.execute(delete(table).where(table.c.path == path))
            for digest in digests:
                table = schema.module_facts
                connection.execute(delete(table).where(table.c.digest == digest))
