"""The catalog: migrations, names, locks, and what SQLite says when it is damaged."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text

import embedcache
from embedcache.errors import (
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreVersionError,
    UnknownNameError,
)
from embedcache.store.database import schema
from embedcache.store.database.catalog import LOCK_TIMEOUT_S, Catalog
from embedcache.store.database.records import DatasetRecord, RunRecord, ShardRecord, ViewRecord
from embedcache.store.database.sqlite import Database
from embedcache.store.store import FeatureStore, open_store
from embedcache.view import FeatureView

VIEW = FeatureView(module_digest="0" * 32, signature="__call__", tokenizer="module", dim=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(path, lock_timeout_s=0.2)
    catalog.create()
    yield catalog
    catalog.close()


def _dataset(name: str, version: str, created_at: float = 0.0) -> DatasetRecord:
    return DatasetRecord(name, version, 3, 2, [{"path": "a.txt"}], created_at)


def _run(name: str) -> RunRecord:
    return RunRecord(name, "sst2", "0" * 32, VIEW.fingerprint, {"accuracy": 0.5}, time.time())


# Migrations


def test_migrations_are_numbered_in_order(catalog: Catalog, path: Path) -> None:
    with sqlite3.connect(path) as raw:
        numbers = raw.execute("SELECT number FROM migrations ORDER BY number").fetchall()
    raw.close()
    assert [number for (number,) in numbers] == list(range(1, len(schema.MIGRATIONS) + 1))


def test_making_a_catalog_twice_changes_nothing(catalog: Catalog, path: Path) -> None:
    catalog.add_view(VIEW, "builtin:x")
    before = path.read_bytes()
    catalog.create()
    Catalog(path).create()
    assert path.read_bytes() == before
    assert [record.handle for record in catalog.views()] == ["builtin:x"]


def test_old_catalog_gets_what_it_lacks_when_the_store_is_opened(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_notes(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE notes (words TEXT)"))

    store.catalog.add_view(VIEW, "builtin:x")
    store.close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_notes))
    for _ in range(2):
        with open_store(store.path) as opened:
            assert [record.handle for record in opened.catalog.views()] == ["builtin:x"]
    raw = sqlite3.connect(store.layout.catalog)
    assert raw.execute("SELECT count(*) FROM notes").fetchall() == [(0,)]
    newest = len(schema.MIGRATIONS)
    assert raw.execute("SELECT max(number) FROM migrations").fetchall() == [(newest,)]
    raw.close()


@pytest.fixture
def old_store(tmp_path: Path) -> FeatureStore:
    """A store as the first version made it: no pins, and views without details."""
    store = FeatureStore(tmp_path / "old")
    store.layout.create()
    write_old_catalog(store.layout.catalog)
    return store


def write_old_catalog(path: Path) -> None:
    database = Database(path, lock_timeout_s=1.0)
    with database.write() as connection:
        schema.metadata.create_all(connection, tables=[schema.migrations])
        schema.MIGRATIONS[0](connection)
        connection.execute(insert(schema.migrations).values(number=1))
        connection.execute(
            insert(schema.views).values(
                fingerprint=VIEW.fingerprint, view_json=VIEW.to_json(), handle="m", created_at=1.0
            )
        )
        connection.execute(
            insert(schema.module_facts).values(digest="0" * 32, facts_json="{}"),
        )
    database.close()


@pytest.mark.parametrize("create", [True, False])
def test_catalog_of_version_1_is_brought_up_to_date(old_store: FeatureStore, create: bool) -> None:
    with pytest.raises(StoreError, match=r"no such table"):
        old_store.catalog.module_pins()
    old_store.close()
    for _ in range(2):
        with open_store(old_store.path, create=create) as opened:
            known = ViewRecord(VIEW.fingerprint, VIEW, "m", "", 0, 0.0)
            assert opened.catalog.views() == [known]
            assert opened.catalog.module_facts("0" * 32) == "{}"
            assert opened.catalog.module_pins() == []
    with open_store(old_store.path, create=create) as opened:
        opened.catalog.add_check(VIEW.fingerprint, texts=2, max_difference=0.25)
        (checked,) = opened.catalog.views()
        assert (checked.checked_texts, checked.max_difference) == (2, 0.25)
    with open_store(old_store.path, create=create) as opened:
        opened.catalog.pin_module("m", "a" * 32)
        opened.catalog.add_view(VIEW, "n", preprocess="p")
        opened.catalog.add_check(VIEW.fingerprint, texts=3, max_difference=0.5)
        known = ViewRecord(VIEW.fingerprint, VIEW, "n", "p", 5, 0.5)
        assert opened.catalog.views() == [known]
        assert opened.catalog.module_pin("m") == "a" * 32


def test_catalog_of_version_1_that_cannot_be_written_is_one_line() -> None:
    # Not pytest's folder: those above it are private, and another user must get through.
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder, "store"))
        store.layout.create()
        write_old_catalog(store.layout.catalog)
        before = store.layout.catalog.read_bytes()
        entries = [Path(folder), store.path, *store.path.rglob("*")]
        with open_store(Path(folder, "other")):
            pass
        for entry in entries:
            if os.getuid() == 0:
                os.chown(entry, NOBODY, NOBODY)
            entry.chmod(0o555 if entry.is_dir() else 0o444)
        try:
            found = subprocess.run(
                [sys.executable, "-c", OPEN_AS_NOBODY, store.path, Path(folder, "other")],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(Path(embedcache.__file__).parents[1])},
            )
        finally:
            for entry in entries:
                entry.chmod(0o700 if entry.is_dir() else 0o600)
        assert store.layout.catalog.read_bytes() == before
    lines = found.stdout.splitlines()
    assert len(lines) == 2, "one for create=True, one for create=False"
    for line in lines:
        assert line.startswith(f"StoreReadOnlyError {store.layout.catalog}: cannot be written")


NOBODY = 65534
OPEN_AS_NOBODY = f"""
import os, sys
from embedcache.errors import StoreError
from embedcache.store.store import open_store
# For what Python imports late: that user need not be able to read it.
open_store(sys.argv[2]).catalog.views()
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
for create in (True, False):
    try:
        open_store(sys.argv[1], create=create)
    except StoreError as error:
        print(type(error).__name__, error)
