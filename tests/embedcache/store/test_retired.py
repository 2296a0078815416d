"""Retiring: out of the catalog first, files later, and back again."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from embedcache.errors import StoreLockedError
from embedcache.store.database.catalog_shards import DATASET, SHARD
from embedcache.store.database.records import ShardRecord
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.adopt import adopt_shards
from embedcache.store.upkeep.garbage import ORPHAN_AGE_S, delete_garbage, find_garbage
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.upkeep.retired import plan_sweep, sweep


def _shard(store: FeatureStore) -> tuple[ShardRecord, Path]:
    (record,) = store.catalog.shards()
    return record, store.layout.shard_path(record.view, record.digest)


@pytest.fixture
def retired(store: FeatureStore, upkeep: ModuleType) -> tuple[ShardRecord, Path]:
    """A shard of two texts, retired."""
    upkeep.put(store, ["a", "b"])
    record, path = _shard(store)
    (gone,) = store.catalog.retire_shards([record.digest])
    assert (gone.kind, gone.digest, gone.view) == (SHARD, record.digest, record.view)
    assert gone.num_bytes == record.num_bytes == path.stat().st_size
    return record, path


def test_retired_shard_is_not_served_and_its_file_stays(
    store: FeatureStore, upkeep: ModuleType, retired: tuple[ShardRecord, Path]
) -> None:
    assert store.catalog.shards() == []
    assert upkeep.present(store, ["a", "b"]) == [False, False]
    assert retired[1].exists()
    assert store.catalog.retire_shards([retired[0].digest, "0" * 32]) == []


def test_file_of_a_retired_shard_goes_once_its_grace_has_passed(
    store: FeatureStore, upkeep: ModuleType, retired: tuple[ShardRecord, Path]
) -> None:
    record, path = retired
    plan = plan_sweep(store.catalog.retired(), grace_s=3600)
    done = sweep(store.layout, store.catalog, grace_s=3600)
    assert (done.files, done.waiting_files, done.waiting_bytes) == (0, 1, record.num_bytes)
    assert plan == done
    assert path.exists()
    upkeep.age(store)
    done = sweep(store.layout, store.catalog, grace_s=3600)
    assert (done.files, done.bytes, done.waiting_files) == (1, record.num_bytes, 0)
    assert not path.exists()
    assert store.catalog.retired() == []
    assert sweep(store.layout, store.catalog, grace_s=0).files == 0


def test_grace_of_zero_is_at_once(store: FeatureStore, retired: tuple[ShardRecord, Path]) -> None:
    assert sweep(store.layout, store.catalog, grace_s=0, kinds=(DATASET,)).files == 0
    assert sweep(store.layout, store.catalog, grace_s=0).files == 1
    assert not retired[1].exists()


def test_sweep_that_was_killed_before_it_told_the_catalog_is_finished(
    store: FeatureStore, retired: tuple[ShardRecord, Path]
) -> None:
    retired[1].unlink()
    assert sweep(store.layout, store.catalog, grace_s=0).files == 1
    assert store.catalog.retired() == []


def test_retired_shard_that_is_written_again_is_retired_no_more(
    store: FeatureStore, upkeep: ModuleType, retired: tuple[ShardRecord, Path]
) -> None:
    upkeep.put(store, ["a", "b"])
    assert _shard(store)[1] == retired[1], "the same content has the same name"
    assert store.catalog.retired() == []
    upkeep.age(store)
    sweep(store.layout, store.catalog, grace_s=0)
    upkeep.assert_served(store, ["a", "b"])


def test_shard_whose_file_a_sweep_has_taken_is_not_acknowledged(
    store: FeatureStore, retired: tuple[ShardRecord, Path]
) -> None:
    """A writer that publishes the same shard meets a sweep between its file and its row."""
    record, path = retired
    content = path.read_bytes()
    sweep(store.layout, store.catalog, grace_s=0)
    assert store.catalog.add_shard(record, path), "to be written again"
    assert store.catalog.shards() == []
    path.write_bytes(content)
    assert not store.catalog.add_shard(record, path)
    assert store.catalog.shards() == [record]


def test_shard_that_came_back_is_not_swept(
    store: FeatureStore, upkeep: ModuleType, retired: tuple[ShardRecord, Path]
) -> None:
    """Also when that happens after the sweep has asked what is retired."""
    (row,) = store.catalog.retired()
    store.catalog.add_shard(retired[0], retired[1])
    assert not store.catalog.delete_retired(row, before=2**40, remove=retired[1].unlink)
    upkeep.assert_served(store, ["a", "b"])


def test_retired_files_are_no_orphans_and_are_not_adopted(
    store: FeatureStore, upkeep: ModuleType, retired: tuple[ShardRecord, Path]
) -> None:
    upkeep.put(store, ["c"])
    for fix in (False, True):
        report = verify_store(store, fix=fix)
        assert (report.orphans, report.retired, report.rows, report.is_well) == ([], 1, 1, True)
    assert adopt_shards(store.layout, store.catalog) == []
    upkeep.age(store, 2 * ORPHAN_AGE_S)
    assert find_garbage(store.layout, store.catalog) == []
    assert len(store.catalog.shards()) == 1


def test_lost_catalog_may_take_up_a_retired_shard_again(
    store: FeatureStore, upkeep: ModuleType, retired: tuple[ShardRecord, Path]
) -> None:
    store.close()
    store.layout.catalog.unlink()
    with open_store(store.path) as again:
        upkeep.assert_served(again, ["a", "b"])


def test_texts_that_lie_twice_are_counted_and_nothing_is_wrong(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, ["a", "b", "c"])
    upkeep.put(store, ["b", "c", "d"])
    upkeep.put(store, ["b"], view=upkeep.OTHER)
    report = verify_store(store)
    assert (report.duplicates, report.is_well) == (2, True)


# Garbage


def test_orphan_and_temporary_file_are_garbage_after_a_day(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, ["a"])
    record, path = _shard(store)
    store.catalog.remove_shard(record.digest)
    (store.layout.tmp / "half").write_bytes(b"12345")
    folder = store.layout.tmp / "dataset"
    folder.mkdir()
    (folder / "keys.npy").write_bytes(b"1234567")
    assert find_garbage(store.layout, store.catalog) == []
    upkeep.age(store, 2 * ORPHAN_AGE_S)
    found = find_garbage(store.layout, store.catalog)
    assert [(garbage.kind, garbage.path, garbage.num_bytes) for garbage in found] == [
        ("orphan", path, record.num_bytes),
        ("tmp", folder, 7),
        ("tmp", store.layout.tmp / "half", 5),
    ]
    assert all(delete_garbage(store.layout, store.catalog, garbage) for garbage in found)
    assert not path.exists()
    assert list(store.layout.tmp.iterdir()) == []


def test_folder_is_as_old_as_the_youngest_file_in_it(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    """A build of several days goes on writing to files that it made at its start."""
    folder = store.layout.tmp / "dataset"
    folder.mkdir()
    for name in ("keys.npy", "ids.npy"):
        (folder / name).write_bytes(b"1")
    upkeep.age(store, 2 * ORPHAN_AGE_S)
    os.utime(folder / "keys.npy")
    assert find_garbage(store.layout, store.catalog) == []


def test_orphan_that_is_catalogued_meanwhile_is_not_deleted(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, ["a"])
    record, path = _shard(store)
    store.catalog.remove_shard(record.digest)
    upkeep.age(store, 2 * ORPHAN_AGE_S)
    (garbage,) = find_garbage(store.layout, store.catalog)
    store.catalog.add_shard(record)
    assert not delete_garbage(store.layout, store.catalog, garbage)
    store.catalog.remove_shard(record.digest)
    os.utime(path)
    assert not delete_garbage(store.layout, store.catalog, garbage), "written again just now"
    upkeep.put(store, ["a"])
    upkeep.assert_served(store, ["a"])


# One at a time


def test_second_maintenance_is_refused_and_readers_are_not(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, ["a"])
    with maintenance_lock(store.layout):
        with (
            pytest.raises(StoreLockedError, match="let it finish") as caught,
            maintenance_lock(store.layout),
        ):
            pass
        assert "\n" not in str(caught.value)
        upkeep.put(store, ["b"])
        upkeep.assert_served(store, ["a", "b"])
    with maintenance_lock(store.layout):
        pass


def test_catalog_of_the_second_version_gets_the_tables(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, ["a"])
    store.close()
    raw = sqlite3.connect(store.layout.catalog)
    with raw:
        for table in ("retired", "uses", "view_errors"):
            raw.execute(f"DROP TABLE {table}")
        raw.execute("DELETE FROM migrations WHERE number = 3")
    raw.close()
    with open_store(store.path, create=False) as again:
        upkeep.assert_served(again, ["a"])
        assert (again.catalog.retired(), again.catalog.uses()) == ([], [])
