"""Reading the features of one view: keys → places → matrices."""

from __future__ import annotations

import itertools
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError, DamagedIndexError, KeyNotFoundError
from embedcache.keys import Keys
from embedcache.ragged import RaggedArray, expand_ranges, splits_of_lengths, whole_rows
from embedcache.store.ahead import (
    CodedTexts,
    CopiedTexts,
    JoinedDictionary,
    ShardGroup,
    ShardUse,
    coded_texts_of_shard,
)
from embedcache.store.keyindex.index import ViewIndex, remove_index, save_quietly
from embedcache.store.layout import StoreLayout
from embedcache.store.refs import SEVERAL, FeatureRefs, TokenRecord, by_shard
from embedcache.store.shards.codec import VALUE_DTYPES
from embedcache.store.shards.damage import MissingShardError, corrupt_message
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED
from embedcache.store.shards.padding import PaddedPositions
from embedcache.store.shards.shard import Shard
from embedcache.view import FeatureView

MAX_UNMERGED_KEYS = 1 << 21
"""Keys of new shards kept in memory while a build goes on, at 24 bytes each."""

_ATTEMPTS = 3
"""How often a look-up begins anew, where the index is damaged or a shard was retired."""


@dataclass(frozen=True, slots=True)
class _Covered:
    """An index, and what is derived from it.

    Attributes:
        index: The index.
        digests: The shards that it covers.
        numbers: The reader's number of each of them, and -1 last, which is a missing text's.
    """

    index: ViewIndex
    digests: frozenset[str]
    numbers: NDArray[np.int64]


