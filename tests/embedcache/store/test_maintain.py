"""Verifying in both directions, and mending."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from embedcache.errors import StoreError, StoreLockedError, StoreVersionError
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.shards.format import FORMAT_VERSION, attributes_checksum, content_digest
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep import maintain
from embedcache.store.upkeep.adopt import file_digest
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.maintain import VerifyReport, verify_store
from embedcache.store.upkeep.retired import sweep

SHARDS = (["a", "b"], ["c"], ["d", "e", "f"])


@pytest.fixture
def paths(store: FeatureStore, programs: ModuleType) -> list[Path]:
    """The files of three shards, in the order of `SHARDS`."""
    for texts in SHARDS:
        programs.put(store, texts)
    store.reader(programs.VIEW).save_index()
    return [
        store.layout.shard_path(record.view, record.digest) for record in store.catalog.shards()
    ]


def _add_dataset(store: FeatureStore, programs: ModuleType) -> Path:
    with DatasetWriter(store.layout.tmp) as writer:
        writer.add(keys_of_texts(["a", "b"]), [("x",), ("y",)], None, None)
        version, num_unique = writer.finish()
        target = store.layout.dataset_path(version)
        writer.publish(target)
    record = DatasetRecord("name", version, 2, num_unique, [], 0.0)
    store.catalog.add_dataset(record, view=programs.VIEW.fingerprint, report={})
    return target


def _flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def _assert_clean(store: FeatureStore) -> VerifyReport:
    report = verify_store(store)
    assert report.is_well
    assert (report.corrupt, report.missing, report.orphans) == ([], [], [])
    return report


def test_clean_store_is_clean_and_left_as_it_is(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    _add_dataset(store, programs)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    report = _assert_clean(store)
    assert (report.shards, report.rows) == (3, 6)
    assert verify_store(store, fix=True).is_well
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before
    assert report.to_record() == {
        "shards": 3, "rows": 6, "corrupt": [], "orphans": [], "missing": [], "fixed": False,
        "retired": 0, "duplicates": 0,
    }  # fmt: skip


def test_empty_store_is_clean(store: FeatureStore) -> None:
    assert _assert_clean(store).shards == 0
    store.layout.tmp.rmdir()
    _assert_clean(store)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, _replace_by_folder])
def test_damaged_shard_is_found_put_aside_and_its_texts_are_misses(
    store: FeatureStore, programs: ModuleType, paths: list[Path], damage: Callable[[Path], None]
) -> None:
    damage(paths[0])
    report = verify_store(store)
    assert not report.is_well
    assert (report.shards, report.rows, report.missing) == (3, 4, [])
    (line,) = report.corrupt
    assert line.startswith(str(paths[0].relative_to(store.path)) + ": ")
    assert "\n" not in line
    assert paths[0].exists(), "nothing is touched without --fix"
    assert len(store.catalog.shards()) == 3

    mended = verify_store(store, fix=True)
    assert (mended.is_well, mended.fixed, len(mended.corrupt)) == (True, True, 1)
    aside = store.path / "quarantine" / f"{paths[0].parent.name}-{paths[0].name}"
    assert aside.exists()
    assert _assert_clean(store).rows == 4
    for opened in (store, open_store(store.path)):
        present = opened.contains(programs.VIEW, ["a", "b", "c", "d"])
        assert present.tolist() == [False, False, True, True]
        programs.assert_served(opened, ["c", "d", "e", "f"])
        opened.close()
    programs.put(store, ["a", "b"])
    programs.assert_served(store, ["a", "b", "c"])
    _assert_clean(store)


def test_every_checksum_is_compared(
    store: FeatureStore, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a shard whose name fits: only the checksums inside tell."""
    with h5py.File(paths[2], "r+") as file:
        file["values"][0, 0] += 1
    digest = file_digest(paths[2])
    renamed = paths[2].with_name(f"{digest}.h5")
    paths[2].rename(renamed)
    raw = sqlite3.connect(store.layout.catalog)
    with raw:
        raw.execute("UPDATE shards SET digest = ? WHERE digest = ?", (digest, paths[2].stem))
    raw.close()
    (line,) = verify_store(store).corrupt
    assert "block 0 of 'values' is not what was written" in line


