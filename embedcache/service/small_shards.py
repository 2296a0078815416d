"""Merging the many small shards that single misses leave, at a cost that does not grow.

`compact_store` reads the keys of every shard of a view and makes the largest shards there can
be: right for a command, but not for what a service does every few minutes. Here only small
shards are read, and what they become is soon too large to be read again.
"""

from __future__ import annotations

from collections import defaultdict

from embedcache.store.database.records import ShardRecord, ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.membership import first_copies
from embedcache.store.upkeep.retired import sweep
from embedcache.store.upkeep.rewrite import (
    Rewrite,
    Target,
    facts_of,
    key_source,
    rewrite_shards,
)
from embedcache.store.writer import WriterLimits

SMALL_BYTES = 8 << 20
"""A shard below this is small. Merged again and again, a text is written some ten times until
it lies in one that is not, where 64 shards of one text each come at a time."""


def count_small_shards(store: FeatureStore, view: str) -> int:
    """How many small shards a view (its fingerprint) has."""
    return len(_small_shards(store, view))


def compact_small_shards(store: FeatureStore, record: ViewRecord) -> int:
    """Merge the small shards of a view, and delete files that were retired long ago.

    Readers and builders may go on meanwhile. Memory is bounded by twice `SMALL_BYTES`.

    Returns:
        How many were merged.

    Raises:
        StoreLockedError: if another maintenance is at work.
        CorruptShardError: if a shard is missing or damaged.
        StoreError: if the device refuses.
    """
    merged = 0
    with maintenance_lock(store.layout):
        shards = _small_shards(store, record.fingerprint)
        sources = [key_source(store, shard) for shard in shards]
        masks = first_copies(sources, sum(shard.num_texts for shard in shards))
        groups: dict[Target, list[Rewrite]] = defaultdict(list)
        for shard, mask in zip(shards, masks, strict=True):
            facts = facts_of(store, shard)
            groups[Target(facts.kind, facts.compression)].append(Rewrite(shard, mask))
        for target, rewrites in sorted(groups.items(), key=lambda item: item[0]):
            if len(rewrites) > 1:
                limits = target.limits(WriterLimits(max_shard_bytes=2 * SMALL_BYTES))
                rewrite_shards(store, record.view, rewrites, limits=limits)
                merged += len(rewrites)
        sweep(store.layout, store.catalog)
    if merged:
        store.reader(record).save_index()
    return merged


def _small_shards(store: FeatureStore, view: str) -> list[ShardRecord]:
    """The small shards of a view, the largest first: of two copies of a text one stays there."""
    shards = store.catalog.shards(view)
    small = [shard for shard in shards if shard.num_bytes < SMALL_BYTES]
    return sorted(small, key=lambda shard: -shard.num_bytes)
