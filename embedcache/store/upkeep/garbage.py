"""Files of a store that nothing names: what kills, crashes and deleted views leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from embedcache.store.database.catalog import Catalog
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import find_files
from embedcache.store.upkeep.adopt import orphan_shards
from embedcache.store.upkeep.retired import delete_path

ORPHAN_AGE_S = 86400.0
"""Nothing is written for so long without being touched, nor published without being catalogued."""
QUARANTINE_AGE_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file or a folder that nothing needs.

    Attributes:
        kind: ``"orphan"``, a file among the shards that the catalog does not name; ``"tmp"``,
            what was being written; ``"index"``, of a view that is not known any more;
            ``"quarantine"``, what was put aside.
        path: Where it lies.
        num_bytes: Its size.
    """

    kind: str
    path: Path
    num_bytes: int


def find_garbage(
    layout: StoreLayout, catalog: Catalog, *, quarantine: bool = False
) -> list[Garbage]:
    """What may be deleted now, each kind once it is old enough.

    Args:
        layout: The store's.
        catalog: The store's.
        quarantine: Whether what was put aside thirty days ago is garbage too.
    """
    found = [
        Garbage(kind, path, size_of(path))
        for kind, path in _candidates(layout, catalog)
        if _age_of(path) > ORPHAN_AGE_S
    ]
    if quarantine:
        found += [
            Garbage("quarantine", path, size_of(path))
            for path in find_files(layout.quarantine, "*")
            if _age_of(path) > QUARANTINE_AGE_S
        ]
    known = {record.fingerprint for record in catalog.views()}
    found += [
        Garbage("index", path, size_of(path))
        for path in find_files(layout.index, "*")
        # Derived, so it need not be old.
        if path.name.split(".")[0] not in known
    ]
    return found


def _candidates(layout: StoreLayout, catalog: Catalog) -> Iterator[tuple[str, Path]]:
    yield from (("orphan", path) for path in orphan_shards(layout, catalog))
    yield from (("tmp", path) for path in find_files(layout.tmp, "*"))


def delete_garbage(layout: StoreLayout, catalog: Catalog, garbage: Garbage) -> bool:
    """Delete it, unless it has come into use since it was found; whether it was deleted.

    Raises:
        StoreError: if the store cannot be written.
    """
    path = garbage.path

    def remove() -> None:
        delete_path(layout, path)

    if garbage.kind in ("orphan", "tmp") and _age_of(path) <= ORPHAN_AGE_S:
        return False
    if garbage.kind == "orphan":
        return catalog.delete_unnamed(path.stem, remove)
    remove()
    return True


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder; what vanishes meanwhile counts nothing."""
    return sum(found.st_size for found in _stats_of(path))


def _age_of(path: Path) -> float:
    """Seconds since a file, or the youngest in a folder, was written; 0 if it is gone."""
    times = [found.st_mtime for found in _stats_of(path)]
    return time.time() - max(times) if times else 0.0


def _stats_of(path: Path) -> list[os.stat_result]:
    found = []
    with suppress(OSError):
        found.append(path.lstat())
    if path.is_dir() and not path.is_symlink():
        # The folder itself is as old as its youngest entry, at least; its size is no data.
        found = [inner for entry in find_files(path, "*") for inner in _stats_of(entry)] or found
    return found
