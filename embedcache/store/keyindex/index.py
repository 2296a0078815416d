"""The key index of a view: key → shard, row. Derived from the shards, never the truth.

It is a few segments of sorted keys, each at least `_RATIO` times as large as the next, so
that a shard of a few keys does not make the whole index be written anew: a segment is merged
with what comes until that is large enough to leave the next larger one alone. A key is
written again each time its segment has grown by a quarter or more, which is O(log n) times.

Each segment is a file that names the shards it covers, so any of them may be lost, or be
older than the others: what none covers is read from the shards themselves. Losing or
damaging them costs a rebuild: every block carries a checksum, and a row found through the
index is checked against the shard's own key before anything is served.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import DamagedIndexError, StoreError
from embedcache.keys import Keys, split_keys
from embedcache.store.keyindex.segment import Segment, load_segment, write_segment

_RATIO = 4
"""A lookup goes through all segments until the key is found: so there must be few."""
_SMALL_KEYS = 1 << 14
"""No two saved segments have fewer: to write 400 kB costs less than to force it to the device."""
_MAX_SEGMENTS = 16
"""More than 2^32 keys make, at four times the size each."""

_MERGED_IN_MEMORY_KEYS = 1 << 16
_CHUNK_KEYS = 1 << 14
"""What one lookup keeps in the processor's cache: 4096 to 65536 were measured alike."""
_ROW_MASK = np.int64((1 << 32) - 1)


