"""Copying to another store what it lacks of this one: `push`, and the other way round `pull`."""

from __future__ import annotations

import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedcache.errors import CorruptShardError, StoreError
from embedcache.store.database.records import DatasetRecord, ShardRecord, ViewRecord
from embedcache.store.dataset import is_whole, load_dataset
from embedcache.store.publish import (
    FILE_MODE,
    FOLDER_MODE,
    make_folder,
    mapped_os_errors,
    publish_file,
    sync_folder,
)
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.adopt import shard_fault
from embedcache.store.upkeep.membership import NOWHERE, RankedKeys, ranks_of
from embedcache.store.upkeep.retired import delete_path

_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a store is to be copied.

    Attributes:
        view: Fingerprint of a view or its beginning; None: all.
        datasets: Names, or ``NAME@VERSION``: these, and the shards that have texts of theirs;
            empty: all datasets and all shards.
    """

    view: str | None = None
    datasets: tuple[str, ...] = ()


@dataclass(slots=True)
class TransferReport:
    """What copying did.

    Attributes:
        views: Views that the other store did not know.
        shards: Shards copied.
        texts: Texts in them.
        bytes: Their size.
        present: Shards that the other store has, or all of whose texts it has.
        datasets: Dataset versions copied.
        pins: Pins of modules that the other store did not have.
        damaged: Shards and datasets that are damaged here, with the reason: not copied.
    """

    views: int = 0
    shards: int = 0
    texts: int = 0
    bytes: int = 0
    present: int = 0
    datasets: int = 0
    pins: int = 0
    damaged: list[str] = field(default_factory=list)


ProgressCallback = Callable[[TransferReport], None]


def transfer(
    source: FeatureStore,
    target: FeatureStore,
    selection: Selection | None = None,
    *,
    on_progress: ProgressCallback = lambda _report: None,
) -> TransferReport:
    """Copy the shards and datasets that the other store lacks.

    Each shard is read whole and checked before it is published there; what is damaged is not
    copied. Both stores may be in use meanwhile. Interrupted, a second call goes on: what has
    been copied is not copied again.

    Args:
        source: The store that has them.
        target: The store that is to have them too.
        selection: Which; None: all.
        on_progress: Called after each shard.

    Raises:
        UnknownNameError: if the source has no such view or dataset.
        StoreError: if the two are one store, or a device refuses.
    """
    if os.path.realpath(source.path) == os.path.realpath(target.path):
        raise StoreError(f"{source.path}: both sides are this store; name another one")
    selection = selection or Selection()
    report = TransferReport()
    views = source.catalog.views()
    if selection.view is not None:
        views = [source.catalog.find_view(selection.view)]
    datasets = _datasets(source, selection)
    wanted = _keys_of(source, datasets) if selection.datasets else None
    copy = _Copy(source, target, report, on_progress)
    copy.modules()
    for view in views:
        copy.view(view, wanted)
    # After the features: a dataset that is there can be trained on.
    for record in datasets:
        copy.dataset(record, {view.fingerprint for view in views})
    return report


def _datasets(source: FeatureStore, selection: Selection) -> list[DatasetRecord]:
    if not selection.datasets:
        return source.catalog.datasets()
    return [source.catalog.find_dataset(name) for name in selection.datasets]


def _keys_of(source: FeatureStore, records: Sequence[DatasetRecord]) -> list[RankedKeys]:
    found = []
    for record in records:
        dataset = source.open_dataset(record)
        found.append(RankedKeys(lambda keys=dataset.keys: keys, len(dataset), 0))  # type: ignore[misc]
    return found


class _Copy:
    """One copying from a store to another."""

    def __init__(
        self,
        source: FeatureStore,
        target: FeatureStore,
        report: TransferReport,
        on_progress: ProgressCallback,
    ) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._on_progress = on_progress

    def modules(self) -> None:
        """Pins that the other store lacks, and what probes found: its builds need neither again."""
        catalog, other = self._source.catalog, self._target.catalog
        for pin in catalog.module_pins():
            if other.module_pin(pin.handle) is None:
                other.pin_module(pin.handle, pin.digest)
                self._report.pins += 1
        for digest in sorted(set(catalog.module_facts_bytes()) - set(other.module_facts_bytes())):
            facts = catalog.module_facts(digest)
            if facts is not None:
                other.add_module_facts(digest, facts)

    def view(self, record: ViewRecord, wanted: Sequence[RankedKeys] | None) -> None:
        """The shards of a view that the other store lacks."""
        catalog, other = self._source.catalog, self._target.catalog
        shards = catalog.shards(record.fingerprint)
        if wanted is not None:
            shards = [shard for shard in shards if self._has_any(shard, wanted)]
            if not shards:
                return
        known = {view.fingerprint: view for view in other.views()}
        if record.fingerprint not in known or not known[record.fingerprint].handle:
            other.add_view(record.view, record.handle, preprocess=record.preprocess)
        if record.fingerprint not in known:
            self._report.views += 1
            catalog.copy_measurements(record.fingerprint, other)
        have = {shard.digest for shard in other.shards(record.fingerprint)}
        for shard in shards:
            if shard.digest in have:
                self._report.present += 1
            else:
                self._copy_shard(shard)
            self._on_progress(self._report)
        self._target.reader(record.view).save_index()

    def _has_any(self, shard: ShardRecord, wanted: Sequence[RankedKeys]) -> bool:
        path = self._source.layout.shard_path(shard.view, shard.digest)
        keys = Shard(path).keys
        (ranks,) = ranks_of([lambda: keys], len(keys), wanted)
        return bool((ranks != NOWHERE).any())

    def _copy_shard(self, record: ShardRecord) -> None:
        layout, other = self._source.layout, self._target.layout
        path = layout.shard_path(record.view, record.digest)
        reason = shard_fault(path, record.digest)
        if reason is not None:
            if record in self._source.catalog.shards(record.view):
                self._report.damaged.append(f"{path.relative_to(layout.root)}: {reason}")
            # Else it was retired and deleted meanwhile: its texts are in another one.
            return
        shard = Shard(path)
        if self._target.reader(shard.view).contains(shard.keys).all():
            # Merged there, or here: under other names, but they are all there.
            self._report.present += 1
            return
        target = other.shard_path(record.view, record.digest)
        copied = ShardRecord(
            record.digest, record.view, len(shard), shard.num_tokens, path.stat().st_size
        )
        while True:
            _publish_copy(path, target, other.tmp)
            if not self._target.catalog.add_shard(copied, target):
                break
        self._report.shards += 1
        self._report.texts += copied.num_texts
        self._report.bytes += copied.num_bytes

    def dataset(self, record: DatasetRecord, views: set[str]) -> None:
        """A dataset version, registered with its builds under the views that were copied."""
        folder = self._source.layout.dataset_path(record.version)
        target = self._target.layout.dataset_path(record.version)
        catalog = self._target.catalog
        known = {(other.name, other.version) for other in catalog.datasets()}
        try:
            if not is_whole(target):
                delete_path(self._target.layout, target)
                _publish_dataset(folder, target, self._target.layout.tmp)
        except CorruptShardError as error:
            self._report.damaged.append(str(error))
            return
        builds = [
            build
            for build in self._source.catalog.builds()
            if (build.dataset, build.version) == (record.name, record.version)
            and build.view in views
        ]
        catalog.import_dataset(record, builds)
        self._report.datasets += (record.name, record.version) not in known


def _publish_copy(path: Path, target: Path, tmp_folder: Path) -> None:
    """Publish a copy of a file."""
    with mapped_os_errors(path), path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = memoryview(mapped)
    chunks = [whole[start : start + _COPY_BYTES] for start in range(0, len(whole), _COPY_BYTES)]
    publish_file(chunks, target, tmp_folder=tmp_folder)


def _publish_dataset(folder: Path, target: Path, tmp_folder: Path) -> None:
    """Publish a copy of a dataset's folder, once the copy is known to be whole.

    Raises:
        CorruptShardError: if it is missing or damaged.
        StoreError: if the device refuses.
    """
    load_dataset("", folder.name, folder)
    make_folder(tmp_folder)
    make_folder(target.parent)
    copy = tmp_folder / uuid.uuid4().hex
    try:
        with mapped_os_errors(copy):
            copy.mkdir(mode=FOLDER_MODE)
            for path in sorted(folder.iterdir()):
                _copy_file(path, copy / path.name)
            sync_folder(copy)
        load_dataset("", folder.name, copy)
        with mapped_os_errors(target):
            try:
                copy.rename(target)
            except OSError:
                # Another process published the same version in between.
                if not target.is_dir():
                    raise
            sync_folder(target.parent)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _copy_file(path: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with path.open("rb") as source, os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(source, copy, _COPY_BYTES)
        copy.flush()
        os.fsync(copy.fileno())
