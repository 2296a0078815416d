"""Collecting what no dataset uses, by reference; and down to a size, what was used longest ago.

A text is used under a view if a registered dataset that has it was built or read under that
view, or if a build that is at work has read it. Each text's *rank* is the place of its most
recently used dataset among all uses, so that everything below a rank can be dropped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedcache.store.database.records import ShardRecord, UseRecord, ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.garbage import Garbage, delete_garbage, find_garbage
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.membership import NOWHERE, RankedKeys, ranks_of
from embedcache.store.upkeep.module_garbage import ModuleGarbage, find_module_garbage
from embedcache.store.upkeep.references import References, find_references
from embedcache.store.upkeep.retired import GRACE_S, SweepReport, plan_sweep, sweep
from embedcache.store.upkeep.rewrite import (
    ProgressCallback,
    Rewrite,
    key_source,
    open_shard,
    rewrite_as_they_are,
    without_repeats,
)

WORTH_SHARE = 0.2
"""A shard is rewritten if a fifth of it is unused: up to four bytes are written then for each
that is freed. At a tenth it would be nine, and a shard would be rewritten again and again as
its datasets go one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcOptions:
    """What collecting may be told.

    Attributes:
        max_bytes: Drop the features of the datasets that were used longest ago until all
            shards together have no more; None: only what no dataset uses.
        grace_s: Seconds that the files of retired shards stay, and that a shard has to be
            old before anything of it is collected.
        quarantine: Whether what was put aside thirty days ago is deleted too.
    """

    max_bytes: int | None = None
    grace_s: float = GRACE_S
    quarantine: bool = False


@dataclass(frozen=True, slots=True)
class ViewGarbage:
    """What is to go of one view.

    Attributes:
        record: The view.
        texts: Texts that it has, those that lie twice counted twice.
        num_bytes: Size of its shards.
        unused_texts: Those of them that are to go.
        unused_bytes: About their size.
        retire: Shards that go wholly.
        rewrites: Shards that are written anew without the texts that go.
        freed_bytes: About what both free.
        young_bytes: Size of the shards that are too young to be looked at.
    """

    record: ViewRecord
    texts: int
    num_bytes: int
    unused_texts: int
    unused_bytes: int
    retire: tuple[ShardRecord, ...]
    rewrites: tuple[Rewrite, ...]
    freed_bytes: int
    young_bytes: int


