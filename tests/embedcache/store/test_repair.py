"""Making a lost or damaged catalog anew, and saying what a store takes."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from embedcache.errors import NotAStoreError, StoreLockedError, StoreVersionError
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.inventory import store_inventory
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.upkeep.repair import repair_store

A = [f"a {number}" for number in range(200)]
B = [f"b {number}" for number in range(10)]


@pytest.fixture
def full(store: FeatureStore, upkeep: ModuleType) -> FeatureStore:
    upkeep.put(store, A)
    upkeep.put(store, B)
    upkeep.put(store, A, view=upkeep.OTHER)
    upkeep.register(store, "a", A)
    upkeep.register(store, "b", B)
    _add_run(store, "run-1")
    store.close()
    return store


def _add_run(store: FeatureStore, name: str, **fields: str) -> Path:
    folder = store.layout.runs / name
    folder.mkdir()
    record = {"run": name, "dataset": "a", "version": "0" * 32, "view": "1" * 32, **fields}
    (folder / "run.json").write_text(json.dumps({"record": record}))
    (folder / "model.keras").write_bytes(b"model")
    return folder


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    path.write_bytes(content)


def _lose(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _scribble_over_a_table(path: Path) -> None:
    """The header stays good, so that SQLite opens it."""
    raw = sqlite3.connect(path)
    (page,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'shards'").fetchone()
    (size,) = raw.execute("PRAGMA page_size").fetchone()
    raw.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = b"\x55" * size
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "state"),
    [(_damage, "damaged"), (_scribble_over_a_table, "damaged"), (_lose, "lost"), (_empty, "lost")],
)
def test_catalog_is_made_anew_from_the_files(
    full: FeatureStore, upkeep: ModuleType, harm: object, state: str
) -> None:
    versions = {record.version for record in full.catalog.datasets()}
    full.close()
    harm(full.layout.catalog)  # type: ignore[operator]
    report = repair_store(full.path)
    assert report.catalog == state
    assert (report.views, report.shards, report.texts) == (2, 3, 410)
    assert set(report.datasets) == {f"recovered-{version[:12]}" for version in versions}
    assert (report.runs, report.left) == (["run-1"], [])
    aside = [full.path / path for path in report.put_aside]
    assert len(aside) == (state == "damaged")
    assert all(path.exists() for path in aside), "nothing is deleted"
    with open_store(full.path, create=False) as again:
        upkeep.assert_served(again, A + B)
        upkeep.assert_served(again, A, view=upkeep.OTHER)
        assert verify_store(again).is_well
        assert again.catalog.find_run("run-1").dataset == "a"
        for record in again.catalog.datasets():
            found = again.open_dataset(record)
            assert record.num_documents == record.num_unique == len(found)
            assert len(again.get(again.view_of_dataset(found).view, B)) == len(B)


def test_dataset_comes_back_with_all_views_that_have_its_texts(
    full: FeatureStore, upkeep: ModuleType
) -> None:
    full.layout.catalog.unlink()
    repair_store(full.path)
    with open_store(full.path) as again:
        built = {
            len(again.open_dataset(record)): {
                build.view for build in again.catalog.builds() if build.version == record.version
            }
            for record in again.catalog.datasets()
        }
        both = {upkeep.VIEW.fingerprint, upkeep.OTHER.fingerprint}
        assert built == {len(A): both, len(B): {upkeep.VIEW.fingerprint}}


def test_dataset_that_no_view_has_wholly_comes_back_with_the_one_that_has_most(
    full: FeatureStore, upkeep: ModuleType
) -> None:
    version = upkeep.register(full, "c", [*A[:3], "x"], view=upkeep.OTHER)
    upkeep.register(full, "d", ["nowhere"])
    upkeep.put(full, ["x 1"], view=upkeep.OTHER)
    full.close()
    full.layout.catalog.unlink()
    assert len(repair_store(full.path).datasets) == 4
    with open_store(full.path) as again:
        assert again.catalog.newest_view_of(version) in {
            upkeep.VIEW.fingerprint, upkeep.OTHER.fingerprint,
        }  # fmt: skip


def test_whole_catalog_is_left_and_what_it_lacks_is_added(
    full: FeatureStore, upkeep: ModuleType
) -> None:
    assert repair_store(full.path).runs == ["run-1"]
    report = repair_store(full.path)
    assert (report.catalog, report.shards, report.datasets, report.runs) == ("whole", 0, [], [])
    record = full.catalog.shards()[0]
    full.catalog.remove_shard(record.digest)
    full.close()
    report = repair_store(full.path)
    assert (report.catalog, report.shards, report.texts) == ("whole", 1, 200)
    assert [item.name for item in full.catalog.datasets()] == ["a", "b"]
    upkeep.assert_served(full, A + B)


def test_names_lost_with_a_catalog_that_a_build_made_anew_are_given(full: FeatureStore) -> None:
    full.layout.catalog.unlink()
    with open_store(full.path) as again:
        assert again.catalog.datasets() == []
    report = repair_store(full.path)
    assert (report.catalog, len(report.datasets), report.runs) == ("whole", 2, ["run-1"])


def test_what_is_not_whole_is_put_aside_or_left(full: FeatureStore) -> None:
    record = full.catalog.shards()[0]
    shard = full.layout.shard_path(record.view, record.digest)
    dataset = full.layout.dataset_path(full.catalog.find_dataset("b").version)
    full.close()
    full.layout.catalog.unlink()
    shard.write_bytes(shard.read_bytes()[:-1])
    (dataset / "keys.npy").write_bytes(b"")
    _add_run(full, "run-2", run="another")
    (_add_run(full, "run-3") / "model.keras").unlink()
    (_add_run(full, "run-4") / "run.json").write_text("[1]")
    (_add_run(full, "run-5") / "run.json").write_text("{")
    report = repair_store(full.path)
    assert report.put_aside == [str(shard.relative_to(full.path))]
    assert report.runs == ["run-1"]
    assert report.left == [
        str(dataset.relative_to(full.path)), "runs/run-2", "runs/run-3", "runs/run-4", "runs/run-5",
    ]  # fmt: skip
    assert dataset.exists()
    assert len(list(full.layout.quarantine.iterdir())) == 1


def test_newer_catalog_is_not_damage(full: FeatureStore) -> None:
    raw = sqlite3.connect(full.layout.catalog)
    with raw:
        raw.executemany(
            "INSERT INTO migrations VALUES (?)", [(number,) for number in range(50, 60)]
        )
    raw.close()
    with pytest.raises(StoreVersionError, match="upgrade"):
        repair_store(full.path)
    assert not full.layout.quarantine.exists()


def test_store_that_is_none_or_busy_is_refused(full: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError):
        repair_store(tmp_path / "nothing")
    with maintenance_lock(full.layout), pytest.raises(StoreLockedError):
        repair_store(full.path)


# What a store takes


def test_inventory_counts_every_file_once(full: FeatureStore, upkeep: ModuleType) -> None:
    full.reader(upkeep.VIEW).save_index()
    orphan = full.layout.shards / upkeep.VIEW.fingerprint / ("0" * 32 + ".h5")
    orphan.write_bytes(b"orphan")
    (full.layout.tmp / "half").write_bytes(b"half")
    full.layout.quarantine.mkdir()
    (full.layout.quarantine / "bad").write_bytes(b"bad")
    live, gone, other = full.catalog.shards()
    full.catalog.retire_shards([gone.digest])
    record = store_inventory(full)
    sizes = record["bytes"]
    assert sizes["live"] == live.num_bytes + other.num_bytes
    assert sizes["unreferenced"] == other.num_bytes, "no dataset was built under that view"
    assert (sizes["retired"], sizes["orphans"], sizes["tmp"], sizes["quarantine"]) == (
        gone.num_bytes, 6, 4, 3,
    )  # fmt: skip
    marker = full.layout.marker.stat().st_size
    files = sum(path.stat().st_size for path in full.path.rglob("*") if path.is_file())
    assert sum(sizes.values()) - sizes["unreferenced"] + marker == files
    assert (record["views"], record["shards"], record["texts"]) == (2, 2, 400)
    assert (record["datasets"], record["runs"]) == (2, 0)
    assert record["oldest"] <= record["newest"]
    assert record["free_bytes"] == pytest.approx(shutil.disk_usage(full.path).free, rel=0.5)


def test_inventory_of_an_empty_store(store: FeatureStore) -> None:
    record = store_inventory(store)
    assert (record["oldest"], record["newest"], record["bytes"]["live"]) == (None, None, 0)
