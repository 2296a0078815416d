"""The texts of an open shard into key order, a piece at a time.

Nothing is copied that is not being written: a shard of 256 MiB is brought into order through
a buffer of one or a few MiB, which stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys, sort_order
from embedcache.ragged import expand_ranges, splits_of_lengths, whole_rows
from embedcache.store.shards.codec import SCALE_DTYPE, split_scales
from embedcache.store.shards.format import TOKEN_DATASETS, Arrays
from embedcache.store.shards.image import Rows, ShardContent
from embedcache.view import FeatureView

_Move = tuple[int, NDArray[np.int64], NDArray[np.int64] | None]
"""A part, positions in it, and the places in a window."""

_PIECE_BYTES = 1 << 20
_PARTS_PIECE_BYTES = 16 << 20
"""With many parts every piece has texts of each, which costs some microseconds a part."""


@dataclass(frozen=True, slots=True)
class Part:
    """Texts that were added by one call, with the tokens and flags of each.

    Attributes:
        keys: Shape (n, 16).
        lengths: Tokens of each text, (n,).
        flags: Of each text, (n,) uint8.
        arrays: All their tokens' ``codes`` or ``values`` (stored rows), and ``token_ids`` and
            ``spans`` where they were given; one entry or row a token.
    """

    keys: Keys
    lengths: NDArray[np.int64]
    flags: NDArray[np.uint8]
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How rows are to be laid out.

    Attributes:
        encoding: ``"auto"``, ``"dense"`` or ``"dictionary"``.
        compression: ``"none"`` or ``"zstd"``.
    """

    encoding: str
    compression: str


def ordered_content(
    parts: Sequence[Part], table: NDArray[Any] | None, view: FeatureView, layout: RowLayout
) -> ShardContent:
    """What a shard of these parts is to hold.

    Args:
        parts: At least one; all with the same arrays.
        table: The stored rows that codes are places in, (V, row_width); None for values.
        view: What they were made with.
        layout: How rows are to be laid out.
    """
    order = _TextOrder(parts)
    names = parts[0].arrays
    ordered = {
        name: _OrderedRows(order, [part.arrays[name] for part in parts])
        for name in names
        if name != "values" or view.dtype != "int8"
    }
    extras = {name: ordered.pop(name) for name in TOKEN_DATASETS if name in ordered}
    if "codes" in names and table is not None:
        codes = [part.arrays["codes"] for part in parts]
        rows = _encode(codes, ordered["codes"], table, view, layout.encoding)
    elif view.dtype == "int8":
        rows = _split_values(order, [part.arrays["values"] for part in parts])
    else:
        rows = {"values": ordered["values"]}
    flags = np.concatenate([part.flags for part in parts])
    return ShardContent(
        view=view,
        keys=order.keys,
        row_splits=order.row_splits,
        flags=flags[order.texts],
        rows=rows,
        extras=extras,
        compression=layout.compression,
    )


def _encode(
    parts: Sequence[NDArray[np.uint32]],
    codes: Rows,
    table: NDArray[Any],
    view: FeatureView,
    encoding: str,
) -> dict[str, Rows | NDArray[Any]]:
    """Rows of a table as a dictionary of those used, or spelled out if that is smaller."""
    is_used = np.zeros(len(table), np.bool_)
    for part in parts:
        is_used[part] = True
    used, num_tokens = np.flatnonzero(is_used), codes.shape[0]
    row_bytes = table.shape[1] * table.itemsize
    dictionary_bytes = 4 * num_tokens + len(used) * row_bytes
    dense = encoding == "dense" or (
        encoding == "auto" and num_tokens * row_bytes <= dictionary_bytes
    )
    if dense and view.dtype == "int8":
        numbers, scales = split_scales(table)
        return {"values": _LookedUpRows(codes, numbers), "scales": _LookedUpRows(codes, scales)}
    if dense:
        return {"values": _LookedUpRows(codes, table)}
    place = np.zeros(len(table), "<u4")
    place[used] = np.arange(len(used))
    placed = _LookedUpRows(codes, place)
    if view.dtype == "int8":
        numbers, scales = split_scales(table[used])
        return {"codes": placed, "dictionary": numbers, "scales": scales}
    return {"codes": placed, "dictionary": table[used]}


def _split_values(
    order: _TextOrder, parts: Sequence[NDArray[Any]]
) -> dict[str, Rows | NDArray[Any]]:
    """Stored rows of int8 as numbers, and the scale of each row."""
    scales = [
        np.ascontiguousarray(part[:, -SCALE_DTYPE.itemsize :]).view(SCALE_DTYPE).reshape(-1)
        for part in parts
    ]
    return {
        "values": _NumbersOfRows(_OrderedRows(order, parts)),
        "scales": _OrderedRows(order, scales),
    }