@dataclass(frozen=True, slots=True)
class DroppedUse:
    """A dataset's features under a view that go for the sake of the size.

    Attributes:
        use: Which, and when they were used.
        num_bytes: About the size of what nothing used since uses too.
    """

    use: UseRecord
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What collecting would do.

    Attributes:
        views: Each view.
        dropped: The datasets' features that go for the sake of the size.
        garbage: Files that nothing names.
        modules: What is known of modules that nothing names.
        sweep: What was retired before and would be deleted.
        references: What keeps the rest.
    """

    views: tuple[ViewGarbage, ...]
    dropped: tuple[DroppedUse, ...]
    garbage: tuple[Garbage, ...]
    modules: ModuleGarbage
    sweep: SweepReport
    references: References

    @property
    def bytes_before(self) -> int:
        """Size of all shards."""
        return sum(view.num_bytes for view in self.views)

    @property
    def bytes_after(self) -> int:
        """About what is left of them."""
        return self.bytes_before - sum(view.freed_bytes for view in self.views)


@dataclass(slots=True)
class GcReport:
    """What collecting did.

    Attributes:
        retired: Shards retired.
        rewritten_bytes: Size of the new shards.
        deleted: Files deleted that nothing named.
        sweep: Files of retired shards and datasets deleted, and those that wait.
    """

    retired: int = 0
    rewritten_bytes: int = 0
    deleted: list[Garbage] = field(default_factory=list)
    sweep: SweepReport = field(default_factory=SweepReport)


def plan_gc(store: FeatureStore, options: GcOptions | None = None) -> GcPlan:
    """Find what could be collected; nothing is written.

    Raises:
        CorruptShardError: if a dataset or a shard is missing or damaged.
        StoreError: if the store cannot be read.
    """
    options = options or GcOptions()
    references = find_references(store)
    found = [
        _rank_view(store, record, references, grace_s=options.grace_s)
        for record in store.catalog.views()
    ]
    shards = [shard for view in found for shard in view.shards]
    cutoff = NOWHERE
    if options.max_bytes is not None:
        young_bytes = sum(shard.num_bytes for view in found for shard in view.young)
        cutoff = _cutoff(shards, len(references.uses), options.max_bytes - young_bytes)
    sizes = [sum(shard.bytes_with(rank) for shard in shards) for rank in range(cutoff + 1)]
    return GcPlan(
        views=tuple(view.garbage(cutoff) for view in found),
        dropped=tuple(
            DroppedUse(use, round(size))
            for use, size in zip(references.uses, sizes, strict=False)
            if size
        ),
        garbage=tuple(find_garbage(store.layout, store.catalog, quarantine=options.quarantine)),
        modules=find_module_garbage(store.catalog),
        sweep=plan_sweep(store.catalog.retired(), grace_s=options.grace_s),
        references=references,
    )


def collect_garbage(
    store: FeatureStore,
    options: GcOptions | None = None,
    *,
    on_progress: ProgressCallback = lambda _texts: None,
) -> tuple[GcPlan, GcReport]:
    """Do what `plan_gc` finds.

    New shards are durable before old ones are retired, and files are deleted last: a crash at
    any point loses nothing that is used. Builders and readers may go on meanwhile.

    Returns:
        What was found, and what was done.

    Raises:
        StoreLockedError: if another maintenance is at work.
        CorruptShardError: if a dataset or a shard is missing or damaged.
        StoreError: if the device refuses.
    """
    options = options or GcOptions()
    report = GcReport()
    with maintenance_lock(store.layout):
        plan = plan_gc(store, options)
        guard = _Guard(store, plan.references)
        for view in plan.views:
            _collect_view(store, view, guard, report, on_progress)
        for garbage in plan.garbage:
            if delete_garbage(store.layout, store.catalog, garbage):
                report.deleted.append(garbage)
        if plan.modules:
            store.catalog.forget_modules(
                paths=plan.modules.paths, digests=tuple(plan.modules.facts)
            )
        report.sweep = sweep(store.layout, store.catalog, grace_s=options.grace_s)
    return plan, report


def _collect_view(
    store: FeatureStore,
    view: ViewGarbage,
    guard: _Guard,
    report: GcReport,
    on_progress: ProgressCallback,
) -> None:
    if not view.retire and not view.rewrites:
        return
    whole = [
        shard.digest
        for shard in view.retire
        if guard(Rewrite(shard, np.zeros(shard.num_texts, np.bool_)))
    ]
    report.retired += len(store.catalog.retire_shards(whole))
    if view.rewrites:
        done = rewrite_as_they_are(
            store,
            view.record.view,
            without_repeats(store, view.rewrites),
            may_retire=guard,
            on_progress=on_progress,
        )
        report.retired += len(done.retired)
        report.rewritten_bytes += sum(shard.num_bytes for shard in done.published)
    store.reader(view.record).save_index()


class _Guard:
    """Says at the last moment whether what is dropped of a shard is still unused.

    A build that began meanwhile may have found a text in the store that is about to go.
    """

    def __init__(self, store: FeatureStore, before: References) -> None:
        self._store = store
        self._before = before

    def __call__(self, rewrite: Rewrite) -> bool:
        known = self._before.datasets
        now = find_references(self._store, known)
        new: list[RankedKeys] = [
            keys for version, keys in now.datasets.items() if version not in known
        ]
        # Of builds at work all: they have read on.
        new += now.protected
        if not new:
            return True
        dropped = np.flatnonzero(~rewrite.keep)
        keys = open_shard(self._store, rewrite.record).keys[dropped]
        (ranks,) = ranks_of([lambda: keys], len(keys), new)
        return bool((ranks == NOWHERE).all())


@dataclass(frozen=True, slots=True)
class _RankedShard:
    """A shard with the rank of each of its texts.

    Attributes:
        record: The shard.
        ranks: Of each text, (n,).
        bytes_of_rank: About how many of its bytes have each rank, from `NOWHERE` on.
    """

    record: ShardRecord
    ranks: NDArray[np.int32]
    bytes_of_rank: NDArray[np.float64]

    def bytes_with(self, rank: int) -> float:
        """About what the texts of one rank take."""
        place = rank - NOWHERE
        return float(self.bytes_of_rank[place]) if place < len(self.bytes_of_rank) else 0.0

    def dropped_bytes(self, cutoff: int) -> float:
        """About what the texts up to a rank take."""
        return float(self.bytes_of_rank[: cutoff - NOWHERE + 1].sum())

    def freed_bytes(self, cutoff: int) -> float:
        """About what dropping them frees: nothing, if too few for the shard to be rewritten."""
        dropped = self.dropped_bytes(cutoff)
        is_worth_it = dropped >= WORTH_SHARE * self.record.num_bytes
        return dropped if is_worth_it else 0.0


@dataclass(frozen=True, slots=True)
class _RankedView:
    """A view's shards with ranks, and those that are too young."""

    record: ViewRecord
    shards: tuple[_RankedShard, ...]
    young: tuple[ShardRecord, ...]

    def garbage(self, cutoff: int) -> ViewGarbage:
        """What is to go if everything up to a rank goes."""
        retire: list[ShardRecord] = []
        rewrites: list[Rewrite] = []
        for shard in self.shards:
            keep = shard.ranks > cutoff
            if not keep.any():
                retire.append(shard.record)
            elif shard.freed_bytes(cutoff):
                rewrites.append(Rewrite(shard.record, keep))
        records = [*(shard.record for shard in self.shards), *self.young]
        unused = [int(np.count_nonzero(shard.ranks <= cutoff)) for shard in self.shards]
        return ViewGarbage(
            record=self.record,
            texts=sum(record.num_texts for record in records),
            num_bytes=sum(record.num_bytes for record in records),
            unused_texts=sum(unused),
            unused_bytes=round(sum(shard.dropped_bytes(cutoff) for shard in self.shards)),
            retire=tuple(retire),
            rewrites=tuple(rewrites),
            freed_bytes=round(sum(shard.freed_bytes(cutoff) for shard in self.shards)),
            young_bytes=sum(record.num_bytes for record in self.young),
        )


