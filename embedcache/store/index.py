"""The key index of a view: key → shard, row. Derived from the shards, never the truth.

One sorted base, memory-mapped, and the keys of shards that are not merged into it yet.
Losing or damaging it costs a rebuild: it carries a checksum, and a row found through it is
checked against the shard's own key before anything is served.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import StoreError
from embedcache.keys import Keys, split_keys
from embedcache.store.publish import make_folder, mapped_os_errors, publish_file

_HEADER_BYTES = 8
_COLUMNS = ("high", "low", "shards", "rows")
_PIECE_KEYS = 1 << 20
_MAGIC = "embedcache-index-1"


@dataclass(frozen=True, slots=True)
class SortedKeys:
    """Keys in ascending order with the shard and the row of each.

    Attributes:
        high: The first 8 bytes of each key as a big-endian integer, (n,) uint64.
        low: The last 8, (n,) uint64.
        shards: Number of the shard in `ViewIndex.shards`, (n,) uint32.
        rows: Row in the shard, (n,) uint32.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    shards: NDArray[np.uint32]
    rows: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.high)

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The position of each key, -1 where it is not there; shapes (m,).

        Fastest for queries in ascending order: neighbours share cache lines.
        """
        if len(self) == 0:
            return np.full(len(high), -1, np.int64)
        positions = np.searchsorted(self.high, high).astype(np.int64)
        found = np.full(len(high), -1, np.int64)
        open_queries = np.arange(len(high))
        # One pass, unless two keys agree in their first 8 bytes: then one more for each such.
        while len(open_queries):
            at = positions[open_queries]
            inside = at < len(self)
            open_queries, at = open_queries[inside], at[inside]
            same_high = self.high[at] == high[open_queries]
            open_queries, at = open_queries[same_high], at[same_high]
            same_low = self.low[at] == low[open_queries]
            found[open_queries[same_low]] = at[same_low]
            open_queries = open_queries[~same_low]
            positions[open_queries] += 1
        return found

    @classmethod
    def merged(cls, parts: Sequence[SortedKeys]) -> SortedKeys:
        """All keys of several parts, each once: of equal keys the first part's wins."""
        if not parts:
            return cls.empty()
        high = np.concatenate([part.high for part in parts])
        low = np.concatenate([part.low for part in parts])
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        first = np.ones(len(order), np.bool_)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        kept = order[first]
        shards = np.concatenate([part.shards for part in parts])[kept]
        rows = np.concatenate([part.rows for part in parts])[kept]
        return cls(high[first], low[first], shards, rows)

    def between(self, low: int, high: int) -> SortedKeys:
        """The keys whose first 8 bytes are in [low, high); ``high`` may be 2^64."""
        start = int(np.searchsorted(self.high, np.uint64(low)))
        stop = len(self)
        if high < 1 << 64:
            stop = int(np.searchsorted(self.high, np.uint64(high)))
        chosen = slice(start, stop)
        return SortedKeys(
            self.high[chosen], self.low[chosen], self.shards[chosen], self.rows[chosen]
        )

    @classmethod
    def of_shard(cls, keys: Keys, number: int) -> SortedKeys:
        """The keys of one shard, which lie in ascending order there."""
        high, low = split_keys(keys)
        rows = np.arange(len(keys), dtype=np.uint32)
        return cls(high, low, np.full(len(keys), number, np.uint32), rows)

    @classmethod
    def empty(cls) -> SortedKeys:
        """No keys."""
        return cls.of_shard(np.zeros((0, 16), np.uint8), 0)