def test_missing_shard_is_found_and_forgotten(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    paths[1].unlink()
    report = verify_store(store)
    assert (report.is_well, report.missing) == (False, [str(paths[1].relative_to(store.path))])
    assert verify_store(store, fix=True).is_well
    assert _assert_clean(store).shards == 2
    assert not store.contains(programs.VIEW, ["c"]).any()
    programs.assert_served(store, ["a", "b", "d", "e", "f"])


def test_whole_orphan_is_harmless_and_is_adopted(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    store.catalog.remove_shard(paths[2].stem)
    (store.layout.tmp / "0123456789abcdef").write_bytes(b"half a shard")
    report = verify_store(store)
    assert report.is_well
    assert report.orphans == [str(paths[2].relative_to(store.path)), "tmp/0123456789abcdef"]
    assert not store.contains(programs.VIEW, ["d"]).any()
    verify_store(store, fix=True)
    assert verify_store(store).orphans == ["tmp/0123456789abcdef"]
    programs.assert_served(store, ["a", "b", "c", "d", "e", "f"])


@pytest.mark.parametrize(
    "kind", ["damaged", "another view's", "not named by its digest", "another suffix", "no shard"]
)
def test_orphan_that_is_no_shard_of_its_view_is_put_aside(
    store: FeatureStore, programs: ModuleType, paths: list[Path], kind: str
) -> None:
    content = paths[0].read_bytes()
    folder = paths[0].parent
    stranger = {
        "damaged": folder / ("0" * 32 + ".h5"),
        "another view's": store.layout.shards / ("f" * 32) / paths[0].name,
        "not named by its digest": folder / "copy.h5",
        "another suffix": folder / f"{paths[0].stem}.bak",
        "no shard": folder / "notes.txt",
    }[kind]
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"notes" if kind == "no shard" else content)
    assert verify_store(store).orphans == [str(stranger.relative_to(store.path))]
    verify_store(store, fix=True)
    assert not stranger.exists()
    assert len(list((store.path / "quarantine").iterdir())) == 1
    assert _assert_clean(store).shards == 3
    programs.assert_served(store, ["a", "b", "c", "d", "e", "f"])


def test_lost_catalog_is_made_anew_from_the_shards(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    other = replace(programs.VIEW, max_tokens=7)
    programs.put(store, ["x", "y"], view=other)
    before = store.stats()
    store.close()
    store.layout.catalog.unlink()
    with open_store(store.path) as again:
        programs.assert_served(again, ["a", "b", "c", "d", "e", "f"])
        programs.assert_served(again, ["x", "y"], other)
        after = again.stats()
        by_view = [
            {view["fingerprint"]: view | {"module": ""} for view in stats["views"]}
            for stats in (before, after)
        ]
        assert by_view[0] == by_view[1]
        assert _assert_clean(again).rows == 8


def test_lost_catalog_and_a_damaged_shard_cost_that_shard_only(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    store.close()
    store.layout.catalog.unlink()
    _flip(paths[1])
    with open_store(store.path) as again:
        assert again.contains(programs.VIEW, ["a", "c", "d"]).tolist() == [True, False, True]
        _assert_clean(again)


def test_damaged_dataset_is_found_and_not_claimed_to_be_mended(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    target = _add_dataset(store, programs)
    _assert_clean(store)
    _flip(target / "keys.npy")
    for fix in (False, True):
        report = verify_store(store, fix=fix)
        assert not report.is_well
        (line,) = report.corrupt
        assert str(target) in line
        assert "\n" not in line
    _add_dataset(store, programs)
    _assert_clean(store)


def test_dataset_and_run_that_the_catalog_does_not_name_are_orphans(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    _add_dataset(store, programs)
    (store.layout.datasets / ("0" * 32)).mkdir()
    (store.layout.runs / "half").mkdir()
    report = verify_store(store)
    assert report.is_well
    assert report.orphans == ["datasets/" + "0" * 32, "runs/half"]


def _make_newer(path: Path) -> Path:
    """The same shard in a format of tomorrow, under the name that fits."""
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = FORMAT_VERSION + 1
    renamed = path.with_name(f"{file_digest(path)}.h5")
    path.rename(renamed)
    return renamed


@pytest.mark.parametrize("is_catalogued", [True, False])
def test_shard_of_a_newer_embedcache_is_left_alone(
    store: FeatureStore, paths: list[Path], is_catalogued: bool
) -> None:
    newer = _make_newer(paths[0])
    raw = sqlite3.connect(store.layout.catalog)
    with raw:
        if is_catalogued:
            raw.execute(
                "UPDATE shards SET digest = ? WHERE digest = ?", (newer.stem, paths[0].stem)
            )
        else:
            raw.execute("DELETE FROM shards WHERE digest = ?", (paths[0].stem,))
    raw.close()
    before = store.catalog.shards()
    with pytest.raises(StoreVersionError, match="upgrade"):
        verify_store(store, fix=True)
    assert newer.exists()
    assert store.catalog.shards() == before


def test_newer_shard_that_is_named_by_its_content_is_left_alone(
    store: FeatureStore, paths: list[Path]
) -> None:
    """Its attributes have the first checksum, and all checksums make its name."""
    with h5py.File(paths[0], "r+") as file:
        file.attrs["version"] = FORMAT_VERSION + 1
        attributes = {
            name: value.decode() if isinstance(value, bytes) else int(value)
            for name, value in file.attrs.items()
        }
        file["checksums"][0] = attributes_checksum(attributes)
        digest = content_digest(file["checksums"][()])
    newer = paths[0].rename(paths[0].with_name(f"{digest}.h5"))
    with pytest.raises(StoreVersionError, match="upgrade"):
        verify_store(store, fix=True)
    assert newer.exists()


def test_shard_named_by_its_bytes_as_older_versions_do_is_whole_and_adopted(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    renamed = paths[0].rename(paths[0].with_name(f"{file_digest(paths[0])}.h5"))
    assert renamed.name != paths[0].name
    store.catalog.remove_shard(paths[0].stem)
    assert verify_store(store, fix=True).orphans == [str(renamed.relative_to(store.path))]
    programs.assert_served(store, ["a", "b", "c", "d", "e", "f"])
    assert _assert_clean(store).shards == 3
    _flip(renamed)
    assert len(verify_store(store).corrupt) == 1


def test_whole_shard_under_another_ones_name_is_damage(
    store: FeatureStore, paths: list[Path]
) -> None:
    paths[0].write_bytes(paths[2].read_bytes())
    (line,) = verify_store(store).corrupt
    assert "its content is not what its name is the digest of" in line


def test_mending_beside_another_maintenance_is_refused_and_looking_is_not(
    store: FeatureStore, paths: list[Path]
) -> None:
    with maintenance_lock(store.layout):
        with pytest.raises(StoreLockedError):
            verify_store(store, fix=True)
        _assert_clean(store)


def test_shard_that_is_retired_while_it_is_looked_for_is_not_missing(
    store: FeatureStore, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = maintain.lasting_fault

    def retire_the_next(path: Path, digest: str) -> str | None:
        store.catalog.retire_shards([paths[2].stem])
        sweep(store.layout, store.catalog, grace_s=0)
        return real(path, digest)

    monkeypatch.setattr(maintain, "lasting_fault", retire_the_next)
    report = _assert_clean(store)
    assert (report.shards, report.rows) == (2, 3)


def test_flipped_version_number_is_damage_and_no_reason_to_upgrade(
    store: FeatureStore, paths: list[Path]
) -> None:
    with h5py.File(paths[0], "r+") as file:
        file.attrs["version"] = FORMAT_VERSION + 1
    assert len(verify_store(store).corrupt) == 1
    assert verify_store(store, fix=True).is_well
    _assert_clean(store)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.ENOMEM])
def test_whole_shard_is_not_put_aside_because_it_cannot_be_opened_now(
    store: FeatureStore, paths: list[Path], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.suffix == ".h5":
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        verify_store(store, fix=True)
    assert "\n" not in str(caught.value)
    assert all(path.exists() for path in paths)
    assert len(store.catalog.shards()) == 3


def test_readers_of_other_processes_follow_what_was_mended(
    store: FeatureStore, programs: ModuleType, paths: list[Path]
) -> None:
    with open_store(store.path) as reading:
        programs.assert_served(reading, ["a", "c", "f"])
        _flip(paths[0])
        verify_store(store, fix=True)
        assert reading.contains(programs.VIEW, ["a", "c"]).tolist() == [False, True]
        programs.put(store, ["a", "b"])
        programs.assert_served(reading, ["a", "b", "c", "d"])


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    # b2sum --length=128 gives the same.
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert file_digest(path) == "cae66941d9efbd404e4d88758ea67670"
    path.write_bytes(np.arange(5_000_000, dtype=np.uint32).tobytes())
    assert len(file_digest(path)) == 32
