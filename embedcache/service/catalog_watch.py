"""What a service knows of its store's catalog, and whether that may have changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import UnknownNameError
from embedcache.service.served_run import ServedRun, read_runs
from embedcache.service.settings import ServiceSettings
from embedcache.store.database.records import ShardRecord, ViewRecord
from embedcache.store.store import FeatureStore

_CHANGE_COUNTER = (24, 4)
"""Offset and bytes of SQLite's file change counter, which every transaction increments:
https://www.sqlite.org/fileformat.html#file_change_counter."""


@dataclass(frozen=True, slots=True)
class NamedView:
    """A view that is served, as it was asked for.

    Attributes:
        alias: What it is called besides its fingerprint; None: nothing.
        record: The view.
        shards: Its shards.
    """

    alias: str | None
    record: ViewRecord
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """What of the catalog concerns a service.

    Attributes:
        views: The views that are served, the default one first.
        runs: All runs whose files are there, oldest first.
    """

    views: tuple[NamedView, ...]
    runs: tuple[ServedRun, ...]


def catalog_stamp(path: Path) -> tuple[int, ...]:
    """What differs after every transaction of the catalog; costs two system calls or three.

    Raises:
        OSError: if it cannot be read.
    """
    offset, size = _CHANGE_COUNTER
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The counter too: two transactions may come within a tick of the clock of files.
        found = os.fstat(descriptor)
        counter = int.from_bytes(os.pread(descriptor, size, offset), "big")
    finally:
        os.close(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns, counter


def read_catalog(
    store: FeatureStore, settings: ServiceSettings, runs: Mapping[str, ServedRun]
) -> CatalogSnapshot:
    """Ask the catalog.

    Views that were asked for by name and are not there any more are left out.

    Args:
        store: An open store.
        settings: Which views are served.
        runs: Runs that are known, by name.

    Raises:
        StoreError: if it cannot be read.
    """
    known = store.catalog.views()
    named: list[tuple[str | None, ViewRecord]] = []
    for name in settings.views:
        alias, record = choose_view(name, known)
        if record is not None:
            named.append((alias, record))
    if not settings.views:
        named = [(None, record) for record in _newest_first(store, known)]
    views = tuple(
        NamedView(alias, record, tuple(store.catalog.shards(record.fingerprint)))
        for alias, record in named
    )
    return CatalogSnapshot(views, read_runs(store, runs))


def check_names(store: FeatureStore, settings: ServiceSettings) -> None:
    """Raise unless every view and run that is to be served is there.

    Raises:
        UnknownNameError: if one is not; lists those there are.
    """
    known = store.catalog.views()
    for name in settings.views:
        if choose_view(name, known)[1] is None:
            # Says what there is, and whether the name fits several.
            store.catalog.find_view(_split_alias(name)[1])
            raise UnknownNameError(f"several views are of module {name!r}; name one of them")
    for run in settings.runs:
        store.catalog.find_run(run)


def choose_view(name: str, known: Sequence[ViewRecord]) -> tuple[str | None, ViewRecord | None]:
    """The alias, and the one view that a fingerprint, its beginning or a handle means.

    Args:
        name: ``"VIEW"`` or ``"ALIAS=VIEW"``.
        known: All views.

    Returns:
        None for an alias that is not given, and for a view where there is none, or several.
    """
    alias, wanted = _split_alias(name)
    if not wanted:
        return alias, None
    by_prefix = [record for record in known if record.fingerprint.startswith(wanted)]
    found = by_prefix or [record for record in known if record.handle == wanted]
    return alias, found[0] if len(found) == 1 else None


def _split_alias(name: str) -> tuple[str | None, str]:
    # A handle may have "=" in it, after a "?" of a URL or in a folder's name.
    alias, equals, wanted = name.partition("=")
    if not equals or any(mark in alias for mark in "/:?"):
        return None, name
    return alias or None, wanted


def _newest_first(store: FeatureStore, known: Sequence[ViewRecord]) -> list[ViewRecord]:
    """All views; the one that is the default where nobody names one comes first."""
    if not known:
        return []
    default = store.newest_view()
    return sorted(known, key=lambda record: record.fingerprint != default)
