"""Which texts of many shards are in which sets of keys, in bounded memory.

Keys are hashes, so equal ranges of them hold about equally many: a range after the other is
taken out of all that is compared, sorted and looked at. What stays is one entry a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys, split_keys

KeySource = Callable[[], Keys]
"""Opens keys, (n, 16), in any order; called once for each range of them."""

_RANGE_KEYS = 1 << 21
"""Keys that are compared at a time; sorting them takes some 100 bytes each."""
_BLOCK_KEYS = 1 << 18

NOWHERE = -1


@dataclass(frozen=True, slots=True)
class RankedKeys:
    """Keys that mean something.

    Attributes:
        open: Opens them.
        num_keys: How many there are.
        rank: What they mean: 0 or more; of a key with several ranks, the largest counts.
    """

    open: KeySource
    num_keys: int
    rank: int


def ranks_of(
    shards: Sequence[KeySource], num_keys: int, wanted: Sequence[RankedKeys]
) -> list[NDArray[np.int32]]:
    """The largest rank of each text of some shards.

    Args:
        shards: Open the keys of each.
        num_keys: About how many they have.
        wanted: The keys that have ranks.

    Returns:
        For each shard (n,) int32; `NOWHERE` for a text that has no rank.
    """
    ranks = [np.zeros(0, np.int32) for _ in shards]
    total = num_keys + sum(keys.num_keys for keys in wanted)
    for bounds in _ranges(total):
        pieces = []
        for number, source in enumerate(shards):
            keys = source()
            if len(ranks[number]) != len(keys):
                ranks[number] = np.full(len(keys), NOWHERE, np.int32)
            pieces.append(_Piece.of(keys, bounds, owner=number, rank=NOWHERE))
        pieces += [
            _Piece.of(ranked.open(), bounds, owner=NOWHERE, rank=ranked.rank) for ranked in wanted
        ]
        whole = _Piece.joined(pieces)
        if not len(whole):
            continue
        order, starts = whole.groups()
        largest = np.maximum.reduceat(whole.ranks[order], starts)
        largest = np.repeat(largest, np.diff([*starts, len(order)]))
        for number, members in _by_owner(whole.owners[order]):
            ranks[number][whole.rows[order[members]]] = largest[members]
    return ranks


def first_copies(shards: Sequence[KeySource], num_keys: int) -> list[NDArray[np.bool_]]:
    """Which texts of some shards are the first ones with their key, shards in the order given.

    Args:
        shards: Open the keys of each.
        num_keys: About how many they have.

    Returns:
        For each shard (n,) bool.
    """
    masks = [np.zeros(0, np.bool_) for _ in shards]
    for bounds in _ranges(num_keys):
        pieces = []
        for number, source in enumerate(shards):
            keys = source()
            if len(masks[number]) != len(keys):
                masks[number] = np.zeros(len(keys), np.bool_)
            pieces.append(_Piece.of(keys, bounds, owner=number, rank=NOWHERE))
        whole = _Piece.joined(pieces)
        if not len(whole):
            continue
        order, starts = whole.groups()
        first = order[starts]
        for number, members in _by_owner(whole.owners[first]):
            masks[number][whole.rows[first[members]]] = True
    return masks


@dataclass(frozen=True, slots=True)
class _Piece:
    """The keys of one range, with the set and the row that each is from."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    owners: NDArray[np.int32]
    rows: NDArray[np.int64]
    ranks: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.high)

    @classmethod
    def of(cls, keys: Keys, bounds: tuple[int, int], *, owner: int, rank: int) -> _Piece:
        """Those of a set's keys whose first 8 bytes are in a range, its end included."""
        first, last = (np.uint64(bound) for bound in bounds)
        found: list[tuple[NDArray[Any], ...]] = []
        for start in range(0, len(keys), _BLOCK_KEYS):
            high, low = split_keys(keys[start : start + _BLOCK_KEYS])
            chosen = np.flatnonzero((high >= first) & (high <= last))
            found.append((high[chosen], low[chosen], chosen + start))
        empty = np.zeros(0, np.uint64)
        columns = zip(*found, strict=True) if found else ((empty,), (empty,), (empty,))
        high, low, rows = (np.concatenate(column) for column in columns)
        size = len(high)
        return cls(
            high,
            low,
            np.full(size, owner, np.int32),
            rows.astype(np.int64),
            np.full(size, rank, np.int32),
        )

    @classmethod
    def joined(cls, pieces: Sequence[_Piece]) -> _Piece:
        """Several, one after the other."""
        names = ("high", "low", "owners", "rows", "ranks")
        if not pieces:
            return cls.of(np.zeros((0, 16), np.uint8), (0, 0), owner=0, rank=0)
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))

    def groups(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The order that brings equal keys together, stable, and where each group begins."""
        order = np.lexsort((self.low, self.high))
        high, low = self.high[order], self.low[order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        return order, np.flatnonzero(is_first)


def _ranges(num_keys: int) -> Iterator[tuple[int, int]]:
    """Ranges of the first 8 bytes of keys that hold some `_RANGE_KEYS` each; ends included."""
    count = max(1, -(-num_keys // _RANGE_KEYS))
    for number in range(count):
        yield (number << 64) // count, ((number + 1) << 64) // count - 1


def _by_owner(owners: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each owner with its places in ``owners``; `NOWHERE` left out."""
    order = np.argsort(owners, kind="stable")
    ordered = owners[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        if ordered[start] != NOWHERE:
            yield int(ordered[start]), order[start:stop]
