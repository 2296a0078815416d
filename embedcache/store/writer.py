"""Collecting features in memory and publishing them as shards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EncodingError
from embedcache.keys import KEY_BYTES, Keys, sort_order
from embedcache.ragged import expand_ranges, splits_of_lengths, whole_rows
from embedcache.store.catalog import Catalog
from embedcache.store.codec import STORAGE_DTYPES
from embedcache.store.format import FLAG_TRUNCATED, FLAG_WINDOWED, TOKEN_DATASETS, Arrays
from embedcache.store.image import ShardContent, image_digest
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import publish_file
from embedcache.store.records import ShardRecord
from embedcache.view import FeatureView

MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_TEXTS = 1 << 18
MAX_SHARD_AGE_S = 60.0
"""A kill loses at most this much work: a shard closes then even if it is small."""

_SCATTER_TEXTS = 4096

ENCODINGS = ("auto", "dense", "dictionary")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLimits:
    """When a shard closes, and how its rows are laid out.

    Attributes:
        max_shard_bytes: Bytes of rows, token ids and spans that a shard holds at most; the
            memory that writing takes is about three times this.
        max_texts: Texts that a shard holds at most: their keys are kept in memory while it
            is open, at about 150 bytes each.
        max_age_s: Seconds after its first text that a shard closes in any case.
        encoding: ``"dense"`` one row a token; ``"dictionary"`` each distinct row once;
            ``"auto"`` the smaller of the two where the module allows both.
    """

    max_shard_bytes: int = MAX_SHARD_BYTES
    max_texts: int = MAX_SHARD_TEXTS
    max_age_s: float = MAX_SHARD_AGE_S
    encoding: str = "auto"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be {' or '.join(ENCODINGS)}: got {self.encoding!r}")


Flags = NDArray[np.uint8] | NDArray[np.bool_]
"""Flags of n texts, (n,): bits of `embedcache.store.shard`, or bool: True for a cut text."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one call added: texts with the tokens and flags of each.

    ``arrays`` are all their tokens' ``codes`` or ``values``, and ``token_ids`` and ``spans``
    where they were given.
    """

    keys: Keys
    lengths: NDArray[np.int64]
    flags: NDArray[np.uint8]
    arrays: Arrays


class ShardWriter:
    """Publishes the features of one view, a shard at a time.

    What `add_codes` or `add_values` took is acknowledged when `flush` returns. The keys of
    the open shard can be asked for with `pending`, so that no text is embedded twice.
    """

    def __init__(
        self,
        layout: StoreLayout,
        catalog: Catalog,
        view: FeatureView,
        *,
        limits: WriterLimits | None = None,
        on_publish: Callable[[ShardRecord], None] = lambda _record: None,
    ) -> None:
        self._layout = layout
        self._catalog = catalog
        self._view = view
        self._limits = limits or WriterLimits()
        self._on_publish = on_publish
        self._row_bytes = view.dim * np.dtype(view.dtype).itemsize
        self.published: list[ShardRecord] = []
        self._clear()

    def _clear(self) -> None:
        self._parts: list[_Part] = []
        self.pending: set[bytes] = set()
        self._table: NDArray[Any] | None = None
        self._num_bytes = 0
        self._opened_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the open shard should be closed now."""
        if not self._parts:
            return False
        limits = self._limits
        return (
            self._num_bytes >= limits.max_shard_bytes
            or len(self.pending) >= limits.max_texts
            or time.monotonic() - self._opened_at >= limits.max_age_s
        )

    def add_codes(
        self,
        keys: Keys,
        lengths: NDArray[np.int64],
        flags: Flags,
        *,
        codes: NDArray[np.uint32],
        table: NDArray[Any],
        token_ids: NDArray[np.uint32] | None = None,
        spans: NDArray[np.uint32] | None = None,
    ) -> None:
        """Add texts whose rows are rows of a table.

        All of one open shard has the same kind of rows, and token ids and spans or not. The
        arrays are not copied: they stay as they are until `flush`.

        Args:
            keys: Shape (n, 16), distinct and not pending.
            lengths: Tokens of each text, (n,).
            flags: Of each text, (n,) uint8 of the bits `FLAG_TRUNCATED` and `FLAG_WINDOWED`;
                or bool, whether each was cut.
            codes: Row of the table of each token, (T,).
            table: Shape (V, dim), storage dtype. It may grow between calls; rows that
                stand stay as they are until `flush`.
            token_ids: Vocabulary id of each token, (T,) uint32.
            spans: UTF-8 bytes [start, end) of its text that each token stands for, (T, 2)
                uint32; start == end for none.

        Raises:
            EncodingError: if shapes or dtypes do not fit, or what was added before is of
                another kind; nothing is added then.
        """
        self._check_rows(table, "table")
        largest = int(codes.max()) if codes.size else -1
        if codes.dtype != np.uint32 or codes.ndim != 1 or largest >= len(table):
            raise EncodingError(
                f"codes must be (T,) uint32 below {len(table)}: got {codes.shape} {codes.dtype} up"
                f" to {largest}"
            )
        arrays = {"codes": codes, **_token_arrays(len(codes), token_ids, spans)}
        part = _Part(keys, lengths, _as_bits(flags), arrays)
        added = self._check_texts(part, len(codes))
        num_bytes = _num_bytes(arrays)
        if self._limits.encoding == "dense":
            num_bytes += len(codes) * self._row_bytes - codes.nbytes
        # Before the part: rows that stand are the same in it, and a part needs its table.
        self._table = table
        self._add(part, added, num_bytes)

    def add_values(
        self,
        keys: Keys,
        lengths: NDArray[np.int64],
        flags: Flags,
        *,
        values: NDArray[Any],
        token_ids: NDArray[np.uint32] | None = None,
        spans: NDArray[np.uint32] | None = None,
    ) -> None:
        """Add texts with their own rows.

        Args:
            keys: Shape (n, 16), distinct and not pending.
            lengths: Tokens of each text, (n,).
            flags: As for `add_codes`.
            values: Shape (T, dim), storage dtype.
            token_ids: As for `add_codes`.
            spans: As for `add_codes`.

        Raises:
            EncodingError: if shapes or dtypes do not fit, or what was added before is of
                another kind; nothing is added then.
        """
        self._check_rows(values, "values")
        arrays = {"values": values, **_token_arrays(len(values), token_ids, spans)}
        part = _Part(keys, lengths, _as_bits(flags), arrays)
        self._add(part, self._check_texts(part, len(values)), _num_bytes(arrays))

    def _add(self, part: _Part, added: set[bytes], num_bytes: int) -> None:
        if not added:
            return
        if not self._parts:
            self._opened_at = time.monotonic()
        # Ctrl-C may come between any two of these, and `flush` after it: the part goes in
        # whole, by one step, and what is written is made of the parts alone.
        self._parts.append(part)
        self.pending |= added
        self._num_bytes += num_bytes

    def _check_rows(self, rows: NDArray[Any], name: str) -> None:
        wanted = STORAGE_DTYPES[self._view.dtype]
        if rows.ndim != 2 or rows.shape[1] != self._view.dim or rows.dtype != wanted:
            raise EncodingError(
                f"{name} must be (rows, {self._view.dim}) {wanted}: got {rows.shape} {rows.dtype}"
            )

    def _check_texts(self, part: _Part, num_tokens: int) -> set[bytes]:
        """The keys as a set. What does not fit would be a shard that no reader takes."""
        keys, lengths = part.keys, part.lengths
        shapes = (keys.shape, lengths.shape, part.flags.shape)
        num_texts = len(keys)
        if shapes != ((num_texts, KEY_BYTES), (num_texts,), (num_texts,)):
            raise EncodingError(f"keys, lengths and flags do not fit: {shapes}")
        if int(lengths.min(initial=0)) < 0 or int(lengths.sum()) != num_tokens:
            raise EncodingError(
                f"the lengths add up to {lengths.sum()}, there are {num_tokens} rows"
            )
        self._check_kind(part.arrays)
        added = set(map(bytes, keys))
        if len(added) != num_texts or not self.pending.isdisjoint(added):
            raise EncodingError("a key is given twice, or is pending already")
        return added

    def _check_kind(self, arrays: Arrays) -> None:
        open_arrays = self._parts[0].arrays if self._parts else arrays
        if ("codes" in arrays) != ("codes" in open_arrays):
            raise EncodingError("one shard takes codes or values, not both; flush in between")
        for name in TOKEN_DATASETS:
            if (name in arrays) != (name in open_arrays):
                raise EncodingError(
                    f"one shard takes {name} of all its texts or of none; flush in between"
                )

    def flush(self) -> None:
        """Close the open shard: durable and catalogued when this returns.

        Raises:
            StoreError: if the device refuses; nothing of the shard is catalogued then.
        """
        if not self._parts:
            return
        image = self._content().image()
        digest = image_digest(image)
        fingerprint = self._view.fingerprint
        path = self._layout.shard_path(fingerprint, digest)
        publish_file([image], path, tmp_folder=self._layout.tmp)
        num_texts = sum(len(part.keys) for part in self._parts)
        num_tokens = sum(int(part.lengths.sum()) for part in self._parts)
        record = ShardRecord(digest, fingerprint, num_texts, num_tokens, len(image))
        self._catalog.add_shard(record)
        self.published.append(record)
        self._clear()
        self._on_publish(record)

    def _content(self) -> ShardContent:
        """The open shard with its texts in key order."""
        keys = np.concatenate([part.keys for part in self._parts])
        lengths = np.concatenate([part.lengths for part in self._parts])
        flags = np.concatenate([part.flags for part in self._parts])
        order = sort_order(keys)
        row_splits = splits_of_lengths(lengths[order])
        places = np.empty(len(order), np.int64)
        places[order] = row_splits[:-1]
        rows = {name: self._ordered(name, places, lengths) for name in self._parts[0].arrays}
        extras = {name: rows.pop(name) for name in TOKEN_DATASETS if name in rows}
        if "codes" in rows and self._table is not None:
            rows = self._encode(rows["codes"], self._table)
        return ShardContent(
            view=self._view,
            keys=keys[order],
            row_splits=row_splits,
            flags=flags[order],
            rows=rows,
            extras=extras,
        )

    def _ordered(
        self, name: str, places: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[Any]:
        """One array of all parts, each text's tokens at its place; copied once, for memory's sake.

        Args:
            name: Of the array.
            places: Where the tokens of each text shall begin, (n,), in the order added.
            lengths: Tokens of each text, (n,), in the order added.
        """
        like = self._parts[0].arrays[name]
        ordered = np.empty((int(lengths.sum()), *like.shape[1:]), like.dtype)
        first = 0
        for part in self._parts:
            last = first + len(part.keys)
            _scatter(part.arrays[name], ordered, places[first:last], part.lengths)
            first = last
        return ordered

    def _encode(self, codes: NDArray[np.uint32], table: NDArray[Any]) -> Arrays:
        """Rows of a table as a dictionary of those used, or spelled out if that is smaller."""
        is_used = np.zeros(len(table), np.bool_)
        is_used[codes] = True
        used = np.flatnonzero(is_used)
        dictionary_bytes = 4 * len(codes) + len(used) * self._row_bytes
        dense = self._limits.encoding == "dense" or (
            self._limits.encoding == "auto" and len(codes) * self._row_bytes <= dictionary_bytes
        )
        if dense:
            return {"values": table.take(codes, axis=0)}
        place = np.zeros(len(table), "<u4")
        place[used] = np.arange(len(used))
        return {"codes": place[codes], "dictionary": table[used]}


def _scatter(
    source: NDArray[Any],
    target: NDArray[Any],
    places: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """Ranges of rows that follow each other in source, each to its place in target.

    Some texts at a time: the positions of all would be more than short rows themselves.
    """
    splits = splits_of_lengths(lengths)
    for first in range(0, len(lengths), _SCATTER_TEXTS):
        texts = slice(first, first + _SCATTER_TEXTS)
        positions = expand_ranges(places[texts], lengths[texts])
        rows = np.ascontiguousarray(source[splits[first] : splits[first] + len(positions)])
        if rows.ndim == 1:
            # Twice as fast as `put` for numbers, which is slower for rows.
            target[positions] = rows
        else:
            np.put(whole_rows(target), positions, whole_rows(rows))


def _token_arrays(
    num_tokens: int, token_ids: NDArray[np.uint32] | None, spans: NDArray[np.uint32] | None
) -> Arrays:
    """Those of the two that there are, by name.

    Raises:
        EncodingError: if shapes or dtypes do not fit, or a span ends before it starts.
    """
    arrays: Arrays = {}
    for name, array, shape in (
        ("token_ids", token_ids, (num_tokens,)),
        ("spans", spans, (num_tokens, 2)),
    ):
        if array is None:
            continue
        if array.shape != shape or array.dtype != np.uint32:
            raise EncodingError(f"{name} must be {shape} uint32: got {array.shape} {array.dtype}")
        arrays[name] = array
    if spans is not None and np.any(spans[:, 1] < spans[:, 0]):
        token = int(np.argmax(spans[:, 1] < spans[:, 0]))
        start, end = spans[token].tolist()
        raise EncodingError(f"the span of token {token} ends before it starts: {start} to {end}")
    return arrays


def _as_bits(flags: Flags) -> NDArray[np.uint8]:
    """Flags as uint8; where they are bool, True is `FLAG_TRUNCATED`.

    Raises:
        EncodingError: if they are of another dtype, or have bits that the format lacks.
    """
    if flags.dtype not in (np.bool_, np.uint8):
        raise EncodingError(f"flags must be uint8 or bool: got {flags.dtype}")
    is_cut = flags.dtype == np.bool_
    bits = (np.where(flags, FLAG_TRUNCATED, 0) if is_cut else flags).astype(np.uint8)
    if np.any(bits & ~np.uint8(FLAG_TRUNCATED | FLAG_WINDOWED)):
        raise EncodingError(f"flags must be made of the bits 1 and 2: got {int(bits.max())}")
    return bits


def _num_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