@dataclass(frozen=True, slots=True)
class ViewIndex:
    """Where the features of a view lie.

    Attributes:
        saved: Segments in files, as large or larger first.
        fresh: Segments in memory, of shards that came since.
    """

    saved: tuple[Segment, ...]
    fresh: tuple[Segment, ...]

    @classmethod
    def empty(cls) -> ViewIndex:
        """An index of no shards."""
        return cls((), ())

    @property
    def shards(self) -> tuple[str, ...]:
        """Digests of the shards it covers; their place here is their number."""
        segments = (*self.saved, *self.fresh)
        return tuple(itertools.chain.from_iterable(segment.shards for segment in segments))

    def locate(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find keys.

        Args:
            keys: Shape (m, 16), in any order.

        Returns:
            The number of the shard and the row in it, each (m,) int64; -1 where missing.

        Raises:
            DamagedIndexError: if what is read of a file is not what was written. The index
                is to be dropped then, with `remove_index`, and made anew from the shards.
        """
        places = np.full(len(keys), -1, np.int64)
        for start in range(0, len(keys), _CHUNK_KEYS):
            chosen = slice(start, start + _CHUNK_KEYS)
            self._locate_chunk(keys[chosen], places[chosen])
        rows = places & _ROW_MASK
        rows[places < 0] = -1
        places >>= 32
        return places, rows

    def _locate_chunk(self, keys: Keys, places: NDArray[np.int64]) -> None:
        """Put the places of keys where they are found; the shards numbered as in `shards`."""
        high, low = split_keys(keys)
        open_queries: NDArray[np.intp] | None = None
        first_number = 0
        for segment in (*self.saved, *self.fresh):
            found = segment.find(high, low)
            if first_number:
                found[found >= 0] += first_number << 32
            first_number += len(segment.shards)
            missing = np.flatnonzero(found < 0)
            if open_queries is None:
                places[:] = found
                open_queries = missing
            else:
                places[open_queries] = found
                open_queries = open_queries[missing]
            if not len(missing):
                return
            if len(missing) < len(high):
                high, low = high[missing], low[missing]

    def with_shard(self, digest: str, keys: Keys) -> ViewIndex:
        """The index with one more shard, in memory.

        Small shards are merged as they come, so that a thousand of them do not make a
        thousand searches.
        """
        fresh = [*self.fresh, Segment.of_shard(digest, keys)]
        while len(fresh) > 1 and len(fresh[-2]) <= len(fresh[-1]) <= _MERGED_IN_MEMORY_KEYS:
            fresh[-2:] = [Segment.merged(fresh[-2:])]
        return ViewIndex(self.saved, tuple(fresh))

    @property
    def num_keys(self) -> int:
        """Keys of all segments; one that lies in two of them counts twice."""
        return sum(map(len, (*self.saved, *self.fresh)))

    @property
    def num_unmerged_keys(self) -> int:
        """Keys of shards that have come since the index was saved: these are in memory."""
        return sum(map(len, self.fresh))

    @property
    def needs_merge(self) -> bool:
        """Whether shards have come since the index was saved."""
        return len(self.fresh) > 0

    def save(self, path: Path, *, tmp_folder: Path) -> ViewIndex:
        """Write what has come since, merged with the segments that are not much larger.

        One file is published, which holds all that is in the files it replaces; only then
        are those removed. Readers that have them mapped keep them.

        Args:
            path: The file of the largest segment; the others lie beside it.
            tmp_folder: On the same file system.

        Returns:
            The same index with its keys on disk.

        Raises:
            DamagedIndexError: if what is read of a file is not what was written.
            StoreError: if the store cannot be written.
        """
        if not self.fresh:
            return self
        files = segment_paths(path)
        kept = self._kept(files)
        slots = [files.index(_path_of(segment)) for segment in kept]
        slot = slots[-1] + 1 if slots else 0
        merged = (*self.saved[len(kept) :], *self.fresh)
        write_segment(merged, files[slot], tmp_folder=tmp_folder)
        _remove(file for number, file in enumerate(files) if number not in (*slots, slot))
        written = load_segment(files[slot])
        # Another process may have published its own in between.
        if written is None or written.shards != ViewIndex((), merged).shards:
            return self
        return ViewIndex((*kept, written), ())

    def _kept(self, files: Sequence[Path]) -> tuple[Segment, ...]:
        """The saved segments that are so large that they are left as they are."""
        num_keys = self.num_unmerged_keys
        for number in range(len(self.saved), 0, -1):
            last = self.saved[number - 1]
            is_large = len(last) > max(_SMALL_KEYS, _RATIO * num_keys)
            # After the last of the files there is no place for another one.
            if is_large and _path_of(last) in files[:-1]:
                return self.saved[:number]
            num_keys += len(last)
        return ()

    @classmethod
    def load(cls, path: Path, *, live: Collection[str] | None = None) -> ViewIndex:
        """Map the saved segments, but for those that are damaged or not needed.

        A block is compared with its checksum when it is first touched, not now: that would
        read 27 bytes a text.

        Args:
            path: As given to `save`.
            live: Shards that there are: a segment that names another one is left out. None:
                any may be named.
        """
        saved: list[Segment] = []
        covered: set[str] = set()
        for file in segment_paths(path):
            segment = load_segment(file)
            # After a kill between publishing and removing there are segments merged already.
            if segment is None or covered.issuperset(segment.shards):
                continue
            if live is None or all(digest in live for digest in segment.shards):
                saved.append(segment)
                covered.update(segment.shards)
        return cls(tuple(saved), ())


def segment_paths(path: Path) -> list[Path]:
    """The files that an index may have, the largest segment's first."""
    return [path, *(path.with_name(f"{path.name}.{slot}") for slot in range(1, _MAX_SEGMENTS))]


def remove_index(path: Path) -> None:
    """Remove an index that is damaged or not wanted; fine if there is none, or it cannot be."""
    _remove(segment_paths(path))


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _path_of(segment: Segment) -> Path:
    if segment.path is None:
        raise ValueError("the segment is in memory")
    return segment.path


def save_quietly(index: ViewIndex, path: Path, *, tmp_folder: Path) -> ViewIndex:
    """Save a derived index, and remove it if it turns out to be damaged.

    Returns:
        The same index with its keys on disk; or as it was, where the store cannot be written
        or what is there is damaged.
    """
    try:
        return index.save(path, tmp_folder=tmp_folder)
    except DamagedIndexError:
        remove_index(path)
    except StoreError:
        pass
    return index
