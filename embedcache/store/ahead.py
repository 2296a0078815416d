"""Texts that are about to be read, batch by batch: what is the same work for all, done once.

Of a dictionary shard the texts' codes are looked up and padded ahead of their batches. Where
texts lie in several, the dictionaries are joined in memory before, each distinct row once. Either
way a batch is one pass of NumPy's ``take``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.refs import FeatureRefs, Members
from embedcache.store.shards.blocks import KEPT_BLOCKS, row_bytes_of
from embedcache.store.shards.codec import VALUE_DTYPES, from_storage
from embedcache.store.shards.format import BLOCK_BYTES
from embedcache.store.shards.padding import PlainRows, copy_texts
from embedcache.store.shards.row_table import RowTable
from embedcache.store.shards.shard import Shard
from embedcache.view import FeatureView

MAX_JOINED_BYTES = 256 << 20
"""Distinct rows that are kept joined, at most; texts of more are copied one by one."""

_CODES_AHEAD = 1 << 20
"""Codes of a single shard that are brought together at once, at most: 8 MB. Texts of more tokens
are so long that a batch's rows take nearly all of the time."""
_CELLS_AHEAD = 1 << 17
"""Codes that are padded at once: 1 MB."""

ShardGroup = tuple[Shard, Members, NDArray[np.int64], NDArray[np.int64]]
"""A shard, the places of some texts that lie in it, their starts and their lengths there."""


@dataclass(frozen=True, slots=True)
class ShardUse:
    """What some texts need of a shard.

    Attributes:
        digest: The shard's.
        members: Places of the texts that lie in it, (m,) int64.
        starts: Position of each one's first token in the shard, (m,) int64.
        num_bytes: Of their own tokens: rows, or codes.
        shared_bytes: Of the dictionary, whoever uses it.
        is_random_access: Whether texts may be read in any order. Of a compressed shard only
            what is kept once it is unpacked may.
    """

    digest: str
    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    num_bytes: int
    shared_bytes: int
    is_random_access: bool

    @classmethod
    def of_shard(
        cls,
        shard: Shard,
        members: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> ShardUse:
        """What texts at these positions need."""
        is_dictionary = shard.is_dictionary
        own = ["codes"] if is_dictionary else ["values", "scales"]
        shared = ["dictionary", "scales"] if is_dictionary else []
        places = shard.places
        token_bytes = sum(row_bytes_of(places[name]) for name in own if name in places)
        found = [places[name] for name in (*own, *shared) if name in places]
        packed = sum(place.num_bytes for place in found if place.offset is None)
        return cls(
            digest=shard.digest,
            members=members,
            starts=starts,
            num_bytes=int(lengths.sum()) * token_bytes,
            shared_bytes=sum(places[name].num_bytes for name in shared if name in places),
            is_random_access=packed <= KEPT_BLOCKS * BLOCK_BYTES,
        )


class JoinedDictionary:
    """The dictionaries of several shards, each distinct row once. Any threads.

    Args:
        view: Of the shards.
    """

    def __init__(self, view: FeatureView) -> None:
        self._view = view
        dtype = VALUE_DTYPES[view.dtype]
        self._table = RowTable(view.dim, dtype)
        # Padding is row 0, like any other token.
        self._table.places_of(np.zeros((1, view.dim), dtype))
        self._lock = threading.Lock()
        self._places: weakref.WeakKeyDictionary[Shard, NDArray[np.intp]] = (
            weakref.WeakKeyDictionary()
        )
        self._is_full = False

    def _places_of(self, shard: Shard) -> NDArray[np.intp] | None:
        """The place in the table of each row of a shard's dictionary; None where it is full."""
        with self._lock:
            places = self._places.get(shard)
            if places is None and not self._is_full:
                rows = from_storage(shard.stored_dictionary(), self._view.dtype)
                places = self._table.places_of(np.ascontiguousarray(rows)).astype(np.intp)
                self._places[shard] = places
                self._is_full = self._table.rows.nbytes > MAX_JOINED_BYTES
            return places

    def join(self, groups: Iterable[ShardGroup], padded: NDArray[np.int64]) -> CodedTexts | None:
        """Bring the codes of texts together; None if a shard has no dictionary, or it is full.

        Args:
            groups: The texts by their shards.
            padded: What each text is padded to, (n,).

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        parts = []
        for shard, members, starts, lengths in groups:
            places = self._places_of(shard) if shard.is_dictionary else None
            if places is None:
                return None
            parts.append((members, codes_of_texts(shard, places, starts, lengths), lengths))
        return CodedTexts(self._table.rows, parts, padded)


class CodedTexts:
    """Texts whose codes are brought together, in whichever shards they lie.

    The codes of some batches are padded at once, ahead of them: a batch is then one pass of
    ``take``. Between two steps of a training nothing is in the processor's caches, so that each
    of the small passes that are spared cost many times what it costs by itself.

    Args:
        rows: What the codes stand for, (V + 1, dim), or as bytes; the first is zeros.
        parts: Places of some texts, the codes of all of them one after the other, and the
            tokens of each.
        padded: What each text is padded to, (n,): in a batch all to the same.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        parts: Iterable[tuple[Members, NDArray[np.intp], NDArray[np.int64]]],
        padded: NDArray[np.int64],
    ) -> None:
        self._rows = rows
        # Where the cells of each text begin, if all batches lay one after the other.
        self._cells = splits_of_lengths(padded)
        self._ahead = _CellsAhead(np.zeros(0, np.intp), 0, 0)
        starts, self._lengths = np.zeros((2, len(padded)), np.int64)
        found = []
        first = 0
        for members, codes, lengths in parts:
            starts[members] = splits_of_lengths(lengths)[:-1] + first
            self._lengths[members] = lengths
            first += len(codes)
            found.append(codes)
        self._splits = splits_of_lengths(self._lengths)
        self._codes = found[0] if len(found) == 1 else np.concatenate(found)
        if not np.array_equal(starts, self._splits[:-1]):
            self._codes = self._codes.take(expand_ranges(starts, self._lengths))

    def gather_padded(self, texts: slice, out: NDArray[Any]) -> None:
        """As `embedcache.store.reader.ViewReader.gather_padded`."""
        ahead = self._ahead
        if not ahead.start <= texts.start <= texts.stop <= ahead.stop:
            ahead = self._ahead = self._pad(texts)
        first = self._cells[ahead.start]
        cells = ahead.cells[self._cells[texts.start] - first : self._cells[texts.stop] - first]
        target = out.reshape(-1, out.shape[2]).view(self._rows.dtype)
        self._rows.take(cells, axis=0, out=target, mode="clip")

    def _pad(self, texts: slice) -> _CellsAhead:
        """Some texts and as many of the next as are padded at once."""
        start = texts.start
        enough = self._cells[start] + _CELLS_AHEAD
        stop = max(texts.stop, int(np.searchsorted(self._cells, enough, side="right")) - 1)
        # Each text's codes and then its padding, which is 0.
        counts = np.empty((stop - start, 2), np.int64)
        counts[:, 0] = self._lengths[start:stop]
        counts[:, 1] = np.diff(self._cells[start : stop + 1]) - counts[:, 0]
        is_code = np.repeat(np.tile([True, False], stop - start), counts.reshape(-1))
        cells = np.zeros(len(is_code), np.intp)
        cells[is_code] = self._codes[self._splits[start] : self._splits[stop]]
        return _CellsAhead(cells, start, stop)


