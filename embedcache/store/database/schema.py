"""The catalog's tables and the migrations that make them: numbered, append-only."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    insert,
    select,
)

metadata = MetaData()

migrations = Table(
    "migrations", metadata, Column("number", Integer, primary_key=True, autoincrement=False)
)

views = Table(
    "views",
    metadata,
    Column("fingerprint", String(32), primary_key=True),
    Column("view_json", Text, nullable=False),
    Column("handle", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

shards = Table(
    "shards",
    metadata,
    Column("digest", String(32), primary_key=True),
    Column("view", String(32), nullable=False, index=True),
    Column("num_texts", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("num_documents", BigInteger, nullable=False),
    Column("num_unique", BigInteger, nullable=False),
    Column("sources_json", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

builds = Table(
    "builds",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("dataset", String(255), nullable=False),
    Column("version", String(32), nullable=False),
    Column("view", String(32), nullable=False),
    Column("report_json", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("dataset", String(255), nullable=False),
    Column("version", String(32), nullable=False),
    Column("view", String(32), nullable=False),
    Column("record_json", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

module_facts = Table(
    "module_facts",
    metadata,
    Column("digest", String(32), primary_key=True),
    Column("facts_json", Text, nullable=False),
)

module_files = Table(
    "module_files",
    metadata,
    Column("path", Text, primary_key=True),
    Column("stamp", Text, nullable=False),
    Column("digest", String(32), nullable=False),
)

module_pins = Table(
    "module_pins",
    metadata,
    Column("handle", Text, primary_key=True),
    Column("digest", String(32), nullable=False),
    Column("pinned_at", Double, nullable=False),
)

view_details = Table(
    "view_details",
    metadata,
    Column("fingerprint", String(32), primary_key=True),
    Column("preprocess", Text, nullable=False),
    Column("checked_texts", BigInteger, nullable=False),
    Column("max_difference", Double, nullable=False),
)

view_errors = Table(
    "view_errors",
    metadata,
    Column("fingerprint", String(32), primary_key=True),
    Column("num_rows", BigInteger, nullable=False),
    Column("squared_error", Double, nullable=False),
    Column("squared_norm", Double, nullable=False),
    Column("max_error", Double, nullable=False),
)

# What the catalog named and names no more, until its files are deleted.
retired = Table(
    "retired",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("digest", String(32), primary_key=True),
    Column("view", String(32), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("retired_at", Double, nullable=False),
)

uses = Table(
    "uses",
    metadata,
    Column("view", String(32), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("used_at", Double, nullable=False),
)


def _m001_first_tables(connection: Connection) -> None:
    metadata.create_all(
        connection,
        tables=[views, shards, datasets, builds, runs, module_facts, module_files],
    )


def _m002_modules_of_every_kind(connection: Connection) -> None:
    metadata.create_all(connection, tables=[module_pins, view_details])


def _m003_maintenance(connection: Connection) -> None:
    metadata.create_all(connection, tables=[view_errors, retired, uses])


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _m001_first_tables,
    _m002_modules_of_every_kind,
    _m003_maintenance,
)
"""Migration i takes a catalog from version i to i + 1. Never edited, only appended to."""


def version_of(connection: Connection) -> int:
    """How many migrations a catalog has had."""
    return int(connection.execute(select(func.count()).select_from(migrations)).scalar_one())


def migrate(connection: Connection) -> int:
    """Bring a catalog to the newest version, inside the caller's transaction.

    Returns:
        The version that it had.
    """
    metadata.create_all(connection, tables=[migrations])
    before = version_of(connection)
    for number in range(before, len(MIGRATIONS)):
        MIGRATIONS[number](connection)
        connection.execute(insert(migrations).values(number=number + 1))
    return before
