"""Deleting the files of what the catalog has retired, once nobody can be about to open them.

Deletion runs catalog first: a transaction retires a shard, and its file is deleted when a
grace period has passed, in which a reader of another process that asked the catalog before
may still open it. One that has it open already keeps it as long as it likes.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from embedcache.store.database.catalog import Catalog
from embedcache.store.database.catalog_shards import DATASET, SHARD
from embedcache.store.database.records import RetiredRecord
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import find_files, make_folder, mapped_os_errors, sync_folder

GRACE_S = 3600.0
"""A reader opens what the catalog told it within seconds; a suspended laptop takes longer."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep deleted, and what it left for a later one.

    Attributes:
        files: Shards and datasets deleted.
        bytes: Their size.
        waiting_files: Those whose grace period has not passed.
        waiting_bytes: Their size.
    """

    files: int = 0
    bytes: int = 0
    waiting_files: int = 0
    waiting_bytes: int = 0


def retired_path(layout: StoreLayout, record: RetiredRecord) -> Path:
    """The file of a retired shard, or the folder of a retired dataset."""
    if record.kind == DATASET:
        return layout.dataset_path(record.digest)
    return layout.shard_path(record.view, record.digest)


def plan_sweep(records: Iterable[RetiredRecord], *, grace_s: float) -> SweepReport:
    """What a sweep would delete now."""
    before = time.time() - grace_s
    ripe: list[int] = []
    waiting: list[int] = []
    for record in records:
        (ripe if record.retired_at <= before else waiting).append(record.num_bytes)
    return SweepReport(len(ripe), sum(ripe), len(waiting), sum(waiting))


def sweep(
    layout: StoreLayout,
    catalog: Catalog,
    *,
    grace_s: float = GRACE_S,
    kinds: Collection[str] = (SHARD, DATASET),
) -> SweepReport:
    """Delete the files of what was retired longer ago than the grace period.

    A kill at any point leaves a file, or the row of one that is gone; the next sweep goes on.

    Args:
        layout: The store's.
        catalog: The store's.
        grace_s: Seconds; 0 for at once.
        kinds: What is deleted.

    Raises:
        StoreError: if the store cannot be written.
    """
    before, deleted = time.time() - grace_s, []
    for record in catalog.retired():
        if record.kind not in kinds:
            continue
        path = retired_path(layout, record)

        def remove(path: Path = path) -> None:
            delete_path(layout, path)

        if catalog.delete_retired(record, before=before, remove=remove):
            deleted.append(record.num_bytes)
    waiting = [record.num_bytes for record in catalog.retired()]
    return SweepReport(len(deleted), sum(deleted), len(waiting), sum(waiting))


def delete_path(layout: StoreLayout, path: Path) -> None:
    """Delete a file or a folder, durably: no power loss brings it back. Fine if it is gone.

    A folder is renamed first, so that nobody finds half of it.

    Raises:
        StoreError: if the device refuses.
    """
    with mapped_os_errors(path):
        try:
            if path.is_dir() and not path.is_symlink():
                make_folder(layout.tmp)
                doomed = layout.tmp / uuid.uuid4().hex
                os.replace(path, doomed)
                sync_folder(path.parent)
                shutil.rmtree(doomed)
            else:
                path.unlink()
                sync_folder(path.parent)
        except FileNotFoundError:
            return


def delete_index(layout: StoreLayout, view: str) -> None:
    """Delete the files of a view's index, durably; it is made anew from the shards.

    Raises:
        StoreError: if the device refuses.
    """
    for path in find_files(layout.index, f"{view}.*"):
        delete_path(layout, path)
