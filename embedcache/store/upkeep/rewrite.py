"""Some texts of some shards into new shards, and the old ones retired.

The new shards are durable and catalogued before an old one is retired: a crash in between
leaves texts that lie twice, which is legal, and `compact` drops the second.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys
from embedcache.ragged import expand_ranges
from embedcache.store.database.records import RetiredRecord, ShardRecord
from embedcache.store.shards.codec import STORAGE_DTYPES, row_width
from embedcache.store.shards.row_table import RowTable
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore
from embedcache.store.upkeep.membership import KeySource, first_copies
from embedcache.store.upkeep.shard_facts import ShardFacts, shard_facts
from embedcache.store.writer import ShardWriter, WriterLimits
from embedcache.view import FeatureView

_PIECE_BYTES = 32 << 20
"""What is read of a shard at a time; a writer holds it until its own shard is full."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A shard that is to be written anew.

    Attributes:
        record: The shard.
        keep: Which of its texts, (n,) bool.
    """

    record: ShardRecord
    keep: NDArray[np.bool_]


@dataclass(slots=True)
class RewriteReport:
    """What rewriting did.

    Attributes:
        published: The new shards.
        retired: The old ones.
    """

    published: list[ShardRecord] = field(default_factory=list)
    retired: list[RetiredRecord] = field(default_factory=list)


ProgressCallback = Callable[[int], None]
"""Is told how many texts have been read since it was called last."""


def open_shard(store: FeatureStore, record: ShardRecord) -> Shard:
    """A shard of the store.

    Raises:
        CorruptShardError: if it is missing or damaged.
    """
    return Shard(store.layout.shard_path(record.view, record.digest))


def facts_of(store: FeatureStore, record: ShardRecord) -> ShardFacts:
    """How a shard of the store is laid out.

    Raises:
        CorruptShardError: if it is missing or damaged.
    """
    return shard_facts(open_shard(store, record))


def key_source(store: FeatureStore, record: ShardRecord) -> KeySource:
    """Opens the keys of a shard; it is not kept open, for there may be thousands."""

    def open_keys() -> Keys:
        return open_shard(store, record).keys

    return open_keys


def without_repeats(store: FeatureStore, rewrites: Sequence[Rewrite]) -> list[Rewrite]:
    """The same with each text once: of several that are kept, the first."""

    def kept_keys(rewrite: Rewrite) -> KeySource:
        return lambda: open_shard(store, rewrite.record).keys[rewrite.keep]

    total = sum(int(np.count_nonzero(rewrite.keep)) for rewrite in rewrites)
    masks = first_copies([kept_keys(rewrite) for rewrite in rewrites], total)
    found = []
    for rewrite, is_first in zip(rewrites, masks, strict=True):
        keep = rewrite.keep.copy()
        keep[rewrite.keep] = is_first
        found.append(Rewrite(rewrite.record, keep))
    return found


def rewrite_shards(
    store: FeatureStore,
    view: FeatureView,
    rewrites: Sequence[Rewrite],
    *,
    limits: WriterLimits,
    may_retire: Callable[[Rewrite], bool] = lambda _rewrite: True,
    on_progress: ProgressCallback = lambda _texts: None,
) -> RewriteReport:
    """Write the texts that are kept into new shards, and retire the old ones.

    An old shard is retired once all that is kept of it is durable elsewhere. Memory is
    bounded by the size of a shard. The limits' age does not count.

    Args:
        store: An open store.
        view: What the shards were made with.
        rewrites: Shards of the view; no text may be kept twice (see `without_repeats`).
        limits: When new shards close, and how they are laid out.
        may_retire: Is asked at the last moment; a shard that stays lies twice.
        on_progress: Called after each piece that was read.

    Raises:
        CorruptShardError: if a shard is missing or damaged; what was done by then is whole.
        StoreError: if the device refuses.
    """
    work = _Rewriting(store, view, replace(limits, max_age_s=math.inf), may_retire)
    for rewrite in rewrites:
        work.add(rewrite, on_progress)
    work.flush()
    return RewriteReport(list(work.writer.published), work.retired)


class _Rewriting:
    """One call of `rewrite_shards`."""

    def __init__(
        self,
        store: FeatureStore,
        view: FeatureView,
        limits: WriterLimits,
        may_retire: Callable[[Rewrite], bool],
    ) -> None:
        self._store = store
        self._view = view
        self._may_retire = may_retire
        self.writer = store.writer(view, limits=limits)
        self._copier = _Copier(self.writer, view, as_dictionary=limits.encoding == "dictionary")
        # Read to their end; what is kept of them may still wait in the writer.
        self._read: list[Rewrite] = []
        self.retired: list[RetiredRecord] = []

    def add(self, rewrite: Rewrite, on_progress: ProgressCallback) -> None:
        shard = open_shard(self._store, rewrite.record)
        for rows in _pieces(shard, np.flatnonzero(rewrite.keep), self._view):
            self._copier.add(shard, rows)
            on_progress(len(rows))
            if self.writer.is_due:
                self.flush()
        self._read.append(rewrite)

    def flush(self) -> None:
        """Close the open shard, and retire those that are wholly in durable ones now."""
        self.writer.flush()
        self._copier.clear()
        new = {record.digest for record in self.writer.published}
        # The same content has the same name: such a one is new as well as old.
        old = {done.record.digest for done in self._read if self._may_retire(done)}
        self.retired += self._store.catalog.retire_shards(sorted(old - new))
        self._read.clear()


class _Copier:
    """Adds texts of shards of either encoding to a writer, all as values or all as codes."""

    def __init__(self, writer: ShardWriter, view: FeatureView, *, as_dictionary: bool) -> None:
        self._writer = writer
        self._view = view
        self._as_dictionary = as_dictionary
        self.clear()

    def clear(self) -> None:
        """Forget the distinct rows of the open shard, which has been closed."""
        width = row_width(self._view.dim, self._view.dtype)
        self._table = RowTable(width, STORAGE_DTYPES[self._view.dtype])

    def add(self, shard: Shard, rows: NDArray[np.int64]) -> None:
        """Add texts of a shard to the open one: numbers, flags, ids and spans as they are.

        Args:
            shard: A shard of the view.
            rows: Which of its texts, (n,), ascending; at least one.
        """
        starts = shard.row_splits[rows]
        lengths = shard.row_splits[rows + 1] - starts
        positions = expand_ranges(starts, lengths)
        keys, flags = shard.keys[rows], shard.flags[rows]
        first, last = int(starts[0]), int(starts[-1] + lengths[-1])
        ids = _taken(shard.read_tokens("token_ids", first, last), positions - first)
        spans = _taken(shard.read_tokens("spans", first, last), positions - first)
        if not self._as_dictionary:
            values = shard.take_stored(positions)
            self._writer.add_values(keys, lengths, flags, values=values, token_ids=ids, spans=spans)
            return
        codes = self._codes_of(shard, positions)
        table = self._table.rows
        self._writer.add_codes(
            keys, lengths, flags, codes=codes, table=table, token_ids=ids, spans=spans
        )

    def _codes_of(self, shard: Shard, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The place of each token's row among the distinct rows, which come to have it."""
        if not shard.is_dictionary:
            return self._table.places_of(np.ascontiguousarray(shard.take_stored(positions)))
        used, codes = np.unique(shard.codes(positions), return_inverse=True)
        places = self._table.places_of(np.ascontiguousarray(shard.stored_dictionary()[used]))
        return places[codes.reshape(-1)]


