"""The catalog's tables of shards: those it names, and what is retired.

Deletion runs catalog first: one transaction takes a row out of what is named and into what is
retired, and its files are deleted later, when no process can be about to open them any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from embedcache.store.database import schema
from embedcache.store.database.catalog_tables import CatalogTables
from embedcache.store.database.records import RetiredRecord, ShardRecord

SHARD = "shard"
DATASET = "dataset"


class ShardTables(CatalogTables):
    """The shards that are named, and what is retired."""

    def add_shard(self, record: ShardRecord, path: Path | None = None) -> bool:
        """Acknowledge a shard whose file is durable. If it was retired, it is not any more.

        Args:
            record: What is known of it.
            path: Its file, to be looked for inside the transaction: a shard of the same name
                may have been retired, and its file be deleted, since this one was written.

        Returns:
            True if the file is gone: it has to be written again, and this called again.
        """
        statement = upsert(schema.shards).values(
            digest=record.digest,
            view=record.view,
            num_texts=record.num_texts,
            num_tokens=record.num_tokens,
            num_bytes=record.num_bytes,
            created_at=time.time(),
        )
        with self._database.write() as connection:
            if path is not None and not path.exists():
                return True
            connection.execute(statement.on_conflict_do_nothing())
            unretire(connection, SHARD, record.digest)
        return False

    def shards(self, view: str | None = None) -> list[ShardRecord]:
        """The shards of one view, or of all, oldest first."""
        table = schema.shards
        statement = select(table).order_by(table.c.created_at, table.c.digest)
        if view is not None:
            statement = statement.where(table.c.view == view)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [
            ShardRecord(
                row.digest, row.view, row.num_texts, row.num_tokens, row.num_bytes, row.created_at
            )
            for row in rows
        ]

    def remove_shard(self, digest: str) -> None:
        """Forget a shard: its texts become misses."""
        with self._database.write() as connection:
            connection.execute(delete(schema.shards).where(schema.shards.c.digest == digest))

    # What is retired

    def retire_shards(self, digests: Iterable[str]) -> list[RetiredRecord]:
        """Take shards out of the catalog, their files to be deleted later; one transaction.

        Returns:
            Those that it named until now.
        """
        with self._database.write() as connection:
            return retire_shards(connection, digests)

    def retired(self) -> list[RetiredRecord]:
        """What is retired, oldest first."""
        table = schema.retired
        statement = select(table).order_by(table.c.retired_at, table.c.digest)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [
            RetiredRecord(row.kind, row.digest, row.view, row.num_bytes, row.retired_at)
            for row in rows
        ]

    def delete_retired(
        self, record: RetiredRecord, *, before: float, remove: Callable[[], None]
    ) -> bool:
        """Delete the files of what is retired, unless it has come back or is too young.

        `remove` is called inside the transaction: whoever writes the same shard anew waits
        with acknowledging it, and then finds that its file is gone.

        Args:
            record: From `retired`.
            before: Seconds since 1970 that it must have been retired before.
            remove: Deletes the files, durably; fine if they are gone.

        Returns:
            Whether they were deleted.
        """
        table = schema.retired
        chosen = (table.c.kind == record.kind) & (table.c.digest == record.digest)
        with self._database.write() as connection:
            retired_at = connection.execute(
                select(table.c.retired_at).where(chosen)
            ).scalar_one_or_none()
            if retired_at is None or retired_at > before:
                return False
            remove()
            connection.execute(delete(table).where(chosen))
        return True

    def delete_unnamed(self, digest: str, remove: Callable[[], None]) -> bool:
        """Delete a shard's file unless the catalog names it, or has it retired.

        Args:
            digest: The shard's.
            remove: As for `delete_retired`.

        Returns:
            Whether it was deleted.
        """
        with self._database.write() as connection:
            for table in (schema.shards, schema.retired):
                found = select(table.c.digest).where(table.c.digest == digest)
                if connection.execute(found).first() is not None:
                    return False
            remove()
        return True


def retire_shards(connection: Connection, digests: Iterable[str]) -> list[RetiredRecord]:
    """`ShardTables.retire_shards` in the caller's transaction."""
    table, now, found = schema.shards, time.time(), []
    for digest in digests:
        row = connection.execute(select(table).where(table.c.digest == digest)).first()
        if row is not None:
            connection.execute(delete(table).where(table.c.digest == digest))
            found.append(RetiredRecord(SHARD, digest, row.view, row.num_bytes, now))
            retire(connection, found[-1])
    return found


def retire(connection: Connection, record: RetiredRecord) -> None:
    """Say that files are to be deleted, in the caller's transaction."""
    row = {"view": record.view, "num_bytes": record.num_bytes, "retired_at": record.retired_at}
    statement = upsert(schema.retired).values(kind=record.kind, digest=record.digest, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=["kind", "digest"], set_=row))


def unretire(connection: Connection, kind: str, digest: str) -> None:
    """Say that files are to stay after all, in the caller's transaction."""
    table = schema.retired
    connection.execute(delete(table).where(table.c.kind == kind, table.c.digest == digest))
