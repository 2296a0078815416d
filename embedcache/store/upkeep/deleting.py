"""Deleting datasets and views by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedcache.errors import UnknownNameError
from embedcache.store.database.catalog_shards import DATASET
from embedcache.store.database.records import DatasetRecord, ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.garbage import size_of
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.retired import GRACE_S, SweepReport, delete_index, sweep


@dataclass(frozen=True, slots=True)
class DeletedDatasets:
    """What deleting dataset versions did.

    Attributes:
        records: The versions that were registered, and are no more.
        num_bytes: Size of the files deleted; those of a version that has another name stay.
    """

    records: tuple[DatasetRecord, ...]
    num_bytes: int


def find_versions(store: FeatureStore, name: str, *, every: bool) -> list[DatasetRecord]:
    """The dataset versions that a name stands for.

    Args:
        store: An open store.
        name: ``NAME`` or ``NAME@VERSION``.
        every: Whether a name may stand for several versions.

    Raises:
        UnknownNameError: if it stands for none, or for several and may not.
    """
    found = store.catalog.find_dataset(name)
    if found.name != name:
        return [found]
    versions = [record for record in store.catalog.datasets() if record.name == name]
    if len(versions) > 1 and not every:
        names = ", ".join(f"{name}@{record.version[:12]}" for record in versions)
        raise UnknownNameError(
            f"dataset {name!r} has {len(versions)} versions: {names}; name one of them, or all of"
            " them with --all"
        )
    return versions


def delete_datasets(store: FeatureStore, records: Sequence[DatasetRecord]) -> DeletedDatasets:
    """Forget dataset versions and delete their files; features and runs stay.

    Raises:
        StoreLockedError: if another maintenance is at work.
        StoreError: if the store cannot be written.
    """
    num_bytes = 0
    with maintenance_lock(store.layout):
        for record in records:
            size = size_of(store.layout.dataset_path(record.version))
            if store.catalog.remove_dataset(record.name, record.version, num_bytes=size):
                num_bytes += size
        # At once: who has one mapped keeps it.
        sweep(store.layout, store.catalog, grace_s=0.0, kinds=(DATASET,))
    return DeletedDatasets(tuple(records), num_bytes)


def delete_view(store: FeatureStore, view: ViewRecord, *, grace_s: float = GRACE_S) -> SweepReport:
    """Forget a view, its features, builds and uses; datasets and runs stay.

    Args:
        store: An open store.
        view: Which.
        grace_s: Seconds that the files stay, for readers that are about to open them.

    Returns:
        The files that were deleted, and that wait.

    Raises:
        StoreLockedError: if another maintenance is at work.
        StoreError: if the store cannot be written.
    """
    with maintenance_lock(store.layout):
        store.catalog.remove_view(view.fingerprint)
        delete_index(store.layout, view.fingerprint)
        return sweep(store.layout, store.catalog, grace_s=grace_s)
