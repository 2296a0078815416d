"""Forgetting texts: their keys, rows, ids and spans are in no file of the store afterwards.

What this cannot reach is told in ``docs/maintenance.md``: blocks that the device has not
overwritten, copies of the store, processes that have the old files open, and trained models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError, StoreVersionError
from embedcache.keys import Keys, sort_order
from embedcache.store.database.records import DatasetRecord, ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.store.publish import find_files
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.adopt import orphan_shards
from embedcache.store.upkeep.dataset_without import publish_without
from embedcache.store.upkeep.forget_runs import forget_predictions, runs_trained_on
from embedcache.store.upkeep.garbage import size_of
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.membership import NOWHERE, KeySource, RankedKeys, ranks_of
from embedcache.store.upkeep.references import find_references, keys_of_folder
from embedcache.store.upkeep.retired import delete_index, delete_path, sweep
from embedcache.store.upkeep.rewrite import (
    ProgressCallback,
    Rewrite,
    key_source,
    rewrite_as_they_are,
    without_repeats,
)


@dataclass(frozen=True, slots=True)
class ViewForgetting:
    """What forgetting touches under one view.

    Attributes:
        record: The view.
        rewrites: The shards that have the texts, and what is kept of them.
    """

    record: ViewRecord
    rewrites: tuple[Rewrite, ...]

    @property
    def num_texts(self) -> int:
        """Texts that go; one that lies twice counts twice."""
        return sum(int(np.count_nonzero(~rewrite.keep)) for rewrite in self.rewrites)


@dataclass(frozen=True, slots=True)
class ForgetPlan:
    """What forgetting would do.

    Attributes:
        num_keys: Distinct texts asked for.
        views: Each view that has any of them.
        datasets: Each dataset version that has any of them, and how many of its documents go.
        runs: The runs that were trained on these versions: their models stay.
    """

    num_keys: int
    views: tuple[ViewForgetting, ...]
    datasets: tuple[tuple[DatasetRecord, int], ...]
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplacedDataset:
    """A dataset version that had texts which are forgotten.

    Attributes:
        name: What it is called.
        old: The version that it had.
        new: The version without them; None if nothing is left of it.
        num_documents: How many documents went.
    """

    name: str
    old: str
    new: str | None
    num_documents: int


@dataclass(slots=True)
class ForgetReport:
    """What forgetting did.

    Attributes:
        num_keys: Distinct texts asked for.
        texts: Features removed, over all views.
        shards: Shards rewritten.
        datasets: Dataset versions replaced.
        predictions: Runs whose predictions of them were taken out.
        runs: Runs that were trained on the versions that were replaced. What they have learned
            of the texts stays, as do the rows in their tables of tokens, until they are deleted.
        deleted: Other files deleted that had the texts, or may have had them.
    """

    num_keys: int
    texts: int = 0
    shards: int = 0
    datasets: list[ReplacedDataset] = field(default_factory=list)
    predictions: int = 0
    runs: list[str] = field(default_factory=list)
    deleted: list[Path] = field(default_factory=list)


def plan_forget(store: FeatureStore, keys: Keys) -> ForgetPlan:
    """Find what forgetting texts would touch; nothing is written.

    Args:
        store: An open store.
        keys: Of the texts, (n, 16), in any order, with repetitions or not.

    Raises:
        CorruptShardError: if a shard or a dataset is missing or damaged.
    """
    wanted = _distinct(keys)
    views = []
    for record in store.catalog.views():
        shards = store.catalog.shards(record.fingerprint)
        num_texts = sum(shard.num_texts for shard in shards)
        kept = _kept([key_source(store, shard) for shard in shards], num_texts, wanted)
        rewrites = [
            Rewrite(shard, keep) for shard, keep in zip(shards, kept, strict=True) if not keep.all()
        ]
        if rewrites:
            views.append(ViewForgetting(record, tuple(rewrites)))
    datasets = []
    for dataset in store.catalog.datasets():
        keep = _kept_documents(store.open_dataset(dataset), wanted)
        if not keep.all():
            datasets.append((dataset, int(np.count_nonzero(~keep))))
    versions = {record.version for record, _ in datasets}
    runs = tuple(runs_trained_on(store, versions))
    return ForgetPlan(len(wanted), tuple(views), tuple(datasets), runs)


def forget_texts(
    store: FeatureStore, keys: Keys, *, on_progress: ProgressCallback = lambda _texts: None
) -> ForgetReport:
    """Remove texts from every view and dataset, and their bytes from every file of the store.

    Shards and datasets that have them are written anew without them. Files are deleted at
    once, also those of `tmp/`, `quarantine/` and `checkpoints/`, whatever is in them: let
    nothing else write to the store meanwhile. After a crash, call it again.

    Args:
        store: An open store.
        keys: Of the texts, (n, 16), in any order, with repetitions or not.
        on_progress: Called after each piece that was read.

    Raises:
        StoreLockedError: if another maintenance is at work.
        CorruptShardError: if a shard or a dataset is missing or damaged.
        StoreError: if the device refuses.
    """
    wanted = _distinct(keys)
    report = ForgetReport(len(wanted))
    with maintenance_lock(store.layout):
        plan = plan_forget(store, wanted)
        report.runs += plan.runs
        for version in sorted({record.version for record, _ in plan.datasets}):
            _replace_dataset(store, version, wanted, plan, report)
        for view in plan.views:
            rewrites = without_repeats(store, view.rewrites)
            done = rewrite_as_they_are(store, view.record.view, rewrites, on_progress=on_progress)
            report.shards += len(done.retired)
            report.texts += view.num_texts
        report.predictions, deleted = forget_predictions(store, partial(_stay, wanted=wanted))
        report.deleted += deleted
        sweep(store.layout, store.catalog, grace_s=0.0)
        for path in [*_suspects(store, wanted)]:
            delete_path(store.layout, path)
            report.deleted.append(path)
        # Also of views that have none of the texts now: a call that was killed had got so far.
        store.close()
        for record in store.catalog.views():
            delete_index(store.layout, record.fingerprint)
            store.reader(record).save_index()
    return report


def _replace_dataset(
    store: FeatureStore, version: str, wanted: Keys, plan: ForgetPlan, report: ForgetReport
) -> None:
    """Put a version without the documents in the place of one, under all its names."""
    records = [record for record, _ in plan.datasets if record.version == version]
    folder = store.layout.dataset_path(version)
    dataset = store.open_dataset(records[0])
    keep = _kept_documents(dataset, wanted)
    new = publish_without(store.layout, dataset, folder, keep)
    store.catalog.replace_version(version, new, num_bytes=size_of(folder))
    report.datasets += [
        ReplacedDataset(
            record.name, version, new.version if new else None, int(np.count_nonzero(~keep))
        )
        for record in records
    ]


def _suspects(store: FeatureStore, wanted: Keys) -> Iterator[Path]:
    """Files that nothing names and that have, or may have, something of the texts."""
    for path in orphan_shards(store.layout, store.catalog):
        if _may_have(lambda path=path: Shard(path).keys, wanted):  # type: ignore[misc]
            yield path
    for folder in find_references(store).unregistered:
        if _may_have(lambda folder=folder: keys_of_folder(folder), wanted):  # type: ignore[misc]
            yield folder
    # Of trainings that are not finished: they may hold rows, and their dataset is another now.
    yield from find_files(store.layout.checkpoints, "*")
    yield from find_files(store.layout.tmp, "*")
    yield from find_files(store.layout.quarantine, "*")


def _may_have(source: KeySource, wanted: Keys) -> bool:
    try:
        (keep,) = _kept([source], len(source()), wanted)
    except (CorruptShardError, StoreVersionError):
        return True
    return not keep.all()


def _kept_documents(dataset: Dataset, wanted: Keys) -> NDArray[np.bool_]:
    return _stay(dataset.keys, wanted)


def _stay(keys: Keys, wanted: Keys) -> NDArray[np.bool_]:
    (keep,) = _kept([lambda: keys], len(keys), wanted)
    return keep


def _kept(sources: Sequence[KeySource], num_keys: int, wanted: Keys) -> list[NDArray[np.bool_]]:
    """Which keys are not among those wanted, (n,) bool for each source."""
    ranked = RankedKeys(lambda: wanted, len(wanted), 0)
    return [ranks == NOWHERE for ranks in ranks_of(sources, num_keys, [ranked])]


def _distinct(keys: Keys) -> Keys:
    ordered = keys[sort_order(keys)]
    is_first = np.ones(len(ordered), np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[is_first]