def _taken(
    array: NDArray[np.uint32] | None, positions: NDArray[np.int64]
) -> NDArray[np.uint32] | None:
    return None if array is None else array[positions]


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """What shards are to become; those of one target can be merged.

    Attributes:
        kind: The datasets of their tokens: ``"values"`` or ``"codes"``, then those of
            ``"spans"`` and ``"token_ids"`` that they have.
        compression: ``"none"`` or ``"zstd"``.
    """

    kind: tuple[str, ...]
    compression: str

    def limits(self, limits: WriterLimits) -> WriterLimits:
        """Limits with the layout of the target.

        Not "auto": what comes out must be what the next compacting leaves alone.
        """
        encoding = "dictionary" if "codes" in self.kind else "dense"
        return replace(limits, encoding=encoding, compression=self.compression)


def rewrite_as_they_are(
    store: FeatureStore,
    view: FeatureView,
    rewrites: Sequence[Rewrite],
    *,
    may_retire: Callable[[Rewrite], bool] = lambda _rewrite: True,
    on_progress: ProgressCallback = lambda _texts: None,
) -> RewriteReport:
    """`rewrite_shards`, each into shards that are laid out as it is."""
    groups: dict[Target, list[Rewrite]] = defaultdict(list)
    for rewrite in rewrites:
        facts = facts_of(store, rewrite.record)
        groups[Target(facts.kind, facts.compression)].append(rewrite)
    whole = RewriteReport()
    for target, members in sorted(groups.items(), key=lambda item: item[0]):
        done = rewrite_shards(
            store,
            view,
            members,
            limits=target.limits(WriterLimits()),
            may_retire=may_retire,
            on_progress=on_progress,
        )
        whole.published += done.published
        whole.retired += done.retired
    return whole


def _pieces(
    shard: Shard, rows: NDArray[np.int64], view: FeatureView
) -> Iterator[NDArray[np.int64]]:
    """Rows of a shard, so many at a time that they have some `_PIECE_BYTES`; at least one."""
    lengths = shard.row_splits[rows + 1] - shard.row_splits[rows]
    sizes = np.cumsum(lengths) * (view.dim * 4 + 12) + np.arange(1, len(rows) + 1) * 64
    start = 0
    while start < len(rows):
        before = int(sizes[start - 1]) if start else 0
        stop = int(np.searchsorted(sizes, before + _PIECE_BYTES, side="right"))
        stop = max(stop, start + 1)
        yield rows[start:stop]
        start = stop
