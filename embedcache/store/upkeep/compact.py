"""Merging the small shards of a view into large ones, each text once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedcache.store.database.records import ShardRecord, ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.membership import first_copies
from embedcache.store.upkeep.retired import GRACE_S, SweepReport, sweep
from embedcache.store.upkeep.rewrite import (
    ProgressCallback,
    Rewrite,
    Target,
    facts_of,
    key_source,
    rewrite_shards,
)
from embedcache.store.upkeep.shard_facts import ShardFacts
from embedcache.store.writer import WriterLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactOptions:
    """What compacting may be told.

    Attributes:
        limits: When new shards close; its age, encoding and compression do not count.
        encoding: ``"dense"`` or ``"dictionary"``: shards of the other one are written anew;
            ``"auto"``: those of either are merged among themselves.
        compression: ``"none"`` or ``"zstd"``, in the same way; None for "auto".
        grace_s: Seconds that the files of retired shards stay.
    """

    limits: WriterLimits = field(default_factory=WriterLimits)
    encoding: str = "auto"
    compression: str | None = None
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What compacting one view did.

    Attributes:
        view: The view's fingerprint.
        module: Its module's handle.
        shards_before: Shards that it had.
        shards_after: Shards that it has.
        bytes_before: Size of those that were rewritten.
        bytes_after: Size of what they became.
        rewritten: Shards that were rewritten.
        duplicates: Texts that lay twice and do no more.
    """

    view: str
    module: str
    shards_before: int
    shards_after: int
    bytes_before: int
    bytes_after: int
    rewritten: int
    duplicates: int


def compact_store(
    store: FeatureStore,
    *,
    view: str | None = None,
    options: CompactOptions | None = None,
    on_progress: ProgressCallback = lambda _texts: None,
) -> tuple[list[CompactReport], SweepReport]:
    """Merge small shards, drop texts that lie twice, and delete what was retired long ago.

    Only shards that gain by it are touched; where there are none, nothing is written.
    Builders and readers may go on meanwhile.

    Args:
        store: An open store.
        view: Fingerprint of a view or its beginning; None: all.
        options: Everything else.
        on_progress: Called after each piece that was read.

    Returns:
        What was done under each view, and what was deleted.

    Raises:
        StoreLockedError: if another maintenance is at work.
        CorruptShardError: if a shard is missing or damaged: `verify_store` mends that.
        StoreError: if the device refuses.
    """
    options = options or CompactOptions()
    records = store.catalog.views() if view is None else [store.catalog.find_view(view)]
    with maintenance_lock(store.layout):
        reports = [_compact_view(store, record, options, on_progress) for record in records]
        swept = sweep(store.layout, store.catalog, grace_s=options.grace_s)
    return reports, swept


def _compact_view(
    store: FeatureStore,
    record: ViewRecord,
    options: CompactOptions,
    on_progress: ProgressCallback,
) -> CompactReport:
    # Large ones first: of two copies of a text the one that stays is where it lies best.
    before = store.catalog.shards(record.fingerprint)
    shards = sorted(before, key=lambda shard: -shard.num_bytes)
    masks = first_copies(
        [key_source(store, shard) for shard in shards], sum(shard.num_texts for shard in shards)
    )
    rewrites = [Rewrite(shard, mask) for shard, mask in zip(shards, masks, strict=True)]
    published: list[ShardRecord] = []
    chosen: list[Rewrite] = []
    for group, limits in _groups(store, rewrites, options):
        chosen += group
        done = rewrite_shards(store, record.view, group, limits=limits, on_progress=on_progress)
        published += done.published
    if chosen:
        store.reader(record).save_index()
    return CompactReport(
        view=record.fingerprint,
        module=record.handle,
        shards_before=len(before),
        shards_after=len(store.catalog.shards(record.fingerprint)),
        bytes_before=sum(rewrite.record.num_bytes for rewrite in chosen),
        bytes_after=sum(shard.num_bytes for shard in published),
        rewritten=len(chosen),
        duplicates=sum(int(np.count_nonzero(~rewrite.keep)) for rewrite in chosen),
    )


def _groups(
    store: FeatureStore, rewrites: Sequence[Rewrite], options: CompactOptions
) -> Iterator[tuple[list[Rewrite], WriterLimits]]:
    """The shards that are to become new ones together, with the limits for these."""
    groups: dict[Target, list[tuple[Rewrite, ShardFacts]]] = defaultdict(list)
    for rewrite in rewrites:
        facts = facts_of(store, rewrite.record)
        groups[_target_of(facts, options)].append((rewrite, facts))
    for target, members in sorted(groups.items(), key=lambda item: item[0]):
        chosen = _worth_it(members, target, options.limits)
        if chosen:
            yield chosen, target.limits(options.limits)


def _target_of(facts: ShardFacts, options: CompactOptions) -> Target:
    rows = {"auto": facts.rows, "dense": "values", "dictionary": "codes"}[options.encoding]
    kind = (rows, *(name for name in facts.kind if name != facts.rows))
    return Target(kind, options.compression or facts.compression)


def _worth_it(
    members: Sequence[tuple[Rewrite, ShardFacts]], target: Target, limits: WriterLimits
) -> list[Rewrite]:
    """The shards that gain by being rewritten; none of one target if only one is small."""
    changed, small = [], []
    for rewrite, facts in members:
        is_other = facts.rows != target.kind[0] or facts.compression != target.compression
        if is_other or not rewrite.keep.all():
            changed.append(rewrite)
        elif (
            facts.num_bytes < limits.max_shard_bytes / 2
            and rewrite.record.num_texts < limits.max_texts / 2
        ):
            small.append(rewrite)
    # Merged, small ones make fewer, and at most one small one is left; alone it stays.
    written = [rewrite for rewrite in changed if rewrite.keep.any()]
    return [*changed, *small] if len(written) + len(small) > 1 else changed