class _TextOrder:
    """The texts of several parts in key order.

    Attributes:
        keys: Ascending, (n, 16).
        texts: Which text, in the order added, is at each place, (n,).
        row_splits: Where the tokens of each begin, (n + 1,).
        part_splits: First text of each part, in the order added, (p + 1,).
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        keys = np.concatenate([part.keys for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        self.texts = sort_order(keys)
        self.keys: Keys = keys[self.texts]
        self.row_splits = splits_of_lengths(lengths[self.texts])
        self.part_splits = splits_of_lengths([len(part.keys) for part in parts])
        self._lengths = lengths
        # Where a text's tokens begin in its own part.
        self._starts = np.concatenate([splits_of_lengths(part.lengths)[:-1] for part in parts])
        self._places = np.empty(len(keys), np.int64)
        self._places[self.texts] = self.row_splits[:-1]

    def windows(self, num_rows: int) -> Iterator[tuple[int, int]]:
        """Ranges of places whose texts have about so many rows together; one text at least."""
        first, num_texts = 0, len(self.texts)
        while first < num_texts:
            limit = self.row_splits[first] + num_rows
            last = int(np.searchsorted(self.row_splits, limit, side="right")) - 1
            last = min(max(first + 1, last), num_texts)
            yield first, last
            first = last

    def moves(self, first: int, last: int) -> Iterator[_Move]:
        """Where the rows of a window come from: of each part, positions in it and in the window.

        None for the latter where they are all places of the window in order.
        """
        start = self.row_splits[first]
        if len(self.part_splits) == 2:
            texts = self.texts[first:last]
            rows = expand_ranges(self._starts[texts], self._lengths[texts])
            yield 0, rows, None
            return
        # Sorted, they lie part by part.
        texts = np.sort(self.texts[first:last])
        bounds = np.searchsorted(texts, self.part_splits)
        for part in np.flatnonzero(np.diff(bounds)).tolist():
            chosen = texts[bounds[part] : bounds[part + 1]]
            lengths = self._lengths[chosen]
            yield (
                part,
                expand_ranges(self._starts[chosen], lengths),
                expand_ranges(self._places[chosen] - start, lengths),
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self._lengths.max(initial=0))


class _OrderedRows:
    """One array of all parts in the order of the keys; `Rows`."""

    def __init__(self, order: _TextOrder, arrays: Sequence[NDArray[Any]]) -> None:
        self._order = order
        self._arrays = arrays

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self._order.row_splits[-1]), *self._arrays[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._arrays[0].dtype

    def pieces(self) -> Iterator[NDArray[Any]]:
        piece_bytes = _PIECE_BYTES if len(self._arrays) == 1 else _PARTS_PIECE_BYTES
        tail = self.shape[1:]
        row_bytes = max(1, int(np.prod(tail, dtype=np.int64)) * self.dtype.itemsize)
        num_rows = min(self.shape[0], max(piece_bytes // row_bytes, self._order.longest))
        buffer = np.empty((num_rows, *tail), self.dtype)
        for first, last in self._order.windows(max(1, piece_bytes // row_bytes)):
            size = int(self._order.row_splits[last] - self._order.row_splits[first])
            window = buffer[:size]
            for part, sources, targets in self._order.moves(first, last):
                _move(self._arrays[part], sources, window, targets)
            yield window


def _move(
    source: NDArray[Any],
    sources: NDArray[np.int64],
    target: NDArray[Any],
    targets: NDArray[np.int64] | None,
) -> None:
    """Rows of source to places in target."""
    if targets is None:
        # "clip" for the buffer that NumPy would take to be able to undo a wrong position;
        # there are none.
        source.take(sources, axis=0, out=target, mode="clip")
    elif source.ndim == 1:
        # Twice as fast as `put` for numbers, which is slower for rows.
        target[targets] = source[sources]
    else:
        np.put(whole_rows(target), targets, whole_rows(source).take(sources))


class _LookedUpRows:
    """Rows of a table, by codes; `Rows`."""

    def __init__(self, codes: Rows, table: NDArray[Any]) -> None:
        self._codes = codes
        self._table = table

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._codes.shape[0], *self._table.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._table.dtype

    def pieces(self) -> Iterator[NDArray[Any]]:
        row_bytes = max(1, self._table.nbytes // max(1, len(self._table)))
        num_rows = max(1, _PIECE_BYTES // row_bytes)
        for codes in self._codes.pieces():
            for first in range(0, len(codes), num_rows):
                yield self._table.take(codes[first : first + num_rows], axis=0)


class _NumbersOfRows:
    """Stored rows of int8 without their scales; `Rows`."""

    def __init__(self, rows: _OrderedRows) -> None:
        self._rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        num_rows, width = self._rows.shape
        return num_rows, width - SCALE_DTYPE.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._rows.dtype

    def pieces(self) -> Iterator[NDArray[Any]]:
        for piece in self._rows.pieces():
            yield np.ascontiguousarray(piece[:, : self.shape[1]])
