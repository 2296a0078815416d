"""Copying between stores."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from embedcache.errors import DiskFullError, StoreError, UnknownNameError
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep import transfer as transfer_file
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.transfer import Selection, TransferReport, transfer

A = [f"a {number}" for number in range(10)]
B = [f"b {number}" for number in range(10)]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[FeatureStore]:
    with open_store(tmp_path / "other") as opened:
        yield opened


@pytest.fixture
def full(store: FeatureStore, upkeep: ModuleType) -> FeatureStore:
    """Two views and two datasets, of which the first is the older."""
    upkeep.put(store, A)
    upkeep.put(store, B, encoding="dictionary")
    upkeep.put(store, A, view=upkeep.OTHER)
    upkeep.register(store, "a", A, labels=[("x",)] * 10)
    upkeep.register(store, "b", B)
    upkeep.register(store, "a", A, labels=[("x",)] * 10, view=upkeep.OTHER)
    store.catalog.add_check(upkeep.VIEW.fingerprint, texts=8, max_difference=0.25)
    store.catalog.add_reconstruction(
        upkeep.VIEW.fingerprint, rows=5, squared_error=1.0, squared_norm=4.0, max_error=0.5
    )
    store.catalog.pin_module("m", "1" * 32)
    store.catalog.pin_module("n", "2" * 32)
    store.catalog.add_module_facts("1" * 32, "{}")
    return store


def test_everything_is_there_afterwards_and_nothing_is_copied_twice(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    report = transfer(full, other)
    assert (report.views, report.shards, report.texts, report.datasets) == (2, 3, 30, 2)
    assert report.bytes == sum(record.num_bytes for record in full.catalog.shards())
    upkeep.assert_served(other, A + B)
    upkeep.assert_served(other, A, view=upkeep.OTHER)
    upkeep.assert_whole(other)
    assert other.catalog.views() == full.catalog.views()
    assert other.catalog.datasets() == full.catalog.datasets()
    for name in ("a", "b"):
        ours, theirs = full.load_dataset(name), other.load_dataset(name)
        assert (ours.version, ours.label_names) == (theirs.version, theirs.label_names)
        assert other.view_of_dataset(theirs) == full.view_of_dataset(ours)
    assert other.catalog.module_facts("1" * 32) == "{}"
    before = {path: path.stat().st_mtime_ns for path in other.path.rglob("*")}
    again = transfer(full, other)
    assert (again.views, again.shards, again.bytes, again.datasets, again.pins) == (0, 0, 0, 0, 0)
    assert again.present == 3
    assert len(other.catalog.builds()) == len(full.catalog.builds()) == 3
    files = {path: path.stat().st_mtime_ns for path in other.path.rglob("*")}
    assert {path for path in files if files[path] != before.get(path)} <= {other.layout.catalog}


def test_both_sides_have_the_union_after_both_directions(
    store: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, A)
    upkeep.put(other, B)
    upkeep.register(store, "a", A)
    upkeep.register(other, "b", B)
    assert transfer(store, other).shards == 1
    assert transfer(other, store).shards == 1
    for opened in (store, other):
        upkeep.assert_served(opened, A + B)
        assert {record.name for record in opened.catalog.datasets()} == {"a", "b"}
        upkeep.assert_whole(opened)


def test_copies_are_private_to_their_owner(full: FeatureStore, other: FeatureStore) -> None:
    transfer(full, other)
    for path in other.path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_one_view_can_be_chosen(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    report = transfer(full, other, Selection(view=upkeep.OTHER.fingerprint[:8]))
    assert (report.views, report.shards) == (1, 1)
    upkeep.assert_served(other, A, view=upkeep.OTHER)
    assert [record.view for record in other.catalog.views()] == [upkeep.OTHER]
    assert [(build.dataset, build.view) for build in other.catalog.builds()] == [
        ("a", upkeep.OTHER.fingerprint)
    ]
    with pytest.raises(UnknownNameError):
        transfer(full, other, Selection(view="nope"))


def test_one_dataset_can_be_chosen(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    report = transfer(full, other, Selection(datasets=("b",)))
    assert (report.shards, report.datasets) == (1, 1)
    upkeep.assert_served(other, B)
    assert upkeep.present(other, A) == [False] * 10
    assert [record.name for record in other.catalog.datasets()] == ["b"]
    with pytest.raises(UnknownNameError):
        transfer(full, other, Selection(datasets=("nope",)))


def test_pins_and_handles_of_the_other_side_are_not_overwritten(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    other.catalog.pin_module("m", "9" * 32)
    other.catalog.add_view(upkeep.VIEW, "their handle")
    other.catalog.add_view(upkeep.OTHER, "")
    assert transfer(full, other).pins == 1
    assert (other.catalog.module_pin("m"), other.catalog.module_pin("n")) == ("9" * 32, "2" * 32)
    handles = {record.view: record.handle for record in other.catalog.views()}
    assert handles == {upkeep.VIEW: "their handle", upkeep.OTHER: "builtin:nothing"}
    assert other.catalog.find_view(upkeep.VIEW.fingerprint).checked_texts == 0, "theirs"


def test_damaged_shard_is_told_and_not_copied(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    record = full.catalog.shards()[0]
    path = full.layout.shard_path(record.view, record.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    report = transfer(full, other)
    (line,) = report.damaged
    assert line.startswith(str(path.relative_to(full.path)))
    assert report.shards == 2
    assert upkeep.present(other, A) == [False] * 10
    upkeep.assert_served(other, B)
    upkeep.assert_whole(other)


def test_damaged_dataset_is_told_and_not_copied(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    folder = full.layout.dataset_path(full.catalog.find_dataset("b").version)
    (folder / "keys.npy").write_bytes(b"")
    report = transfer(full, other)
    assert len(report.damaged) == 1
    assert report.datasets == 1
    assert [record.name for record in other.catalog.datasets()] == ["a"]
    assert list(other.layout.tmp.iterdir()) == []


def test_damaged_dataset_of_the_other_side_is_replaced(
    full: FeatureStore, other: FeatureStore
) -> None:
    transfer(full, other)
    folder = other.layout.dataset_path(full.catalog.find_dataset("b").version)
    (folder / "keys.npy").write_bytes(b"")
    transfer(full, other)
    assert len(other.load_dataset("b")) == len(B)


def test_shard_whose_texts_are_all_there_is_not_copied(
    store: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.put(store, A)
    upkeep.put(store, B)
    transfer(store, other)
    compact_store(store, options=CompactOptions(grace_s=0))
    report = transfer(store, other)
    assert (report.shards, report.present) == (0, 1)
    upkeep.put(store, [*A, "new"])
    assert transfer(store, other).shards == 1
    upkeep.assert_served(other, [*A, *B, "new"])


def test_shard_that_is_retired_while_it_is_copied_is_no_damage(
    full: FeatureStore, other: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transfer_file.shard_fault

    def retire_first(path: Path, digest: str) -> str | None:
        full.catalog.retire_shards([digest])
        path.unlink()
        return real(path, digest)

    monkeypatch.setattr(transfer_file, "shard_fault", retire_first)
    report = transfer(full, other)
    assert (report.damaged, report.shards) == ([], 0)


def test_full_disk_is_an_error_and_the_next_call_goes_on(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transfer_file.publish_file
    calls = []

    def fill_up(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise DiskFullError("full")
        real(*arguments, **named)

    monkeypatch.setattr(transfer_file, "publish_file", fill_up)
    with pytest.raises(DiskFullError):
        transfer(full, other)
    report = transfer(full, other)
    assert (report.present, report.shards) == (1, 2)
    upkeep.assert_served(other, A + B)


def test_progress_is_told_after_each_shard(full: FeatureStore, other: FeatureStore) -> None:
    told: list[int] = []

    def tell(report: TransferReport) -> None:
        told.append(report.shards)

    transfer(full, other, on_progress=tell)
    assert told == [1, 2, 3]


def test_a_store_is_not_copied_to_itself(full: FeatureStore, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(full.path)
    with open_store(link) as same, pytest.raises(StoreError, match="both sides"):
        transfer(full, same)


def test_orphan_of_the_other_side_is_taken_up(
    full: FeatureStore, other: FeatureStore, upkeep: ModuleType
) -> None:
    """A push that was killed between a file and its row."""
    transfer(full, other)
    for record in other.catalog.shards():
        other.catalog.remove_shard(record.digest)
    assert transfer(full, other).shards == 3
    upkeep.assert_served(other, A + B)
    shutil.rmtree(other.layout.index)
    with open_store(other.path) as again:
        upkeep.assert_served(again, A + B)
