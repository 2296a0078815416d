"""What a store takes, by kind: ``store info``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from embedcache.store.database.records import ShardRecord
from embedcache.store.layout import STORE_VERSION
from embedcache.store.publish import mapped_os_errors
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.adopt import orphan_shards
from embedcache.store.upkeep.garbage import size_of


def store_inventory(store: FeatureStore) -> dict[str, Any]:
    """What a store takes, by kind: ``store info --json``. Nothing is read but sizes.

    ``bytes`` holds ``live`` (shards that the catalog names) and of these ``unreferenced``
    (under a view that no dataset was built or read under; `plan_gc` looks at each text);
    ``retired`` (shards that wait to be deleted), ``orphans`` (files among the shards that the
    catalog does not name), ``index``, ``datasets``, ``runs``, ``checkpoints``, ``sweeps``,
    ``tmp``, ``quarantine`` and ``catalog``. ``oldest`` and ``newest`` are when the first and the
    last shard were catalogued, in seconds since 1970, or None.

    Raises:
        StoreError: if the store cannot be read.
    """
    shards = store.catalog.shards()
    with mapped_os_errors(store.layout.root):
        free_bytes = shutil.disk_usage(store.layout.root).free
    times = [record.created_at for record in shards]
    return {
        "path": str(store.path),
        "version": STORE_VERSION,
        "catalog_version": store.catalog.version,
        "views": len(store.catalog.views()),
        "shards": len(shards),
        "texts": sum(record.num_texts for record in shards),
        **store.catalog.count(),
        "bytes": _bytes_by_kind(store, shards),
        "free_bytes": free_bytes,
        "oldest": min(times, default=None),
        "newest": max(times, default=None),
    }


def _bytes_by_kind(store: FeatureStore, shards: Sequence[ShardRecord]) -> dict[str, int]:
    layout, catalog = store.layout, store.catalog
    versions = {record.version for record in catalog.datasets()}
    used = {use.view for use in catalog.uses() if use.version in versions}
    used |= {build.view for build in catalog.builds() if build.version in versions}
    return {
        "live": sum(record.num_bytes for record in shards),
        "unreferenced": sum(record.num_bytes for record in shards if record.view not in used),
        "retired": sum(record.num_bytes for record in catalog.retired()),
        "orphans": sum(map(size_of, orphan_shards(layout, catalog))),
        "index": size_of(layout.index),
        "datasets": size_of(layout.datasets),
        "runs": size_of(layout.runs),
        "checkpoints": size_of(layout.checkpoints),
        "sweeps": size_of(layout.sweeps),
        "tmp": size_of(layout.tmp),
        "quarantine": size_of(layout.quarantine),
        "catalog": size_of(layout.catalog),
    }