@dataclass(frozen=True, slots=True)
class _CellsAhead:
    """The padded codes of the texts from ``start`` up to ``stop``, one after the other."""

    cells: NDArray[np.intp]
    start: int
    stop: int


class CopiedTexts:
    """Texts that are copied one by one, each from a shard of its own.

    Args:
        sources: Each text's shard.
        starts: Position of each one's first token there, (n,).
        lengths: Tokens of each, (n,).
    """

    def __init__(
        self, sources: Sequence[PlainRows], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        self._sources = sources
        self._starts: list[int] = starts.tolist()
        self._lengths: list[int] = lengths.tolist()

    @classmethod
    def of_open_shards(cls, refs: FeatureRefs, shards: Mapping[int, Shard]) -> CopiedTexts | None:
        """None if rows are not all checked by now, or not stored as they are handed out.

        Args:
            refs: Where the texts lie, none missing.
            shards: The shards that are open, by their number.
        """
        found: dict[int, PlainRows] = {}
        for number in np.unique(refs.shards).tolist():
            shard = shards.get(number)
            if shard is None or shard.plain_rows is None:
                return None
            found[number] = shard.plain_rows
        return cls([found[number] for number in refs.shards.tolist()], refs.starts, refs.lengths)

    def gather_padded(self, texts: slice, out: NDArray[Any]) -> None:
        """As `embedcache.store.reader.ViewReader.gather_padded`."""
        copy_texts(self._sources[texts], self._starts[texts], self._lengths[texts], out)


def codes_of_texts(
    shard: Shard,
    places: NDArray[np.intp],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.intp]:
    """The codes of texts of a dictionary shard, one after the other, as places elsewhere.

    Args:
        shard: The shard.
        places: The place elsewhere of each row of its dictionary, (V,).
        starts: Position of each text's first token, (n,).
        lengths: Tokens of each, (n,).
    """
    return places.take(shard.codes(expand_ranges(starts, lengths)))


def coded_texts_of_shard(group: ShardGroup, padded: NDArray[np.int64]) -> CodedTexts | None:
    """Texts of one dictionary shard; None if it is none, or another way is as fast.

    Args:
        group: The shard, with all the texts.
        padded: What each text is padded to, (n,).

    Raises:
        CorruptShardError: if the bytes touched are not what was written.
    """
    shard, members, starts, lengths = group
    table = shard.dictionary_with_zeros() if int(lengths.sum()) <= _CODES_AHEAD else None
    if table is None:
        return None
    codes = np.add(shard.codes(expand_ranges(starts, lengths)), table.lead, dtype=np.intp)
    return CodedTexts(table.rows, [(members, codes, lengths)], padded)
