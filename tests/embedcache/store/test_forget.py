"""Forgetting texts, and deleting datasets and views."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from embedcache.errors import StoreLockedError, UnknownNameError
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import RunRecord
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.deleting import delete_datasets, delete_view, find_versions
from embedcache.store.upkeep.forget import forget_texts, plan_forget
from embedcache.store.upkeep.garbage import size_of
from embedcache.store.upkeep.gc import GcOptions, plan_gc
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.maintain import verify_store

KEPT = [f"kept {number}" for number in range(20)]
GONE = [f"gone {number}" for number in range(4)]


def _full_store(store: FeatureStore, upkeep: ModuleType) -> None:
    """Texts in dense, dictionary and doubled shards, of two views and in two datasets."""
    upkeep.put(store, KEPT[:8] + GONE[:2])
    upkeep.put(store, KEPT[8:16] + GONE[2:], encoding="dictionary")
    upkeep.put(store, [*KEPT[:2], GONE[0]])
    upkeep.put(store, [GONE[1]])
    upkeep.put(store, KEPT[16:])
    upkeep.put(store, KEPT[:4] + GONE, view=upkeep.OTHER)
    upkeep.register(store, "both", KEPT + GONE)
    upkeep.register(store, "clean", KEPT)
    store.reader(upkeep.VIEW).save_index()
    store.reader(upkeep.OTHER).save_index()


def test_nothing_of_forgotten_texts_is_in_any_file(store: FeatureStore, upkeep: ModuleType) -> None:
    _full_store(store, upkeep)
    for folder in (store.layout.tmp, store.layout.quarantine):
        folder.mkdir(exist_ok=True)
        for shard in store.layout.shards.glob("*/*"):
            (folder / shard.name).write_bytes(shard.read_bytes())
    store.catalog.retire_shards([store.catalog.shards()[3].digest])
    before = upkeep.traces_of(store.path, GONE)
    for what in ("key of", "high half of", "low half of", "row 0 of", "ids of", "spans of"):
        assert any(trace.startswith(what) for trace in before), "the search can find it"
    report = forget_texts(store, keys_of_texts([*GONE, *GONE, "never seen"]))
    assert upkeep.traces_of(store.path, GONE) == []
    assert (report.num_keys, report.texts, report.shards) == (5, 9, 4)
    upkeep.assert_served(store, KEPT)
    upkeep.assert_served(store, KEPT[:4], view=upkeep.OTHER)
    assert not any(upkeep.present(store, GONE) + upkeep.present(store, GONE, upkeep.OTHER))
    with open_store(store.path) as again:
        upkeep.assert_served(again, KEPT)
    found = verify_store(store)
    assert (found.is_well, found.orphans, found.retired) == (True, [], 0)


def _keep_run(store: FeatureStore, name: str, version: str, texts: list[str]) -> Path:
    """A run as `cnn` keeps it, as far as the store knows: a row, and predictions."""
    folder = store.layout.runs / name
    folder.mkdir(parents=True)
    numbers = np.arange(len(texts))
    np.savez(folder / "predictions.npz", keys=keys_of_texts(texts), rows=numbers)
    store.catalog.add_run(RunRecord(name, "both", version, "view", {"run": name}, 1.0))
    return folder / "predictions.npz"


def test_predictions_of_forgotten_texts_go_and_the_runs_that_learned_them_are_named(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    both, clean = (store.load_dataset(name).version for name in ("both", "clean"))
    trained = _keep_run(store, "trained", both, [KEPT[0], GONE[0], KEPT[1], GONE[2]])
    untouched = _keep_run(store, "untouched", clean, KEPT[:3])
    before = untouched.stat().st_mtime_ns
    assert any("predictions.npz" in trace for trace in upkeep.traces_of(store.path, GONE))
    assert plan_forget(store, keys_of_texts(GONE)).runs == ("trained",)
    report = forget_texts(store, keys_of_texts(GONE))
    assert (report.predictions, report.runs) == (1, ["trained"])
    assert upkeep.traces_of(store.path, GONE) == []
    with np.load(trained) as arrays:
        np.testing.assert_array_equal(arrays["keys"], keys_of_texts(KEPT[:2]))
        assert arrays["rows"].tolist() == [0, 2]
    assert untouched.stat().st_mtime_ns == before


def test_predictions_that_cannot_be_read_are_deleted(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    damaged = _keep_run(store, "damaged", store.load_dataset("both").version, GONE)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert damaged in forget_texts(store, keys_of_texts(GONE)).deleted
    assert upkeep.traces_of(store.path, GONE) == []


def test_planning_tells_what_is_touched_and_changes_nothing(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    plan = plan_forget(store, keys_of_texts(GONE))
    touched = {view.record.view: (view.num_texts, len(view.rewrites)) for view in plan.views}
    assert touched == {upkeep.VIEW: (6, 4), upkeep.OTHER: (4, 1)}
    assert [(record.name, count) for record, count in plan.datasets] == [("both", 4)]
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_shards_without_the_texts_are_left_as_they_are(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    kept = store.catalog.shards()[4]
    forget_texts(store, keys_of_texts(GONE))
    assert kept in store.catalog.shards()


def test_forgetting_what_is_not_there_leaves_everything(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    before = store.catalog.shards(), store.catalog.datasets()
    report = forget_texts(store, keys_of_texts(["never seen"]))
    assert (report.texts, report.shards, report.datasets) == (0, 0, [])
    assert (store.catalog.shards(), store.catalog.datasets()) == before
    upkeep.assert_served(store, KEPT + GONE)


def test_dataset_becomes_the_version_that_a_build_without_the_texts_makes(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    texts = [KEPT[0], GONE[0], KEPT[1], GONE[0], KEPT[2], KEPT[0]]
    columns = {
        "labels": [("b",), ("only here",), ("a", "b"), ("b",), (), ("a",)],
        "splits": ["train", "dev", "train", "train", "test", "train"],
        "ids": ["1", "secret", "3", "4", 'with "quotes"\n', "6"],
    }
    upkeep.put(store, sorted(set(texts)))
    old = upkeep.register(store, "mine", texts, **columns)
    upkeep.register(store, "mine too", texts, **columns)
    (report,) = {
        (item.old, item.new, item.num_documents)
        for item in forget_texts(store, keys_of_texts(GONE)).datasets
    }
    kept = [0, 2, 4, 5]
    fresh = {name: [column[row] for row in kept] for name, column in columns.items()}
    expected = upkeep.register(store, "fresh", [texts[row] for row in kept], **fresh)
    assert report == (old, expected, 2)
    assert [(record.name, record.version) for record in store.catalog.datasets()] == [
        (name, expected) for name in ("mine", "mine too", "fresh")
    ]
    assert not store.layout.dataset_path(old).exists()
    loaded: Dataset = store.load_dataset("mine")
    assert len(loaded) == 4
    assert loaded.label_names == ("a", "b")
    assert b"secret" not in (store.layout.dataset_path(expected) / "ids.npy").read_bytes()
    record = store.catalog.find_dataset("mine")
    assert (record.num_documents, record.num_unique, record.sources) == (4, 3, [{"path": "a"}])
    assert store.catalog.newest_view_of(expected) == upkeep.VIEW.fingerprint
    assert {use.version for use in store.catalog.uses()} == {expected}


def test_dataset_of_nothing_else_is_registered_no_more(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, GONE)
    version = upkeep.register(store, "mine", GONE)
    store.reader(upkeep.VIEW).save_index()
    (replaced,) = forget_texts(store, keys_of_texts(GONE)).datasets
    assert (replaced.new, replaced.num_documents) == (None, 4)
    assert (store.catalog.datasets(), store.catalog.builds(), store.catalog.uses()) == ([], [], [])
    assert not store.layout.dataset_path(version).exists()
    assert store.catalog.shards() == []
    assert upkeep.traces_of(store.path, GONE) == []


def test_unlabelled_dataset_of_many_batches_is_replaced(
    store: FeatureStore, upkeep: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.store.upkeep.dataset_without._BATCH_DOCUMENTS", 3)
    texts = KEPT[:7] + GONE + KEPT[7:]
    upkeep.register(store, "mine", texts, ids=[f"id {text}" for text in texts])
    forget_texts(store, keys_of_texts(GONE))
    expected = upkeep.register(store, "fresh", KEPT, ids=[f"id {text}" for text in KEPT])
    assert store.catalog.find_dataset("mine").version == expected
    np.testing.assert_array_equal(store.load_dataset("mine").keys, keys_of_texts(KEPT))


def test_orphans_that_have_the_texts_are_deleted_and_others_stay(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, GONE)
    upkeep.put(store, KEPT)
    unregistered = [store.layout.dataset_path(upkeep.register(store, "gone", GONE))]
    unregistered.append(store.layout.dataset_path(upkeep.register(store, "kept", KEPT)))
    orphans = []
    for record in store.catalog.shards():
        store.catalog.remove_shard(record.digest)
        orphans.append(store.layout.shard_path(record.view, record.digest))
    damaged = store.layout.shards / upkeep.VIEW.fingerprint / "damaged.h5"
    damaged.write_bytes(orphans[0].read_bytes()[:-1])
    copies = {path: path.read_bytes() for folder in unregistered for path in folder.iterdir()}
    for record in store.catalog.datasets():
        store.catalog.remove_dataset(record.name, record.version, num_bytes=0)
    with store.catalog._database.write() as connection:
        connection.exec_driver_sql("DELETE FROM retired")
    assert all(path.read_bytes() == content for path, content in copies.items())
    report = forget_texts(store, keys_of_texts(GONE[:1]))
    assert set(report.deleted) == {orphans[0], damaged, unregistered[0]}
    assert orphans[1].exists()
    assert unregistered[1].exists()
    assert upkeep.traces_of(store.path, GONE[:1]) == []


def test_forgetting_beside_another_maintenance_is_refused(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    with maintenance_lock(store.layout), pytest.raises(StoreLockedError):
        forget_texts(store, keys_of_texts(GONE))
    upkeep.assert_served(store, GONE)


# Deleting datasets


def test_deleted_dataset_is_unknown_and_its_features_stay(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, KEPT)
    version = upkeep.register(store, "mine", KEPT)
    upkeep.register(store, "other", KEPT[:3])
    size = size_of(store.layout.dataset_path(version))
    mapped = store.load_dataset("mine")
    deleted = delete_datasets(store, find_versions(store, "mine", every=False))
    assert (deleted.num_bytes, [record.version for record in deleted.records]) == (size, [version])
    assert not store.layout.dataset_path(version).exists()
    assert [record.name for record in store.catalog.datasets()] == ["other"]
    assert {build.dataset for build in store.catalog.builds()} == {"other"}
    assert store.catalog.retired() == []
    upkeep.assert_served(store, KEPT)
    assert len(mapped.keys) == len(KEPT), "what is mapped stays good"
    assert plan_gc(store, GcOptions(grace_s=0)).views[0].unused_texts == len(KEPT) - 3
    upkeep.register(store, "mine", KEPT)
    assert len(store.load_dataset("mine")) == len(KEPT)


def test_version_with_two_names_keeps_its_files_for_the_other(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, KEPT)
    upkeep.register(store, "one", KEPT)
    upkeep.register(store, "two", KEPT)
    assert delete_datasets(store, find_versions(store, "one", every=False)).num_bytes == 0
    assert len(store.load_dataset("two")) == len(KEPT)
    assert plan_gc(store, GcOptions(grace_s=0)).views[0].unused_texts == 0


def test_name_of_several_versions_has_to_say_which_or_all(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    versions = [upkeep.register(store, "mine", KEPT[:count]) for count in (3, 4)]
    with pytest.raises(UnknownNameError, match=r"has 2 versions: .*--all") as caught:
        find_versions(store, "mine", every=False)
    assert all(version[:12] in str(caught.value) for version in versions)
    with pytest.raises(UnknownNameError, match="no dataset 'nope'"):
        find_versions(store, "nope", every=True)
    (one,) = find_versions(store, f"mine@{versions[0][:6]}", every=False)
    assert one.version == versions[0]
    every = find_versions(store, "mine", every=True)
    assert {record.version for record in every} == set(versions)
    delete_datasets(store, every)
    assert store.catalog.datasets() == []


# Deleting views


def test_deleted_view_is_unknown_and_others_stay(store: FeatureStore, upkeep: ModuleType) -> None:
    _full_store(store, upkeep)
    store.catalog.add_reconstruction(
        upkeep.VIEW.fingerprint, rows=1, squared_error=1.0, squared_norm=4.0, max_error=0.5
    )
    record = store.catalog.find_view(upkeep.VIEW.fingerprint)
    swept = delete_view(store, record)
    assert (swept.files, swept.waiting_files) == (0, 5)
    assert [view.view for view in store.catalog.views()] == [upkeep.OTHER]
    assert store.catalog.builds() == []
    assert store.catalog.uses() == []
    assert list(store.layout.index.glob(f"{upkeep.VIEW.fingerprint}*")) == []
    assert len(store.catalog.datasets()) == 2
    upkeep.assert_served(store, GONE, view=upkeep.OTHER)
    with pytest.raises(UnknownNameError):
        store.reader(upkeep.VIEW.fingerprint)
    upkeep.put(store, KEPT)
    assert store.catalog.find_view(upkeep.VIEW.fingerprint).rms_error is None
    upkeep.assert_served(store, KEPT)


def test_files_of_a_deleted_view_go_at_once_where_that_is_asked_for(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _full_store(store, upkeep)
    swept = delete_view(store, store.catalog.find_view(upkeep.VIEW.fingerprint), grace_s=0)
    assert swept.files == 5
    assert _files(store.layout.shards / upkeep.VIEW.fingerprint) == []
    assert len(_files(store.layout.shards / upkeep.OTHER.fingerprint)) == 1


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*"))