"""


def test_migration_that_fails_leaves_the_old_catalog(
    catalog: Catalog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_halfway(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        connection.execute(text("no SQL at all"))

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, fail_halfway))
    with pytest.raises(StoreError):
        catalog.create()
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT name FROM sqlite_master WHERE name = 'notes'").fetchall() == []
    before = len(schema.MIGRATIONS) - 1
    assert raw.execute("SELECT count(*) FROM migrations").fetchall() == [(before,)]
    raw.close()


def test_newer_catalog_asks_for_an_upgrade(store: FeatureStore) -> None:
    raw = sqlite3.connect(store.layout.catalog)
    with raw:
        raw.execute("INSERT INTO migrations VALUES (?)", (len(schema.MIGRATIONS) + 1,))
    raw.close()
    newest = len(schema.MIGRATIONS)
    reason = rf"catalog version {newest + 1}, .* up to {newest}; upgrade"
    for create in (True, False):
        with pytest.raises(StoreVersionError, match=reason):
            open_store(store.path, create=create)


def test_catalogs_made_at_once_are_one(path: Path) -> None:
    catalogs = [Catalog(path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Catalog.create, catalogs))
    for catalog in catalogs:
        catalog.check()
        catalog.close()


def test_lost_catalog_is_an_error_where_none_may_be_made(store: FeatureStore) -> None:
    store.close()
    store.layout.catalog.unlink()
    with pytest.raises(StoreError, match="catalog is missing or empty; `embedcache repair`"):
        open_store(store.path, create=False)
    open_store(store.path).close()


# Writing


def test_what_is_written_is_there_for_others_and_after_reopening(
    catalog: Catalog, path: Path
) -> None:
    catalog.add_view(VIEW, "builtin:x")
    catalog.add_shard(ShardRecord("d" * 32, VIEW.fingerprint, 3, 7, 4096))
    catalog.add_dataset(_dataset("sst2", "a" * 32), view=VIEW.fingerprint, report={"texts": 3})
    catalog.add_run(_run("run-1"))
    catalog.add_module_facts("m" * 32, '{"dim": 4}')
    catalog.add_module_digest("/module", "stamp", "m" * 32)
    other = Catalog(path)
    assert [record.view for record in other.views()] == [VIEW]
    assert other.shards(VIEW.fingerprint) == [ShardRecord("d" * 32, VIEW.fingerprint, 3, 7, 4096)]
    assert other.shards("f" * 32) == []
    assert other.find_dataset("sst2").sources == [{"path": "a.txt"}]
    assert other.newest_view_of("a" * 32) == VIEW.fingerprint
    assert other.newest_view_of("b" * 32) is None
    assert other.find_run("run-1").record == {"accuracy": 0.5}
    assert other.module_facts("m" * 32) == '{"dim": 4}'
    assert other.module_facts("n" * 32) is None
    assert other.module_digest("/module", "stamp") == "m" * 32
    assert other.module_digest("/module", "another stamp") is None
    assert other.count() == {"datasets": 1, "runs": 1}
    other.close()


def test_every_commit_is_forced_with_the_folder(catalog: Catalog) -> None:
    """EXTRA (3): with FULL, a power loss may bring back the journal that a commit deleted."""
    with catalog._database.read() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 3


def test_adding_twice_renews_and_does_not_double(catalog: Catalog) -> None:
    for handle in ("builtin:x", "/other/place"):
        catalog.add_view(VIEW, handle)
        catalog.add_shard(ShardRecord("d" * 32, VIEW.fingerprint, 3, 7, 4096))
        catalog.add_dataset(_dataset("sst2", "a" * 32), view=VIEW.fingerprint, report={})
        catalog.add_module_facts("m" * 32, handle)
        catalog.add_module_digest("/module", handle, "m" * 32)
    assert [record.handle for record in catalog.views()] == ["/other/place"]
    assert (len(catalog.shards()), len(catalog.datasets())) == (1, 1)
    assert catalog.module_facts("m" * 32) == "/other/place"
    assert catalog.module_digest("/module", "/other/place") == "m" * 32


def test_removed_shard_is_forgotten(catalog: Catalog) -> None:
    catalog.add_shard(ShardRecord("d" * 32, VIEW.fingerprint, 3, 7, 4096))
    catalog.remove_shard("d" * 32)
    catalog.remove_shard("d" * 32)
    assert catalog.shards() == []


def test_dataset_is_registered_with_its_build_or_not_at_all(catalog: Catalog) -> None:
    with pytest.raises(StoreError):
        catalog.add_dataset(_dataset("sst2", "a" * 32), view=None, report={})  # type: ignore[arg-type]
    assert catalog.datasets() == []


def test_check_of_a_view_keeps_the_worst_and_sums_the_texts(catalog: Catalog, path: Path) -> None:
    other = replace(VIEW, dim=5)
    for view in (VIEW, other):
        catalog.add_view(view, "m", preprocess="p")
    for texts, difference in ((8, 0.001), (1, 0.004), (2, 0.002)):
        catalog.add_check(VIEW.fingerprint, texts=texts, max_difference=difference)
    fresh = Catalog(path)
    found = fresh.find_view(VIEW.fingerprint)
    assert (found.checked_texts, found.max_difference) == (11, 0.004)
    untouched = fresh.find_view(other.fingerprint)
    assert (untouched.checked_texts, untouched.max_difference) == (0, 0.0)
    fresh.close()
    # A build renews the handles of a view; what was checked stays.
    catalog.add_view(VIEW, "n")
    found = catalog.find_view(VIEW.fingerprint)
    assert found == ViewRecord(VIEW.fingerprint, VIEW, "n", "", 11, 0.004)


def test_reconstruction_of_a_view_sums_up_and_keeps_the_worst(catalog: Catalog) -> None:
    catalog.add_view(VIEW, "m")
    (untouched,) = catalog.views()
    assert (untouched.rms_error, untouched.max_error) == (None, None)
    for error, norm, worst in ((1.0, 10.0, 0.25), (3.0, 30.0, 0.5), (5.0, 60.0, 0.125)):
        catalog.add_reconstruction(
            VIEW.fingerprint, rows=7, squared_error=error, squared_norm=norm, max_error=worst
        )
    (found,) = catalog.views()
    assert found.rms_error == pytest.approx((9 / 100) ** 0.5)
    assert found.max_error == 0.5
    catalog.add_view(VIEW, "n")
    assert catalog.find_view(VIEW.fingerprint).max_error == 0.5


def test_reconstruction_of_zeros_is_exact(catalog: Catalog) -> None:
    catalog.add_view(VIEW, "m")
    catalog.add_reconstruction(
        VIEW.fingerprint, rows=7, squared_error=0.0, squared_norm=0.0, max_error=0.0
    )
    (found,) = catalog.views()
    assert (found.rms_error, found.max_error) == (0.0, 0.0)


def test_pin_holds_until_another_is_made_or_it_is_taken_away(catalog: Catalog, path: Path) -> None:
    assert catalog.module_pin("m") is None
    catalog.pin_module("m", "a" * 32)
    catalog.pin_module("n", "b" * 32)
    other = Catalog(path)
    assert other.module_pin("m") == "a" * 32
    other.close()
    catalog.pin_module("m", "c" * 32)
    assert {pin.handle: pin.digest for pin in catalog.module_pins()} == {
        "m": "c" * 32,
        "n": "b" * 32,
    }
    assert [pin.handle for pin in catalog.module_pins()] == ["n", "m"], "oldest first"
    assert catalog.unpin_module("m")
    assert not catalog.unpin_module("m")
    assert catalog.module_pin("m") is None
    assert [pin.handle for pin in catalog.module_pins()] == ["n"]


# Names


def test_view_is_found_by_the_beginning_of_its_fingerprint(catalog: Catalog) -> None:
    others = [replace(VIEW, dim=dim) for dim in range(5, 40)]
    for view in (VIEW, *others):
        catalog.add_view(view, "builtin:x")
    assert catalog.find_view(VIEW.fingerprint).view == VIEW
    assert catalog.find_view(VIEW.fingerprint[:8]).view == VIEW
    first = {view.fingerprint[0] for view in others if view.fingerprint[0] != "0"}
    shared = next(
        digit for digit in first if sum(v.fingerprint[0] == digit for v in (VIEW, *others)) > 1
    )
    with pytest.raises(UnknownNameError, match=f"several views begin with '{shared}'"):
        catalog.find_view(shared)
    with pytest.raises(UnknownNameError, match=r"no view 'zz'; there are: .*, …"):
        catalog.find_view("zz")
    with pytest.raises(UnknownNameError):
        catalog.find_view("")


def test_newest_version_of_a_dataset_is_found_or_the_one_that_is_named(catalog: Catalog) -> None:
    versions = ("aa" + "0" * 30, "ab" + "0" * 30)
    for version in versions:
        catalog.add_dataset(_dataset("sst2", version), view=VIEW.fingerprint, report={})
    catalog.add_dataset(_dataset("trec", "c" * 32), view=VIEW.fingerprint, report={})
    catalog.add_dataset(_dataset("me@home", "d" * 32), view=VIEW.fingerprint, report={})
    assert catalog.find_dataset("sst2").version == versions[1]
    assert catalog.find_dataset("sst2@").version == versions[1]
    assert catalog.find_dataset(f"sst2@{versions[0]}").version == versions[0]
    assert catalog.find_dataset("sst2@aa").version == versions[0]
    assert catalog.find_dataset("me@home").version == "d" * 32
    assert catalog.find_dataset("me@home@dd").version == "d" * 32
    assert catalog.find_dataset().name == "me@home"
    with pytest.raises(UnknownNameError, match=r"several datasets begin with 'sst2@a'.*sst2@ab0"):
        catalog.find_dataset("sst2@a")
    with pytest.raises(UnknownNameError, match="no dataset 'sst2@f'; there are: sst2@aa0"):
        catalog.find_dataset("sst2@f")
    with pytest.raises(UnknownNameError, match="no dataset 'sst'; there are: me@home, sst2, trec"):
        catalog.find_dataset("sst")


def test_building_an_old_version_again_makes_it_the_newest(catalog: Catalog) -> None:
    for version in ("a" * 32, "b" * 32, "a" * 32):
        catalog.add_dataset(_dataset("sst2", version), view=VIEW.fingerprint, report={})
    assert catalog.find_dataset("sst2").version == "a" * 32


def test_run_is_found_by_its_beginning_or_as_the_last(catalog: Catalog) -> None:
    for name in ("run-1", "run-10", "other"):
        catalog.add_run(_run(name))
    assert catalog.find_run("run-1").run == "run-1"
    assert catalog.find_run("o").run == "other"
    assert catalog.find_run("last").run == "other"
    with pytest.raises(UnknownNameError, match="several runs begin with 'run'"):
        catalog.find_run("run")
    with pytest.raises(UnknownNameError, match="no run 'x'; there are: run-1, run-10, other"):
        catalog.find_run("x")


@pytest.mark.parametrize(
    ("what", "maker"), [("view", "build"), ("dataset", "build"), ("run", "train")]
)
def test_empty_store_says_what_makes_one(catalog: Catalog, what: str, maker: str) -> None:
    find = getattr(catalog, f"find_{what}")
    for name in ("x", "last"):
        with pytest.raises(UnknownNameError, match=f"no {what} '{name}'.*`embedcache {maker}`"):
            find(name)


# Trouble


def test_locked_catalog_is_told_with_the_time_that_was_waited(catalog: Catalog, path: Path) -> None:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    uses: list[Callable[[], Any]] = [lambda: catalog.add_view(VIEW, "x"), catalog.views]
    for use in uses:
        started = time.monotonic()
        with pytest.raises(StoreLockedError, match=r"held the catalog for 0\.2 s") as caught:
            use()
        assert 0.15 < time.monotonic() - started < LOCK_TIMEOUT_S / 2
        assert "\n" not in str(caught.value)
    # The connection itself cannot be made now: SQLite's own error, past SQLAlchemy.
    fresh = Catalog(path, lock_timeout_s=0.0)
    with pytest.raises(StoreLockedError):
        fresh.views()
    fresh.close()
    holder.execute("ROLLBACK")
    holder.close()
    catalog.add_view(VIEW, "x")


def test_writer_waits_for_another_one(catalog: Catalog, path: Path) -> None:
    patient = Catalog(path, lock_timeout_s=30)
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(patient.add_view, VIEW, "x")
        assert catalog.views() == [], "readers do not wait for a writer"
        holder.execute("COMMIT")
        waiting.result()
    holder.close()
    patient.close()
    assert len(catalog.views()) == 1


@pytest.mark.parametrize("content", [b"no database" * 500, b"SQLite format 3\0" + bytes(5000)])
def test_damaged_catalog_is_one_line(store: FeatureStore, content: bytes) -> None:
    store.close()
    store.layout.catalog.write_bytes(content)
    for create in (True, False):
        with pytest.raises(StoreError, match=r"catalog\.sqlite: the catalog") as caught:
            open_store(store.path, create=create)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [100, 4096, 9000])
def test_truncated_catalog_is_one_line(store: FeatureStore, size: int) -> None:
    store.catalog.add_view(VIEW, "builtin:x")
    store.close()
    content = store.layout.catalog.read_bytes()
    store.layout.catalog.write_bytes(content[:size])
    with pytest.raises(StoreError) as caught:
        open_store(store.path).catalog.views()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["views", "datasets", "runs"])
def test_row_that_is_no_json_is_one_line(catalog: Catalog, path: Path, table: str) -> None:
    catalog.add_view(VIEW, "builtin:x")
    catalog.add_dataset(_dataset("sst2", "a" * 32), view=VIEW.fingerprint, report={})
    catalog.add_run(_run("run-1"))
    column = {"views": "view_json", "datasets": "sources_json", "runs": "record_json"}[table]
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(f"UPDATE {table} SET {column} = '{{'")
    raw.close()
    with pytest.raises(StoreError, match="the catalog cannot be used") as caught:
        getattr(catalog, table)()
    assert "\n" not in str(caught.value)


def test_view_of_a_newer_embedcache_asks_for_an_upgrade(catalog: Catalog, path: Path) -> None:
    catalog.add_view(VIEW, "builtin:x")
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(
            "UPDATE views SET view_json = replace(view_json, '\"schema\":1', '\"schema\":9')"
        )
    raw.close()
    with pytest.raises(StoreVersionError, match=r"catalog\.sqlite: view schema 9"):
        catalog.views()


def test_catalog_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Catalog(tmp_path / "nothing" / "catalog.sqlite").create()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreReadOnlyError, match="Permission denied"):
        Catalog(tmp_path / "catalog.sqlite").create()


def test_threads_use_one_catalog(catalog: Catalog, programs: ModuleType) -> None:
    patient = Catalog(catalog._path)

    def add(number: int) -> int:
        patient.add_shard(ShardRecord(f"{number:032x}", VIEW.fingerprint, 1, 1, 1))
        return len(patient.shards())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(add, range(20))) == 20
    patient.close()