class ViewReader:
    """The features of one view. One process, any threads; never across a fork.

    Args:
        layout: Of the store.
        view: The view.
        live_shards: Asks the catalog for the digests of the view's shards: called where a shard
            that was there has gone, as another process has replaced it. None: nobody does.
    """

    def __init__(
        self,
        layout: StoreLayout,
        view: FeatureView,
        *,
        live_shards: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._layout = layout
        self._live_shards = live_shards
        self._lock = threading.RLock()
        # A shard's number here is never given to another one: refs may be held for long,
        # and an index that is loaded anew numbers its shards anew.
        self._digests: list[str] = []
        self._numbers: dict[str, int] = {}
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        # Also those that have left `_shards`, as long as somebody else holds them.
        self._held: weakref.WeakValueDictionary[int, Shard] = weakref.WeakValueDictionary()
        self._max_open = _max_open_shards()
        self._positions = PaddedPositions()
        self._joined = JoinedDictionary(view)
        self._live: tuple[str, ...] | None = None
        self._covered = self._cover(ViewIndex.empty())
        self.view = view

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is gathered: the view's value dtype."""
        return VALUE_DTYPES[self.view.dtype]

    def refresh(self, digests: Sequence[str]) -> None:
        """Cover exactly these shards, which are those of the catalog.

        Raises:
            CorruptShardError: if a shard that has to be read for its keys is damaged.
        """
        wanted = tuple(digests)
        with self._lock:
            if wanted == self._live:
                return
            live = set(wanted)
            if not self._covered.digests or not self._covered.digests <= live:
                path = self._layout.index_path(self.view.fingerprint)
                self._covered = self._cover(ViewIndex.load(path, live=live))
                for number in [n for n in self._shards if self._digests[n] not in live]:
                    del self._shards[number]
            for digest in wanted:
                try:
                    self.add_shard(digest)
                except MissingShardError:
                    newest = self._live_shards() if self._live_shards else wanted
                    if digest in newest:
                        raise
                    # Another process has replaced it since the catalog was asked.
                    self.refresh(newest)
                    return
            self._live = wanted

    def add_shard(self, digest: str) -> None:
        """Cover one more shard; fine if it is covered.

        Raises:
            CorruptShardError: if it is damaged.
        """
        with self._lock:
            if digest not in self._covered.digests:
                shard = self._shard(self._number(digest))
                self._covered = self._cover(self._covered.index.with_shard(digest, shard.keys))
                self._live = None

    def save_index(self) -> None:
        """Merge and keep the index, if shards have come since it was saved."""
        with self._lock:
            index = self._covered.index
            if index.needs_merge:
                path = self._layout.index_path(self.view.fingerprint)
                saved = save_quietly(index, path, tmp_folder=self._layout.tmp)
                self._covered = self._cover(saved)

    def save_large_index(self) -> None:
        """`save_index` once the keys that are not merged take much memory."""
        if self._covered.index.num_unmerged_keys >= MAX_UNMERGED_KEYS:
            self.save_index()

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Which keys have features, (n,) bool; from the index alone, no shard is opened.

        Raises:
            CorruptShardError: if the index is damaged, and so is a shard.
        """
        try:
            shards, _ = self._covered.index.locate(keys)
        except DamagedIndexError:
            self._remake_index()
            shards, _ = self._covered.index.locate(keys)
        return shards >= 0

    def locate(self, keys: Keys) -> FeatureRefs:
        """Where the matrices of keys lie.

        A damaged index is made anew, and a shard that another process has replaced is no
        longer looked for.

        Raises:
            CorruptShardError: if a shard is damaged or lost, or the index is wrong.
        """
        for _ in range(_ATTEMPTS - 1):
            before = self._live
            try:
                return self._locate(keys)
            except DamagedIndexError:
                self._remake_index()
            except MissingShardError:
                if not self._renew(before):
                    raise
        return self._locate(keys)

    def gather(self, refs: FeatureRefs, *, out: NDArray[Any] | None = None) -> RaggedArray:
        """The matrices of the view's value dtype, in the order of refs; none may be missing.

        Args:
            refs: Where they lie.
            out: Where to put the rows, (T, dim), contiguous; None: into an array of their own.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            KeyNotFoundError: if they were removed since they were located.
        """
        shard = self._shards.get(refs.one_shard)
        if shard is not None and len(refs) == 1:
            # A server's most frequent request: a third of the time of what follows.
            return self._gather_one(shard, refs, out)
        splits = splits_of_lengths(refs.lengths)
        values = out
        with self._closed_if_damaged(refs):
            for shard, members, starts, lengths in self.groups(refs):
                positions = expand_ranges(starts, lengths)
                if isinstance(members, slice) and members == slice(None):
                    # All of them, and in order: half of the time is saved.
                    return RaggedArray(shard.take(positions, out=out), splits)
                rows = shard.take(positions)
                if values is None:
                    values = np.empty((int(splits[-1]), self.view.dim), self.dtype)
                places = expand_ranges(splits[:-1][members], lengths)
                np.put(whole_rows(values), places, whole_rows(rows))
        if values is None:
            values = np.empty((0, self.view.dim), self.dtype)
        return RaggedArray(values, splits)

    def _gather_one(self, shard: Shard, refs: FeatureRefs, out: NDArray[Any] | None) -> RaggedArray:
        """`gather` of one text, from its shard."""
        start, length = int(refs.starts[0]), int(refs.lengths[0])
        try:
            rows = shard.take(np.arange(start, start + length), out=out)
        except CorruptShardError:
            self._close_shards(refs)
            raise
        return RaggedArray(rows, np.array((0, length), np.int64))

    def token_records(self, refs: FeatureRefs) -> list[TokenRecord]:
        """What is known of each text's tokens, in the order of refs; nothing where one is missing.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            KeyNotFoundError: if they were removed since they were located.
        """
        records = [TokenRecord(None, None)] * len(refs)
        places = np.arange(len(refs))
        with self._closed_if_damaged(refs):
            for shard, members, starts, lengths in self.groups(refs):
                ranges = np.stack([places[members], starts, starts + lengths], axis=1).tolist()
                for text, start, stop in ranges:
                    spans = shard.read_tokens("spans", start, stop)
                    records[text] = TokenRecord(spans, shard.read_tokens("token_ids", start, stop))
        return records

    def gather_padded(
        self, refs: FeatureRefs, out: NDArray[Any], *, texts: slice = slice(None)
    ) -> None:
        """The matrices into a batch, zeros after the end of each and where one is missing.

        Args:
            refs: Where matrices lie.
            out: Shape (n, L, dim), contiguous, of the view's value dtype; overwritten.
            texts: Which n of them, none longer than L.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            KeyNotFoundError: if they were removed since they were located.
        """
        shard = self._shards.get(refs.one_shard)
        try:
            if shard is not None:
                starts, lengths = refs.starts[texts], refs.lengths[texts]
                shard.gather_padded(starts, lengths, out, positions=self._positions)
            else:
                self._gather_scattered(refs.take(texts), out)
        except CorruptShardError:
            self._close_shards(refs)
            raise

    def _gather_scattered(self, refs: FeatureRefs, out: NDArray[Any]) -> None:
        """`gather_padded` from several shards, or from one that is not open.

        In the order of the shards first, so that each fills one range, and from there all at
        once into their own.
        """
        order = np.argsort(refs.shards, kind="stable")
        ordered = np.empty_like(out)
        for shard, members, starts, lengths in self.groups(refs.take(order)):
            part = ordered[members]
            shard.gather_padded(starts, lengths, part, positions=self._positions)
            if not isinstance(members, slice):
                ordered[members] = part
        ordered[: np.count_nonzero(refs.shards < 0)] = 0
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        matrices, target = (whole_rows(array.reshape(len(array), -1)) for array in (ordered, out))
        matrices.take(places, out=target, mode="clip")

    def prepare(
        self, refs: FeatureRefs, padded: NDArray[np.int64]
    ) -> CodedTexts | CopiedTexts | None:
        """Prepare texts that will be read batch by batch.

        Args:
            refs: Where they lie; none may be missing.
            padded: What each of them is padded to, (n,): in a batch all to the same.

        Returns:
            What to gather them with; None: nothing is faster than `gather_padded`.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            KeyNotFoundError: if they were removed since they were located.
        """
        with self._closed_if_damaged(refs):
            if refs.one_shard >= 0:
                groups = list(self.groups(refs))
                return coded_texts_of_shard(groups[0], padded) if len(groups) == 1 else None
            joined = self._joined.join(self.groups(refs), padded)
            return joined or CopiedTexts.of_open_shards(refs, self._shards)

    def shard_uses(self, refs: FeatureRefs) -> list[ShardUse]:
        """What some texts need of each shard, none of them missing.

        Raises:
            CorruptShardError: if one of the shards is damaged.
        """
        places = np.arange(len(refs))
        with self._closed_if_damaged(refs):
            return [
                ShardUse.of_shard(shard, places[members], starts, lengths)
                for shard, members, starts, lengths in self.groups(refs)
            ]

    def open_shards(self, refs: FeatureRefs) -> list[Shard]:
        """The shards of some texts, as many as may be open; who holds them, keeps them open.

        Raises:
            CorruptShardError: if one of them is damaged.
        """
        with self._closed_if_damaged(refs):
            return [group[0] for group in itertools.islice(self.groups(refs), self._max_open)]

    def _cover(self, index: ViewIndex) -> _Covered:
        shards = index.shards
        numbers = np.array([*map(self._number, shards), -1], np.int64)
        return _Covered(index, frozenset(shards), numbers)

    def _number(self, digest: str) -> int:
        with self._lock:
            number = self._numbers.setdefault(digest, len(self._digests))
            if number == len(self._digests):
                self._digests.append(digest)
            return number

    def _locate(self, keys: Keys) -> FeatureRefs:
        covered = self._covered
        places, rows = covered.index.locate(keys)
        numbers = covered.numbers[places]
        starts = np.zeros(len(keys), np.int64)
        lengths = np.zeros(len(keys), np.int64)
        flags = np.zeros(len(keys), np.uint8)
        for number, members in by_shard(numbers):
            shard = self._shard(number)
            at = rows[members]
            if int(at.max()) >= len(shard) or not np.array_equal(shard.keys[at], keys[members]):
                raise self._damaged_index()
            starts[members] = shard.row_splits[at]
            lengths[members] = shard.row_splits[at + 1] - starts[members]
            flags[members] = shard.flags[at]
        is_one = len(numbers) and (numbers == numbers[0]).all()
        one_shard = int(numbers[0]) if is_one else SEVERAL
        truncated, windowed = ((flags & bit) != 0 for bit in (FLAG_TRUNCATED, FLAG_WINDOWED))
        return FeatureRefs(keys, numbers, starts, lengths, truncated, windowed, one_shard)

    def groups(self, refs: FeatureRefs) -> Iterator[ShardGroup]:
        """Each shard with the places in ``refs``, the starts and the lengths of its texts.

        Raises:
            CorruptShardError: if a shard is damaged.
            KeyNotFoundError: if texts were removed since they were located.
        """
        for number, members in by_shard(refs.shards, refs.one_shard):
            try:
                shard = self._shard(number)
            except MissingShardError:
                yield from self._moved(refs.take(members), np.arange(len(refs))[members])
            else:
                yield shard, members, refs.starts[members], refs.lengths[members]

    def _moved(self, refs: FeatureRefs, places: NDArray[np.int64]) -> Iterator[ShardGroup]:
        """`groups` of texts whose shard is gone, as they lie elsewhere by now."""
        if self._live_shards is not None:
            self.refresh(self._live_shards())
        moved = self.locate(refs.keys)
        num_removed = int(np.count_nonzero(moved.shards < 0))
        if num_removed:
            raise KeyNotFoundError(
                f"{num_removed} of {len(refs)} texts have been removed from view"
                f" {self.view.fingerprint[:12]} while they were read; `embedcache build` computes"
                " them again"
            )
        if not np.array_equal(moved.lengths, refs.lengths):
            raise self._damaged_index()
        for number, members in by_shard(moved.shards):
            shard = self._shard(number)
            yield shard, places[members], moved.starts[members], moved.lengths[members]

    def _renew(self, before: tuple[str, ...] | None) -> bool:
        """Ask the catalog for the shards; whether they are others than ``before``."""
        if self._live_shards is None:
            return False
        self.refresh(self._live_shards())
        return self._live != before

    def _remake_index(self) -> None:
        """Make a damaged index anew from the shards."""
        with self._lock:
            remove_index(self._layout.index_path(self.view.fingerprint))
            digests = self._live or self._covered.index.shards
            self._covered = self._cover(ViewIndex.empty())
            for digest in digests:
                self.add_shard(digest)

    def _shard(self, number: int) -> Shard:
        with self._lock:
            shard = self._shards.get(number)
            if shard is None:
                shard = self._held.get(number)
                if shard is None:
                    shard = self._open(self._digests[number])
                self._shards[number] = self._held[number] = shard
                if len(self._shards) > self._max_open:
                    self._shards.popitem(last=False)
            else:
                self._shards.move_to_end(number)
            return shard

    def _open(self, digest: str) -> Shard:
        fingerprint = self.view.fingerprint
        shard = Shard(self._layout.shard_path(fingerprint, digest))
        if shard.view.fingerprint != fingerprint:
            raise CorruptShardError(corrupt_message(shard.path, "belongs to another view"))
        return shard

    def _close_shards(self, refs: FeatureRefs) -> None:
        """Close shards one of which is damaged: the next use finds what has mended it."""
        with self._lock:
            for number in np.unique(refs.shards).tolist():
                self._shards.pop(number, None)
                self._held.pop(number, None)

    @contextmanager
    def _closed_if_damaged(self, refs: FeatureRefs) -> Iterator[None]:
        try:
            yield
        except CorruptShardError:
            self._close_shards(refs)
            raise

    def _damaged_index(self) -> CorruptShardError:
        path = self._layout.index_path(self.view.fingerprint)
        return CorruptShardError(f"{path}: the index is damaged; delete this file, it is remade")


def _max_open_shards() -> int:
    """Every open shard holds a file descriptor: leave half of them to the rest."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 16 if limit == resource.RLIM_INFINITY else max(8, limit // 2)
