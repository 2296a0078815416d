"""Reading the features of one view: keys → places → matrices."""

from __future__ import annotations

import itertools
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError
from embedcache.keys import Keys
from embedcache.ragged import RaggedArray, expand_ranges, splits_of_lengths, whole_rows
from embedcache.store.codec import STORAGE_DTYPES
from embedcache.store.format import FLAG_TRUNCATED, FLAG_WINDOWED
from embedcache.store.index import ViewIndex, save_quietly
from embedcache.store.layout import StoreLayout
from embedcache.store.shard import Shard, corrupt_message
from embedcache.view import FeatureView

MAX_UNMERGED_KEYS = 1 << 21
"""Keys of new shards kept in memory while a build goes on, at 24 bytes each."""


@dataclass(frozen=True, slots=True)
class FeatureRefs:
    """Where the matrices of n texts lie.

    Attributes:
        shards: Number of the shard, (n,) int64; -1 where the text has no features. It is
            the reader's own and stays good whatever becomes of the index.
        starts: First token position in the shard, (n,) int64.
        lengths: Number of tokens, (n,) int64.
        truncated: Whether the text was cut, (n,) bool.
        windowed: Whether its rows were stitched from overlapping windows, (n,) bool.
    """

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    windowed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, positions: NDArray[Any]) -> FeatureRefs:
        """Some of them, in the order given."""
        return FeatureRefs(
            self.shards[positions],
            self.starts[positions],
            self.lengths[positions],
            self.truncated[positions],
            self.windowed[positions],
        )


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What a shard tells of a text's tokens besides their rows; the arrays are the caller's.

    Attributes:
        spans: UTF-8 bytes [start, end) of the text that each token stands for, (num_tokens,
            2) uint32; start == end for none, as a special token. None if not recorded.
        token_ids: Vocabulary id of each token, (num_tokens,) uint32. None if not recorded.
    """

    spans: NDArray[np.uint32] | None
    token_ids: NDArray[np.uint32] | None


class ViewReader:
    """The features of one view. One process, any threads; never across a fork."""

    def __init__(self, layout: StoreLayout, view: FeatureView) -> None:
        self._layout = layout
        self._lock = threading.RLock()
        self._index = ViewIndex.empty()
        # A shard's number here is never given to another one: refs may be held for long,
        # and an index that is loaded anew numbers its shards anew.
        self._digests: list[str] = []
        self._numbers: dict[str, int] = {}
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._max_open = _max_open_shards()
        self.view = view

    def refresh(self, digests: Sequence[str]) -> None:
        """Cover exactly these shards, which are those of the catalog.

        Raises:
            CorruptShardError: if a shard that has to be read for its keys is damaged.
        """
        live = set(digests)
        with self._lock:
            if self._index.shards == () or not set(self._index.shards) <= live:
                index = ViewIndex.load(self._layout.index_path(self.view.fingerprint))
                self._index = index if set(index.shards) <= live else ViewIndex.empty()
                self._shards.clear()
            covered = set(self._index.shards)
            for digest in digests:
                if digest not in covered:
                    self.add_shard(digest)

    def add_shard(self, digest: str) -> None:
        """Cover one more shard; fine if it is covered.

        Raises:
            CorruptShardError: if it is damaged.
        """
        with self._lock:
            if digest not in self._index.shards:
                shard = self._shard(self._number(digest))
                self._index = self._index.with_shard(digest, shard.keys)

    def save_index(self) -> None:
        """Merge and keep the index, if shards have come since it was saved."""
        with self._lock:
            if self._index.needs_merge:
                path = self._layout.index_path(self.view.fingerprint)
                self._index = save_quietly(self._index, path, tmp_folder=self._layout.tmp)

    def save_large_index(self) -> None:
        """`save_index` once the keys that are not merged take much memory."""
        if self._index.num_unmerged_keys >= MAX_UNMERGED_KEYS:
            self.save_index()

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Which keys have features, (n,) bool; from the index alone, no shard is opened."""
        shards, _ = self._index.locate(keys)
        return shards >= 0

    def _number(self, digest: str) -> int:
        with self._lock:
            number = self._numbers.setdefault(digest, len(self._digests))
            if number == len(self._digests):
                self._digests.append(digest)
            return number

    def locate(self, keys: Keys) -> FeatureRefs:
        """Where the matrices of keys lie.

        Raises:
            CorruptShardError: if a shard or the index is damaged.
        """
        index = self._index
        places, rows = index.locate(keys)
        # A missing text's place is -1, and so is the last entry.
        numbers = np.array([*map(self._number, index.shards), -1], np.int64)[places]
        starts = np.zeros(len(keys), np.int64)
        lengths = np.zeros(len(keys), np.int64)
        flags = np.zeros(len(keys), np.uint8)
        for number, members in _by_shard(numbers):
            shard = self._shard(number)
            at = rows[members]
            if int(at.max()) >= len(shard) or not np.array_equal(shard.keys[at], keys[members]):
                raise self._damaged_index()
            starts[members] = shard.row_splits[at]
            lengths[members] = shard.row_splits[at + 1] - starts[members]
            flags[members] = shard.flags[at]
        truncated, windowed = ((flags & bit) != 0 for bit in (FLAG_TRUNCATED, FLAG_WINDOWED))
        return FeatureRefs(numbers, starts, lengths, truncated, windowed)

    def gather(self, refs: FeatureRefs) -> RaggedArray:
        """The matrices, in the order of refs; none may be missing."""
        splits = splits_of_lengths(refs.lengths)
        dtype = STORAGE_DTYPES[self.view.dtype]
        values = np.empty((int(splits[-1]), self.view.dim), dtype)
        for number, members in _by_shard(refs.shards):
            lengths = refs.lengths[members]
            rows = self._shard(number).take(expand_ranges(refs.starts[members], lengths))
            np.put(whole_rows(values), expand_ranges(splits[members], lengths), whole_rows(rows))
        return RaggedArray(values, splits)

    def token_records(self, refs: FeatureRefs) -> list[TokenRecord]:
        """What is known of each text's tokens, in the order of refs; nothing where one is missing.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        records = [TokenRecord(None, None)] * len(refs)
        starts, stops = refs.starts.tolist(), (refs.starts + refs.lengths).tolist()
        for number, members in _by_shard(refs.shards):
            shard = self._shard(number)
            for text in members.tolist():
                records[text] = TokenRecord(
                    spans=shard.read_tokens("spans", starts[text], stops[text]),
                    token_ids=shard.read_tokens("token_ids", starts[text], stops[text]),
                )
        return records

    def gather_padded(self, refs: FeatureRefs, out: NDArray[Any]) -> None:
        """The matrices into a batch, zeros after the end of each.

        Args:
            refs: Where n matrices lie, none longer than L.
            out: Shape (n, L, dim), contiguous, of the storage dtype; overwritten.
        """
        out[...] = 0
        flat = whole_rows(out.reshape(-1, out.shape[2]))
        for number, members in _by_shard(refs.shards):
            lengths = refs.lengths[members]
            rows = self._shard(number).take(expand_ranges(refs.starts[members], lengths))
            np.put(flat, expand_ranges(members * out.shape[1], lengths), whole_rows(rows))

    def _shard(self, number: int) -> Shard:
        with self._lock:
            shard = self._shards.get(number)
            if shard is None:
                shard = self._shards[number] = self._open(self._digests[number])
                if len(self._shards) > self._max_open:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(number)
            return shard

    def _open(self, digest: str) -> Shard:
        fingerprint = self.view.fingerprint
        shard = Shard(self._layout.shard_path(fingerprint, digest))
        if shard.view.fingerprint != fingerprint:
            raise CorruptShardError(corrupt_message(shard.path, "belongs to another view"))
        return shard

    def _damaged_index(self) -> CorruptShardError:
        path = self._layout.index_path(self.view.fingerprint)
        return CorruptShardError(f"{path}: the index is damaged; delete this file, it is remade")


def _by_shard(numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each shard's number with the places that it has in ``numbers``; missing ones left out."""
    if len(numbers) and numbers[0] >= 0 and (numbers == numbers[0]).all():
        # Nearly always: a shard holds up to half a million texts.
        yield int(numbers[0]), np.arange(len(numbers))
        return
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    for start, stop in itertools.pairwise([*starts.tolist(), len(order)]):
        if ordered[start] >= 0:
            yield int(ordered[start]), order[start:stop]


def _max_open_shards() -> int:
    """Every open shard holds a file descriptor: leave half of them to the rest."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 16 if limit == resource.RLIM_INFINITY else max(8, limit // 2)
