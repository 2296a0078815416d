"""Keys in ascending order with the place of each, found by a jump and a short walk.

Keys are hashes, so their first bits spread them evenly over a table of about as many entries
as there are keys: an entry says where the keys with these bits begin, and one or two steps
from there is the key, or the place where it would be. That costs some three independent
fetches from memory a key, where a binary search over 10^7 keys costs 23, each waiting for the
one before; and queries need not be sorted. (Git's pack index has such a table, of 256
entries.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys, split_keys
from embedcache.store.keyindex.index_checks import IndexChecks

RECORD_WORDS = 3
"""First half of the key, second half, place."""
RECORD_BYTES = 8 * RECORD_WORDS

Records = NDArray[np.uint64]
"""Keys with their places, (n, 3): a place is the number of the shard · 2^32 + the row."""


@dataclass(frozen=True, slots=True)
class SortedKeys:
    """Keys in ascending order, each once.

    Attributes:
        words: The records one after the other, ascending, and one of all ones at the end,
            (3 · (n + 1),) uint64. Side by side, because a key that is found needs all three,
            and they lie in the same line of the processor's cache.
        starts: Entry b is the number of keys whose first bits are less than b, (2^num_bits,)
            uint32; at least two entries.
        checks: What compares blocks of words and of starts with their checksums before they
            are used; None: they are in memory.
    """

    words: NDArray[np.uint64]
    starts: NDArray[np.uint32]
    checks: tuple[IndexChecks, IndexChecks] | None = None

    def __len__(self) -> int:
        return len(self.words) // RECORD_WORDS - 1

    @property
    def num_bits(self) -> int:
        """How many first bits of a key choose its entry of ``starts``."""
        return len(self.starts).bit_length() - 1

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The places of keys.

        Args:
            high: First halves of m keys, in any order, (m,). Some thousands at a time are
                fastest: what is in between stays in the cache.
            low: Second halves.

        Returns:
            The place of each, (m,); -1 where it is not there.

        Raises:
            DamagedIndexError: if a block that is touched is not what was written.
        """
        # Positions are never out of bounds; "clip" only spares NumPy to look for that first.
        at = self._first_not_less(high)
        same_high = self.words.take(at, mode="clip") == high
        at += 1
        is_same = self.words.take(at, mode="clip") == low
        is_same &= same_high
        at += 1
        places = self.words.take(at, mode="clip").view(np.int64)
        found = np.where(is_same, places, -1)
        collided = np.flatnonzero(same_high > is_same)
        if len(collided):
            found[collided] = self._find_among_equal_halves(
                at[collided] - 2, high[collided], low[collided]
            )
        return found

    def _first_not_less(self, high: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Position in ``words`` of the first record whose first half is not less, (m,)."""
        entries = (high >> np.uint64(64 - self.num_bits)).view(np.int64)
        self._check_starts(entries)
        at = self.starts.take(entries, mode="clip").astype(np.int64)
        at *= RECORD_WORDS
        self._check_words(at)
        walking = np.flatnonzero(self.words.take(at, mode="clip") < high)
        here, wanted = at[walking], high[walking]
        # The last record is not less than any: the walk ends there.
        while len(walking):
            here += RECORD_WORDS
            self._check_words(here)
            at[walking] = here
            go_on = np.flatnonzero(self.words.take(here, mode="clip") < wanted)
            walking, here, wanted = walking[go_on], here[go_on], wanted[go_on]
        return at

    def _find_among_equal_halves(
        self, at: NDArray[np.int64], high: NDArray[np.uint64], low: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """As `find`, from where other keys with the same first half begin; nearly never needed."""
        found = np.full(len(at), -1, np.int64)
        walking = np.arange(len(at))
        while len(walking):
            here = at[walking]
            self._check_words(here)
            same_high = self.words[here] == high[walking]
            second = self.words[here + 1]
            hit = same_high & (second == low[walking])
            found[walking[hit]] = self.words[here[hit] + 2].view(np.int64)
            walking = walking[same_high & (second < low[walking])]
            at[walking] += RECORD_WORDS
        return found

    def _check_words(self, positions: NDArray[np.int64]) -> None:
        # A record lies in one block, whichever of its words it is asked by.
        if self.checks is not None:
            self.checks[0].check(positions)

    def _check_starts(self, entries: NDArray[np.int64]) -> None:
        if self.checks is not None:
            self.checks[1].check(entries)

    def piece(self, number: int, num_bits: int) -> Records:
        """The records of the keys whose first bits are a number; a view where it can be.

        Raises:
            DamagedIndexError: if a block that is touched is not what was written.
        """
        shared = min(num_bits, self.num_bits)
        entry = number >> (num_bits - shared)
        bounds = []
        for end in (entry << (self.num_bits - shared), (entry + 1) << (self.num_bits - shared)):
            if end < len(self.starts):
                self._check_starts(np.array([end]))
            bounds.append(int(self.starts[end]) if end < len(self.starts) else len(self))
        if self.checks is not None:
            self.checks[0].check_range(RECORD_WORDS * bounds[0], RECORD_WORDS * bounds[1])
        records: Records = self.words.reshape(-1, RECORD_WORDS)[bounds[0] : bounds[1]]
        if shared == num_bits:
            return records
        # A segment so small that one of its entries holds several pieces.
        belongs = records[:, 0] >> np.uint64(64 - num_bits) == np.uint64(number)
        return records.compress(belongs, axis=0)

    @classmethod
    def of_records(cls, records: Records) -> SortedKeys:
        """Of records that are ascending, in memory."""
        words = np.full(RECORD_WORDS * (len(records) + 1), np.iinfo(np.uint64).max)
        words[:-RECORD_WORDS] = records.reshape(-1)
        return cls(words, starts_of(records[:, 0], num_bits_for(len(records))))

    @classmethod
    def of_shard(cls, keys: Keys) -> SortedKeys:
        """The keys of one shard, which lie in ascending order there; it is number 0."""
        records = np.empty((len(keys), RECORD_WORDS), np.uint64)
        records[:, 0], records[:, 1] = split_keys(keys)
        records[:, 2] = np.arange(len(keys))
        return cls.of_records(records)


def num_bits_for(num_keys: int) -> int:
    """First bits for ``starts``: one to two keys an entry, 2 to 4 bytes a key."""
    return max(1, num_keys.bit_length() - 1)


def starts_of(
    high: NDArray[np.uint64], num_bits: int, *, first: int = 0, num_entries: int | None = None
) -> NDArray[np.uint32]:
    """Entries [first, first + num_entries) of ``starts``, counted from the first of them.

    Args:
        high: First halves of all keys that belong to these entries, ascending.
        num_bits: First bits that choose an entry.
        first: The first entry that is wanted.
        num_entries: How many; None: all.
    """
    num_entries = 1 << num_bits if num_entries is None else num_entries
    entries = (high >> np.uint64(64 - num_bits)).view(np.int64) - first
    counts = np.bincount(entries, minlength=num_entries)
    starts = np.zeros(num_entries, np.uint32)
    np.cumsum(counts[:-1], out=starts[1:])
    return starts


def merge_records(parts: Sequence[Records]) -> Records:
    """All records of ascending parts, ascending, each key once: of equal keys the first part's."""
    records = np.concatenate([np.zeros((0, RECORD_WORDS), np.uint64), *parts])
    # Stable: NumPy then merges the parts as they are instead of sorting anew.
    order = np.argsort(records[:, 0], kind="stable")
    records = records.take(order, axis=0)
    same_high = records[1:, 0] == records[:-1, 0]
    if not same_high.any():
        return records
    records = records.take(np.lexsort((records[:, 1], records[:, 0])), axis=0)
    is_first = np.ones(len(records), np.bool_)
    is_first[1:] = (records[1:, :2] != records[:-1, :2]).any(axis=1)
    return records[is_first]
