"""Verifying a store in both directions, and mending what can be mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedcache.errors import CorruptShardError
from embedcache.store.adopt import adopt_shards, orphan_shards, quarantine, shard_fault
from embedcache.store.records import ShardRecord
from embedcache.store.store import FeatureStore


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
        unmended: Those of the corrupt that ``fix`` does not mend: datasets, which the build
            that made them writes again.
    """

    shards: int = 0
    rows: int = 0
    corrupt: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    fixed: bool = False
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
        StoreError: if the catalog cannot be used, or a file not opened.
    """
    report = VerifyReport(fixed=fix)
    catalogued = store.catalog.shards()
    report.shards = len(catalogued)
    for record in catalogued:
        _verify_shard(store, record, report, fix=fix)
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
    known = set()
    for dataset in store.catalog.datasets():
        known.add(store.layout.dataset_path(dataset.version))
        try:
            store.open_dataset(dataset)
        except CorruptShardError as error:
            report.unmended.append(str(error))
    report.corrupt += report.unmended
    report.orphans += _orphans(store, store.layout.datasets, known)


def _orphans(store: FeatureStore, folder: Path, known: set[Path]) -> list[str]:
    return [_relative(store, path) for path in sorted(folder.glob("*")) if path not in known]


def _verify_shard(
    store: FeatureStore, record: ShardRecord, report: VerifyReport, *, fix: bool
) -> None:
    path = store.layout.shard_path(record.view, record.digest)
    if not path.exists():
        report.missing.append(_relative(store, path))
    else:
        reason = shard_fault(path, record.digest)
        if reason is None:
            report.rows += record.num_texts
            return
        report.corrupt.append(f"{_relative(store, path)}: {reason}")
    if fix:
        store.catalog.remove_shard(record.digest)
        if path.exists():
            quarantine(store.layout, path)


def _relative(store: FeatureStore, path: Path) -> str:
    return str(path.relative_to(store.path))
