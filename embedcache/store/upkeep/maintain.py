"""Verifying a store in both directions, and mending what can be mended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import CorruptShardError
from embedcache.store.database.catalog_shards import DATASET, SHARD
from embedcache.store.database.records import ShardRecord
from embedcache.store.publish import find_files
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.adopt import adopt_shards, lasting_fault, orphan_shards, quarantine
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.membership import first_copies
from embedcache.store.upkeep.retired import retired_path
from embedcache.store.upkeep.rewrite import key_source


@dataclass(slots=True)
class VerifyReport:
    """What `verify_store` found. Paths are relative to the store.

    Attributes:
        shards: Shards catalogued.
        rows: Texts in those that are whole.
        corrupt: Files whose bytes are not what was written, with the reason.
        orphans: Files that the catalog does not name: harmless, left by a kill.
        missing: Files that the catalog names and that are not there.
        fixed: Whether corrupt and missing ones were taken out of the catalog, and whole
            orphans into it.
        retired: Shards that the catalog named once and whose files wait to be deleted; they
            are not read.
        duplicates: Texts that lie twice, in two shards that are whole: legal, left by two
            builders at once or by a kill; `compact` drops them.
        unmended: Those of the corrupt that ``fix`` does not mend: datasets, which the build
            that made them writes again.
    """

    shards: int = 0
    rows: int = 0
    corrupt: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    fixed: bool = False
    retired: int = 0
    duplicates: int = 0
    unmended: list[str] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, or what was is mended."""
        return not self.unmended and (self.fixed or not (self.corrupt or self.missing))

    def to_record(self) -> dict[str, Any]:
        """``verify --json``."""
        record = asdict(self)
        del record["unmended"]
        return record


def verify_store(store: FeatureStore, *, fix: bool = False) -> VerifyReport:
    """Check every shard against the catalog and the catalog against the files.

    Each shard is read whole: its digest, structure and every checksum. With ``fix``,
    corrupt shards are moved to ``quarantine/``, they and missing ones leave the catalog, so
    that the next build computes their texts again, and orphans that are whole shards are
    adopted. Nothing is deleted.

    Raises:
        StoreVersionError: if a shard is whole and a newer embedcache's: it is left alone.
        StoreLockedError: with ``fix``, if another maintenance is at work.
        StoreError: if the catalog cannot be used, or a file not opened.
    """
    with maintenance_lock(store.layout) if fix else nullcontext():
        return _verify(store, fix=fix)


def _verify(store: FeatureStore, *, fix: bool) -> VerifyReport:
    report = VerifyReport(fixed=fix)
    catalogued = store.catalog.shards()
    report.shards = len(catalogued)
    whole = [record for record in catalogued if _verify_shard(store, record, report, fix=fix)]
    report.duplicates = _count_duplicates(store, whole)
    report.retired = sum(record.kind == SHARD for record in store.catalog.retired())
    find = adopt_shards if fix else orphan_shards
    report.orphans += [_relative(store, path) for path in find(store.layout, store.catalog)]
    _verify_datasets(store, report)
    runs = {store.layout.runs / record.run for record in store.catalog.runs()}
    for folder, kept in ((store.layout.runs, runs), (store.layout.tmp, set[Path]())):
        report.orphans += _orphans(store, folder, kept)
    # The readers' shards and indexes may be those that are gone now.
    store.close()
    return report


def _verify_datasets(store: FeatureStore, report: VerifyReport) -> None:
    known = {
        retired_path(store.layout, record)
        for record in store.catalog.retired()
        if record.kind == DATASET
    }
    for dataset in store.catalog.datasets():
        known.add(store.layout.dataset_path(dataset.version))
        try:
            store.open_dataset(dataset)
        except CorruptShardError as error:
            report.unmended.append(str(error))
    report.corrupt += report.unmended
    report.orphans += _orphans(store, store.layout.datasets, known)


def _orphans(store: FeatureStore, folder: Path, known: set[Path]) -> list[str]:
    return [_relative(store, path) for path in find_files(folder, "*") if path not in known]


def _verify_shard(
    store: FeatureStore, record: ShardRecord, report: VerifyReport, *, fix: bool
) -> bool:
    """Whether a shard is whole."""
    path = store.layout.shard_path(record.view, record.digest)
    reason = lasting_fault(path, record.digest) if path.exists() else None
    if reason is None and path.exists():
        report.rows += record.num_texts
        return True
    if record not in store.catalog.shards(record.view):
        # Retired, and its file deleted, since the catalog was asked: nothing is wrong.
        report.shards -= 1
        return False
    if reason is None:
        report.missing.append(_relative(store, path))
    else:
        report.corrupt.append(f"{_relative(store, path)}: {reason}")
    if fix:
        store.catalog.remove_shard(record.digest)
        if path.exists():
            quarantine(store.layout, path)
    return False


def _count_duplicates(store: FeatureStore, whole: Sequence[ShardRecord]) -> int:
    """How many texts of these shards lie in another one of their view too."""
    by_view: dict[str, list[ShardRecord]] = defaultdict(list)
    for record in whole:
        by_view[record.view].append(record)
    count = 0
    for records in by_view.values():
        sources = [key_source(store, record) for record in records]
        masks = first_copies(sources, sum(record.num_texts for record in records))
        count += sum(int(np.count_nonzero(~mask)) for mask in masks)
    return count


def _relative(store: FeatureStore, path: Path) -> str:
    return str(path.relative_to(store.path))