def _rank_view(
    store: FeatureStore, record: ViewRecord, references: References, *, grace_s: float
) -> _RankedView:
    """The ranks of the texts of all shards of a view that are old enough."""
    before = time.time() - grace_s
    records = store.catalog.shards(record.fingerprint)
    old = [shard for shard in records if shard.created_at <= before]
    ranks = ranks_of(
        [key_source(store, shard) for shard in old],
        sum(shard.num_texts for shard in old),
        references.keys_of_view(record.fingerprint),
    )
    shards = [_ranked(store, shard, found) for shard, found in zip(old, ranks, strict=True)]
    young = tuple(shard for shard in records if shard.created_at > before)
    return _RankedView(record, tuple(shards), young)


def _ranked(store: FeatureStore, record: ShardRecord, ranks: NDArray[np.int32]) -> _RankedShard:
    # A text without tokens takes something too: its key.
    weights = np.diff(open_shard(store, record).row_splits) + 1.0
    weights *= record.num_bytes / max(1.0, float(weights.sum()))
    sizes = np.bincount(ranks - NOWHERE, weights, minlength=1).astype(np.float64)
    return _RankedShard(record, ranks, sizes)


def _cutoff(shards: Sequence[_RankedShard], num_uses: int, max_bytes: int) -> int:
    """The least rank up to which all has to go for the rest to fit.

    If it cannot fit, the least one that frees the most.
    """
    total = sum(shard.record.num_bytes for shard in shards)
    best, most = NOWHERE, -1.0
    for cutoff in range(NOWHERE, num_uses):
        freed = sum(shard.freed_bytes(cutoff) for shard in shards)
        if freed > most:
            best, most = cutoff, freed
        if total - freed <= max_bytes:
            break
    return best
