"""Making a catalog anew from what lies in the store, where it is lost or damaged.

Nothing is deleted: a damaged catalog is put aside, and so is a shard that is not whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import (
    CorruptShardError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreVersionError,
)
from embedcache.keys import Keys
from embedcache.store.database.records import BuildRecord, DatasetRecord, RunRecord
from embedcache.store.dataset import count_unique, load_dataset
from embedcache.store.publish import find_files, make_folder, mapped_os_errors
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.adopt import adopt_shard, orphan_shards
from embedcache.store.upkeep.locking import maintenance_lock

_BLOCK_KEYS = 1 << 16
_RUN_FIELDS = ("run", "dataset", "version", "view")


@dataclass(slots=True)
class RepairReport:
    """What repairing found and did. Paths are relative to the store.

    Attributes:
        catalog: ``"whole"``, ``"lost"`` or ``"damaged"``.
        put_aside: The damaged catalog's files, and shards that are not whole.
        shards: Shards that the catalog names now and did not.
        texts: Texts in them.
        views: Views that it knows now and did not.
        datasets: Names of the datasets that it did not know.
        runs: Runs that it did not know.
        left: Folders of datasets and runs that hold not what is needed; they are left alone.
    """

    catalog: str
    put_aside: list[str] = field(default_factory=list)
    shards: int = 0
    texts: int = 0
    views: int = 0
    datasets: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def repair_store(path: str | os.PathLike[str]) -> RepairReport:
    """Make a lost or damaged catalog anew, and register what it does not name.

    Views and shards come from the shards' files, each of which is read whole; datasets from
    their folders, as ``recovered-VERSION``; runs from their folders. The handles of modules
    come again with the next build. Shards that were retired may come back: harmless, and gone
    with the next `compact` or `gc`.

    Args:
        path: The store's folder. Nothing else may use it meanwhile.

    Raises:
        NotAStoreError: if there is no store.
        StoreVersionError: if the store, its catalog or a shard is a newer embedcache's.
        StoreLockedError: if another process holds the catalog, or maintains the store.
        StoreError: if the store cannot be written.
    """
    with FeatureStore(path) as store:
        store.layout.check()
        with maintenance_lock(store.layout):
            report = RepairReport(_state_of_catalog(store))
            if report.catalog == "damaged":
                report.put_aside += _put_catalog_aside(store)
            store.catalog.create()
            before = {record.fingerprint for record in store.catalog.views()}
            _adopt_shards(store, report)
            report.views = len(store.catalog.views()) - len(before)
            for folder in find_files(store.layout.datasets, "*"):
                _register_dataset(store, folder, report)
            for folder in find_files(store.layout.runs, "*"):
                _register_run(store, folder, report)
    return report


def _state_of_catalog(store: FeatureStore) -> str:
    path = store.layout.catalog
    if not path.exists() or path.stat().st_size == 0:
        return "lost"
    try:
        store.catalog.check()
        store.catalog.check_integrity()
    except (StoreVersionError, StoreLockedError, StoreReadOnlyError):
        raise
    except StoreError:
        return "damaged"
    return "whole"


def _put_catalog_aside(store: FeatureStore) -> list[str]:
    """Move the catalog's file and its journals to the quarantine."""
    store.catalog.close()
    folder = store.layout.quarantine / time.strftime("catalog-%Y%m%d-%H%M%S", time.gmtime())
    while folder.exists():
        folder = folder.with_name(f"{folder.name}-again")
    make_folder(folder)
    moved = []
    for suffix in ("-journal", "-wal", "-shm", ""):
        path = store.layout.catalog.with_name(store.layout.catalog.name + suffix)
        if path.exists():
            with mapped_os_errors(path):
                os.replace(path, folder / path.name)
            moved.append(str((folder / path.name).relative_to(store.path)))
    return moved


def _adopt_shards(store: FeatureStore, report: RepairReport) -> None:
    known = {record.digest for record in store.catalog.shards()}
    for path in orphan_shards(store.layout, store.catalog):
        if not adopt_shard(store.layout, store.catalog, path):
            report.put_aside.append(str(path.relative_to(store.path)))
    new = [record for record in store.catalog.shards() if record.digest not in known]
    report.shards = len(new)
    report.texts = sum(record.num_texts for record in new)


def _register_dataset(store: FeatureStore, folder: Path, report: RepairReport) -> None:
    version = folder.name
    if version in {record.version for record in store.catalog.datasets()}:
        return
    name = f"recovered-{version[:12]}"
    try:
        dataset = load_dataset(name, version, folder)
    except CorruptShardError:
        report.left.append(str(folder.relative_to(store.path)))
        return
    created_at = folder.stat().st_mtime
    record = DatasetRecord(name, version, len(dataset), count_unique(dataset.keys), [], created_at)
    builds = [
        BuildRecord(name, version, view, {}, created_at) for view in _views_of(store, dataset.keys)
    ]
    store.catalog.import_dataset(record, builds)
    report.datasets.append(name)


def _views_of(store: FeatureStore, keys: Keys) -> list[str]:
    """The views that a dataset was built under, as far as can be told, the best one last.

    Those that have all of its texts; if there is none, the one that has most of them.
    """
    shares = []
    for record in store.catalog.views():
        reader = store.reader(record)
        present = [int(np.count_nonzero(reader.contains(block))) for block in _blocks(keys)]
        shares.append((sum(present), record.fingerprint))
    whole = [view for count, view in shares if count == len(keys)]
    most = max(shares, default=(0, ""))
    return whole or ([most[1]] if most[0] else [])


def _blocks(keys: Keys) -> Iterator[Keys]:
    return (keys[start : start + _BLOCK_KEYS] for start in range(0, len(keys), _BLOCK_KEYS))


def _register_run(store: FeatureStore, folder: Path, report: RepairReport) -> None:
    if folder.name in {record.run for record in store.catalog.runs()}:
        return
    record = _run_record(folder)
    if record is None:
        report.left.append(str(folder.relative_to(store.path)))
        return
    fields = {name: record[name] for name in _RUN_FIELDS}
    created_at = (folder / "run.json").stat().st_mtime
    store.catalog.add_run(RunRecord(**fields, record=record, created_at=created_at))
    report.runs.append(folder.name)


def _run_record(folder: Path) -> dict[str, Any] | None:
    """What ``train`` printed, from a run's folder; None if it is not a run's."""
    with suppress(OSError, ValueError, RecursionError):
        details = json.loads((folder / "run.json").read_bytes())
        record = details.get("record") if isinstance(details, dict) else None
        if not isinstance(record, dict) or record.get("run") != folder.name:
            return None
        is_whole = all(isinstance(record.get(name), str) for name in _RUN_FIELDS)
        if is_whole and (folder / "model.keras").is_file():
            return record
    return None