@dataclass(frozen=True, slots=True)
class ViewIndex:
    """Where the features of a view lie.

    Attributes:
        shards: Digests of the shards it covers; their place in this list is their number.
        parts: Sorted keys: the mapped base first, then shards that are not merged yet.
        num_based: How many of the shards the base covers.
    """

    shards: tuple[str, ...]
    parts: tuple[SortedKeys, ...]
    num_based: int

    @classmethod
    def empty(cls) -> ViewIndex:
        """An index of no shards."""
        return cls((), (), 0)

    def locate(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find keys.

        Args:
            keys: Shape (m, 16), in any order.

        Returns:
            The number of the shard and the row in it, each (m,) int64; -1 where missing.
        """
        high, low = split_keys(keys)
        order = np.argsort(high)
        high, low = high[order], low[order]
        shards = np.full(len(keys), -1, np.int64)
        rows = np.full(len(keys), -1, np.int64)
        for part in self.parts:
            found = part.find(high, low)
            hit = found >= 0
            shards[order[hit]] = part.shards[found[hit]]
            rows[order[hit]] = part.rows[found[hit]]
        return shards, rows

    def with_shard(self, digest: str, keys: Keys) -> ViewIndex:
        """The index with one more shard, not merged."""
        part = SortedKeys.of_shard(keys, len(self.shards))
        return ViewIndex((*self.shards, digest), (*self.parts, part), self.num_based)

    @property
    def num_keys(self) -> int:
        """Keys of all parts; one that lies in two shards counts twice."""
        return sum(map(len, self.parts))

    @property
    def num_unmerged_keys(self) -> int:
        """Keys of shards that have come since the base was written: these are in memory."""
        return sum(map(len, self.parts[1 if self.num_based else 0 :]))

    @property
    def needs_merge(self) -> bool:
        """Whether shards have come since the base was written."""
        return self.num_based < len(self.shards)

    def save(self, path: Path, *, tmp_folder: Path) -> None:
        """Write the index in one part; readers that have the old one mapped keep it.

        The parts are merged a range of keys after the other, through files, so that memory
        stays the same for any number of keys.
        """
        make_folder(tmp_folder)
        with mapped_os_errors(tmp_folder), ExitStack() as stack:
            spools = [stack.enter_context(TemporaryFile(dir=tmp_folder)) for _ in _COLUMNS]
            for piece in self._merged_pieces():
                for spool, column in zip(spools, _COLUMNS, strict=True):
                    spool.write(np.ascontiguousarray(getattr(piece, column)).data)
            count = spools[0].tell() // 8
            columns = [_mapped(spool) for spool in spools]
            record = {
                "format": _MAGIC,
                "count": count,
                "shards": self.shards,
                "checksum": _checksum(self.shards, columns),
            }
            header = json.dumps(record).encode()
            # The arrays begin at a multiple of 8 bytes, so that they can be mapped as they are.
            header += b" " * (-len(header) % 8)
            size = len(header).to_bytes(_HEADER_BYTES, "little")
            publish_file([size, header, *columns], path, tmp_folder=tmp_folder)

    def _merged_pieces(self) -> Iterator[SortedKeys]:
        """The merged keys in ascending order, about `_PIECE_KEYS` at a time.

        Keys are hashes, so equal ranges of them hold about equally many.
        """
        num_pieces = max(1, -(-self.num_keys // _PIECE_KEYS))
        for piece in range(num_pieces):
            low, high = ((end << 64) // num_pieces for end in (piece, piece + 1))
            yield SortedKeys.merged([part.between(low, high) for part in self.parts])

    @classmethod
    def load(cls, path: Path) -> ViewIndex:
        """Map the saved index; an empty one if there is none or it is damaged.

        Its checksum is checked each time: without, a damaged index would deny texts that
        the store has. That reads the file once, 24 bytes a text.
        """
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(mapped[:_HEADER_BYTES], "little")
            header = json.loads(mapped[_HEADER_BYTES : _HEADER_BYTES + size])
            if header["format"] != _MAGIC:
                return cls.empty()
            count, shards = int(header["count"]), tuple(map(str, header["shards"]))
            start = _HEADER_BYTES + size
            if count < 0 or len(mapped) != start + 24 * count:
                return cls.empty()
            if header["checksum"] != _checksum(shards, [memoryview(mapped)[start:]]):
                return cls.empty()
            words = np.frombuffer(mapped, np.uint64, 2 * count, start)
            halves = np.frombuffer(mapped, np.uint32, 2 * count, start + 16 * count)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return cls.empty()
        if int(halves[:count].max(initial=0)) >= max(1, len(shards)):
            return cls.empty()
        base = SortedKeys(words[:count], words[count:], halves[:count], halves[count:])
        return cls(shards, (base,), len(shards))


def _mapped(file: IO[bytes]) -> memoryview:
    """The bytes of a file that was written, by memory map."""
    file.flush()
    if file.tell() == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _checksum(shards: Sequence[str], columns: Sequence[memoryview]) -> int:
    """xxh3 of the shards' digests and of the columns."""
    state = xxhash.xxh3_64(",".join(shards).encode())
    for column in columns:
        state.update(column)
    return state.intdigest()


def save_quietly(index: ViewIndex, path: Path, *, tmp_folder: Path) -> ViewIndex:
    """Save a derived index and map what was saved.

    Returns:
        The same index with its keys on disk; or as it was, where the store cannot be written.
    """
    try:
        index.save(path, tmp_folder=tmp_folder)
    except StoreError:
        return index
    saved = ViewIndex.load(path)
    # Another process may have saved its own in between.
    return saved if saved.shards == index.shards else index
