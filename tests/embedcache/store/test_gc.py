"""Collecting what no dataset uses, and what was used longest ago."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from embedcache.errors import CorruptShardError, StoreLockedError
from embedcache.keys import keys_of_texts
from embedcache.store.database.catalog_datasets import USE_PERIOD_S
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep import gc
from embedcache.store.upkeep.garbage import ORPHAN_AGE_S, QUARANTINE_AGE_S
from embedcache.store.upkeep.gc import GcOptions, GcPlan, collect_garbage, plan_gc
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.retired import sweep

NOW = GcOptions(grace_s=0)


def _texts(name: str, count: int = 20) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


def _gone(plan: GcPlan) -> tuple[int, int, int]:
    """Unused texts, shards that go and shards that are rewritten."""
    return (
        sum(view.unused_texts for view in plan.views),
        sum(len(view.retire) for view in plan.views),
        sum(len(view.rewrites) for view in plan.views),
    )


def test_unused_shard_goes_wholly_and_used_ones_stay_as_they_are(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, _texts("a"))
    upkeep.put(store, _texts("b"))
    upkeep.register(store, "a", _texts("a"))
    kept, gone = store.catalog.shards()
    plan, report = collect_garbage(store, NOW)
    assert _gone(plan) == (20, 1, 0)
    assert (report.retired, report.sweep.files, report.rewritten_bytes) == (1, 1, 0)
    assert (plan.bytes_before, plan.bytes_after) == (
        kept.num_bytes + gone.num_bytes,
        kept.num_bytes,
    )
    assert store.catalog.shards() == [kept]
    upkeep.assert_served(store, _texts("a"))
    assert not any(upkeep.present(store, _texts("b")))
    assert _gone(plan_gc(store, NOW)) == (0, 0, 0)


def test_partly_unused_shard_is_rewritten_without_the_rest(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, _texts("a", 10) + _texts("b", 10))
    upkeep.put(store, _texts("c", 10) + _texts("b", 10), encoding="dictionary")
    upkeep.register(store, "a", _texts("a", 10) + _texts("c", 10))
    before = sum(record.num_bytes for record in store.catalog.shards())
    plan, report = collect_garbage(store, NOW)
    assert _gone(plan) == (20, 0, 2)
    assert 0 < plan.views[0].freed_bytes < before
    assert report.rewritten_bytes == sum(record.num_bytes for record in store.catalog.shards())
    assert report.rewritten_bytes < before
    upkeep.assert_served(store, _texts("a", 10) + _texts("c", 10))
    assert upkeep.traces_of(store.layout.shards, _texts("b", 10)) == []
    upkeep.assert_whole(store)


@pytest.mark.parametrize(("unused", "rewritten"), [(30, 1), (10, 0)])
def test_shard_is_rewritten_only_if_enough_of_it_is_unused(
    store: FeatureStore, upkeep: ModuleType, unused: int, rewritten: int
) -> None:
    texts = _texts("a", 100)
    upkeep.put(store, texts)
    upkeep.register(store, "a", texts[unused:])
    assert _gone(plan_gc(store, NOW)) == (unused, 0, rewritten)
    collect_garbage(store, NOW)
    assert sum(upkeep.present(store, texts)) == 100 - unused * rewritten


def test_text_is_used_under_the_views_that_its_dataset_was_built_under_and_no_other(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    texts = _texts("a")
    for view in (upkeep.VIEW, upkeep.OTHER):
        upkeep.put(store, texts, view=view)
    upkeep.register(store, "a", texts, view=upkeep.OTHER)
    collect_garbage(store, NOW)
    assert not any(upkeep.present(store, texts))
    upkeep.assert_served(store, texts, view=upkeep.OTHER)


def test_reading_a_dataset_under_a_view_is_use_of_it(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    texts = _texts("a")
    for view in (upkeep.VIEW, upkeep.OTHER):
        upkeep.put(store, texts, view=view)
    version = upkeep.register(store, "a", texts, view=upkeep.OTHER)
    store.catalog.record_use(upkeep.VIEW.fingerprint, version)
    assert _gone(plan_gc(store, NOW)) == (0, 0, 0)


def test_text_of_several_datasets_goes_with_the_last_of_them(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    texts = _texts("a")
    upkeep.put(store, texts)
    for name, chosen in (("one", texts[:15]), ("two", texts[5:])):
        upkeep.register(store, name, chosen)
    assert _gone(plan_gc(store, NOW))[0] == 0
    _delete(store, "one")
    assert _gone(plan_gc(store, NOW))[0] == 5
    _delete(store, "two")
    assert _gone(plan_gc(store, NOW)) == (20, 1, 0)


def _delete(store: FeatureStore, name: str) -> None:
    record = store.catalog.find_dataset(name)
    assert store.catalog.remove_dataset(name, record.version, num_bytes=1)


def test_texts_that_lie_twice_are_rewritten_once(store: FeatureStore, upkeep: ModuleType) -> None:
    for _ in range(2):
        upkeep.put(store, _texts("a", 10) + _texts("b", 10))
        upkeep.put(store, _texts("a", 10) + _texts("c", 10))
    upkeep.register(store, "a", _texts("a", 10))
    collect_garbage(store, NOW)
    upkeep.assert_served(store, _texts("a", 10))
    assert sum(record.num_texts for record in store.catalog.shards()) == 10


def test_planning_changes_nothing(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, _texts("a"))
    upkeep.put(store, _texts("b"))
    upkeep.register(store, "a", _texts("a", 5))
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    assert _gone(plan_gc(store, NOW)) == (35, 1, 1)
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before
    assert len(store.catalog.shards()) == 2


# What must not go


def test_young_shards_are_left_alone(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, _texts("a"))
    plan, _ = collect_garbage(store)
    assert _gone(plan) == (0, 0, 0)
    assert plan.views[0].young_bytes == plan.bytes_before == plan.bytes_after
    upkeep.age(store)
    assert _gone(plan_gc(store)) == (20, 1, 0)


def test_texts_of_a_build_at_work_are_used(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, _texts("old"))
    upkeep.put(store, _texts("new"))
    with DatasetWriter(store.layout.tmp) as writer:
        # More than a file's buffer holds.
        writer.add(keys_of_texts(_texts("new") + _texts("x", 1000)), None, None, None)
        collect_garbage(store, NOW)
    assert not any(upkeep.present(store, _texts("old")))
    upkeep.assert_served(store, _texts("new"))
    assert _gone(plan_gc(store, NOW)) == (20, 1, 0), "it has given up"


def test_dataset_that_the_catalog_lost_keeps_its_texts(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, _texts("a"))
    version = upkeep.register(store, "a", _texts("a"))
    store.close()
    store.layout.catalog.unlink()
    with open_store(store.path) as again:
        upkeep.age(again, 2 * ORPHAN_AGE_S)
        plan, _ = collect_garbage(again, NOW)
        assert _gone(plan) == (0, 0, 0)
        assert plan.references.unregistered == (again.layout.dataset_path(version),)
        assert again.layout.dataset_path(version).exists()
        upkeep.assert_served(again, _texts("a"))


def test_damaged_dataset_stops_it(store: FeatureStore, upkeep: ModuleType) -> None:
    """Nobody knows then what it uses."""
    upkeep.put(store, _texts("a"))
    version = upkeep.register(store, "a", _texts("a"))
    path = store.layout.dataset_path(version) / "keys.npy"
    path.write_bytes(path.read_bytes()[:-16])
    with pytest.raises(CorruptShardError, match="dataset is missing or damaged"):
        collect_garbage(store, NOW)
    upkeep.assert_served(store, _texts("a"))


def test_build_that_began_meanwhile_and_found_a_text_keeps_it(
    store: FeatureStore, upkeep: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep.put(store, _texts("a"))
    upkeep.put(store, _texts("b", 10) + _texts("c", 10))
    upkeep.register(store, "c", _texts("c", 10))

    def plan_then_build(*arguments: Any) -> GcPlan:
        plan = plan_gc(*arguments)
        assert _gone(plan) == (30, 1, 1)
        upkeep.register(store, "late", [*_texts("a", 1), *_texts("b", 1)])
        return plan

    monkeypatch.setattr(gc, "plan_gc", plan_then_build)
    collect_garbage(store, NOW)
    upkeep.assert_served(store, _texts("a", 1) + _texts("b", 1) + _texts("c", 10))


def test_collecting_beside_another_maintenance_is_refused(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    with maintenance_lock(store.layout), pytest.raises(StoreLockedError):
        collect_garbage(store, NOW)


# Down to a size


@pytest.fixture
def three(store: FeatureStore, upkeep: ModuleType) -> FeatureStore:
    """Datasets a, b and c of a shard each, last used in this order."""
    for number, name in enumerate("abc"):
        upkeep.put(store, _texts(name))
        version = upkeep.register(store, name, _texts(name))
        _set_use(store, version, 1000.0 + number)
    return store


def _set_use(store: FeatureStore, version: str, when: float) -> None:
    with closing(sqlite3.connect(store.layout.catalog)) as raw, raw:
        raw.execute("UPDATE uses SET used_at = ? WHERE version = ?", (when, version))
        raw.execute("UPDATE builds SET created_at = ? WHERE version = ?", (when, version))


def _sizes(store: FeatureStore) -> list[int]:
    return [record.num_bytes for record in store.catalog.shards()]


def test_longest_unused_go_first_until_the_rest_fits(
    three: FeatureStore, upkeep: ModuleType
) -> None:
    first, second, third = _sizes(three)
    for max_bytes, names in (
        (first + second + third, ""),
        (first + second + third - 1, "a"),
        (second + third, "a"),
        (second + third - 1, "ab"),
        (third - 1, "abc"),
        (0, "abc"),
    ):
        plan = plan_gc(three, GcOptions(max_bytes=max_bytes, grace_s=0))
        dropped = [three.catalog.find_dataset(name).version for name in names]
        assert [drop.use.version for drop in plan.dropped] == dropped
    plan, _ = collect_garbage(three, GcOptions(max_bytes=second + third, grace_s=0))
    assert [drop.num_bytes for drop in plan.dropped] == [first]
    assert not any(upkeep.present(three, _texts("a")))
    upkeep.assert_served(three, _texts("b") + _texts("c"))
    assert [record.name for record in three.catalog.datasets()] == ["a", "b", "c"], "it stays"


def test_use_makes_a_dataset_the_last_to_go(three: FeatureStore, upkeep: ModuleType) -> None:
    version = three.catalog.find_dataset("a").version
    three.catalog.record_use(upkeep.VIEW.fingerprint, version)
    collect_garbage(three, GcOptions(max_bytes=max(_sizes(three)), grace_s=0))
    upkeep.assert_served(three, _texts("a"))
    assert not any(upkeep.present(three, _texts("b") + _texts("c")))


def test_what_a_later_used_dataset_shares_stays(store: FeatureStore, upkeep: ModuleType) -> None:
    texts = _texts("a", 40)
    upkeep.put(store, texts)
    for number, (name, chosen) in enumerate((("one", texts[:30]), ("two", texts[20:]))):
        _set_use(store, upkeep.register(store, name, chosen), 1000.0 + number)
    (size,) = _sizes(store)
    plan, _ = collect_garbage(store, GcOptions(max_bytes=size - 1, grace_s=0))
    assert len(plan.dropped) == 1
    assert _gone(plan) == (20, 0, 1)
    upkeep.assert_served(store, texts[20:])
    assert not any(upkeep.present(store, texts[:20]))


def test_size_that_holds_all_drops_nothing(three: FeatureStore, upkeep: ModuleType) -> None:
    plan, report = collect_garbage(three, GcOptions(max_bytes=1 << 40, grace_s=0))
    assert (plan.dropped, _gone(plan), report.retired) == ((), (0, 0, 0), 0)


def test_what_nobody_uses_goes_before_what_was_used_long_ago(
    three: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(three, _texts("unused"))
    size = sum(_sizes(three)) - _sizes(three)[3]
    plan, _ = collect_garbage(three, GcOptions(max_bytes=size, grace_s=0))
    assert plan.dropped == ()
    upkeep.assert_served(three, _texts("a") + _texts("b") + _texts("c"))


def test_young_shards_count_and_stay(three: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.age(three)
    upkeep.put(three, _texts("young", 200))
    young = _sizes(three)[-1]
    plan, _ = collect_garbage(three, GcOptions(max_bytes=young, grace_s=3600))
    assert len(plan.dropped) == 3
    upkeep.assert_served(three, _texts("young", 200))
    plan = plan_gc(three, GcOptions(max_bytes=1, grace_s=3600))
    assert (plan.dropped, _gone(plan)) == ((), (0, 0, 0)), "nothing would be gained"


# Uses


def test_use_is_recorded_at_most_once_an_hour(store: FeatureStore) -> None:
    store.catalog.record_use("v" * 32, "a" * 32)
    (first,) = store.catalog.uses()
    store.catalog.record_use("v" * 32, "a" * 32)
    assert store.catalog.uses() == [first]
    with closing(sqlite3.connect(store.layout.catalog)) as raw, raw:
        raw.execute("UPDATE uses SET used_at = used_at - ?", (USE_PERIOD_S + 1,))
    store.catalog.record_use("v" * 32, "a" * 32)
    (second,) = store.catalog.uses()
    assert second.used_at >= first.used_at


def test_use_is_not_recorded_where_the_store_cannot_be_written(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, ["a"])
    for missing in (False, True):
        with closing(sqlite3.connect(store.layout.catalog)) as raw:
            raw.isolation_level = None
            raw.execute("BEGIN EXCLUSIVE")
            store.catalog.record_use("v" * 32, "a" * 32)
            raw.execute("ROLLBACK")
        if missing:
            store.close()
            store.layout.catalog.unlink()
            store.catalog.record_use("v" * 32, "a" * 32)
            return
        assert store.catalog.uses() == []


def test_building_is_use(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, ["a"])
    version = upkeep.register(store, "a", ["a"])
    (use,) = store.catalog.uses()
    assert (use.view, use.version) == (upkeep.VIEW.fingerprint, version)


# Files that nothing names


def test_files_that_nothing_names_are_listed_and_deleted_when_old(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, _texts("a"))
    upkeep.register(store, "a", _texts("a"))
    store.reader(upkeep.VIEW).save_index()
    names = {
        "tmp": store.layout.tmp / "0123",
        "orphan": store.layout.shards / upkeep.VIEW.fingerprint / ("0" * 32 + ".h5"),
        "index": store.layout.index / ("f" * 32 + ".index"),
        "quarantine": store.layout.quarantine / "damaged.h5",
    }
    for path in names.values():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1234")
    assert [found.kind for found in plan_gc(store, NOW).garbage] == ["index"], "the rest is young"
    upkeep.age(store, QUARANTINE_AGE_S + 1)
    plan, report = collect_garbage(store, NOW)
    assert {found.kind: found.path for found in plan.garbage} == {
        kind: path for kind, path in names.items() if kind != "quarantine"
    }
    assert [found.num_bytes for found in report.deleted] == [4, 4, 4]
    collect_garbage(store, GcOptions(grace_s=0, quarantine=True))
    assert [path.exists() for path in names.values()] == [False] * 4
    assert store.layout.index_path(upkeep.VIEW.fingerprint).exists()
    upkeep.assert_served(store, _texts("a"))


def test_what_is_known_of_modules_that_nothing_names_goes(
    store: FeatureStore, upkeep: ModuleType, tmp_path: Path
) -> None:
    store.catalog.add_view(upkeep.VIEW, "m")
    (tmp_path / "module").mkdir()
    for digest in (upkeep.VIEW.module_digest, "a" * 32, "b" * 32, "c" * 32):
        store.catalog.add_module_facts(digest, '{"dim": 8}')
    store.catalog.add_module_digest(str(tmp_path / "module"), "stamp", "a" * 32)
    store.catalog.pin_module("pinned", "b" * 32)
    store.catalog.add_module_digest(str(tmp_path / "gone"), "stamp", "c" * 32)
    plan, _ = collect_garbage(store, NOW)
    assert plan.modules.paths == (str(tmp_path / "gone"),)
    assert plan.modules.facts == {"c" * 32: 10}
    assert not plan_gc(store, NOW).modules
    assert set(store.catalog.module_facts_bytes()) == {
        upkeep.VIEW.module_digest, "a" * 32, "b" * 32,
    }  # fmt: skip
    assert store.catalog.module_digest(str(tmp_path / "module"), "stamp") == "a" * 32


def test_retired_files_of_before_are_told_and_deleted(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, _texts("a"))
    (record,) = store.catalog.shards()
    store.catalog.retire_shards([record.digest])
    plan = plan_gc(store, NOW)
    assert (plan.sweep.files, plan.sweep.bytes) == (1, record.num_bytes)
    assert collect_garbage(store, NOW)[1].sweep == plan.sweep
    assert sweep(store.layout, store.catalog, grace_s=0).files == 0
