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
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.catalog import Catalog
from embedcache.store.codec import STORAGE_DTYPES
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import publish_file
from embedcache.store.records import ShardRecord
from embedcache.store.shard import FLAG_TRUNCATED, Arrays, ShardContent, image_digest
from embedcache.view import FeatureView

MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_TEXTS = 1 << 18
MAX_SHARD_AGE_S = 60.0
"""A kill loses at most this much work: a shard closes then even if it is small."""

_REORDER_TEXTS = 4096

ENCODINGS = ("auto", "dense", "dictionary")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLimits:
    """When a shard closes, and how its rows are laid out.

    Attributes:
        max_shard_bytes: Bytes of rows that a shard holds at most; the memory that writing
            takes is about three times this.
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What one call added: texts with the tokens and flags of each, and all their rows."""

    keys: Keys
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    rows: NDArray[Any]


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
        truncated: NDArray[np.bool_],
        *,
        codes: NDArray[np.uint32],
        table: NDArray[Any],
    ) -> None:
        """Add texts whose rows are rows of a table.

        Args:
            keys: Shape (n, 16), distinct and not pending.
            lengths: Tokens of each text, (n,).
            truncated: Whether each was cut, (n,).
            codes: Row of the table of each token, (T,).
            table: Shape (V, dim), storage dtype. It may grow between calls; rows that
                stand stay as they are until `flush`.

        Raises:
            EncodingError: if shapes or dtypes do not fit; nothing is added then.
        """
        self._check_rows(table, "table")
        largest = int(codes.max()) if codes.size else -1
        if codes.dtype != np.uint32 or codes.ndim != 1 or largest >= len(table):
            raise EncodingError(
                f"codes must be (T,) uint32 below {len(table)}: got {codes.shape} {codes.dtype} up"
                f" to {largest}"
            )
        dictionary_bytes = 0 if self._limits.encoding == "dense" else 4 * len(codes)
        num_bytes = dictionary_bytes or len(codes) * self._row_bytes
        part = _Part(keys, lengths, truncated, codes)
        added = self._check_texts(part)
        # Before the part: rows that stand are the same in it, and a part needs its table.
        self._table = table
        self._add(part, added, num_bytes)

    def add_values(
        self,
        keys: Keys,
        lengths: NDArray[np.int64],
        truncated: NDArray[np.bool_],
        *,
        values: NDArray[Any],
    ) -> None:
        """Add texts with their own rows.

        Args:
            keys: Shape (n, 16), distinct and not pending.
            lengths: Tokens of each text, (n,).
            truncated: Whether each was cut, (n,).
            values: Shape (T, dim), storage dtype.

        Raises:
            EncodingError: if shapes or dtypes do not fit; nothing is added then.
        """
        self._check_rows(values, "values")
        part = _Part(keys, lengths, truncated, values)
        self._add(part, self._check_texts(part), values.nbytes)

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

    def _check_texts(self, part: _Part) -> set[bytes]:
        """The keys as a set. What does not fit would be a shard that no reader takes."""
        keys, lengths, rows = part.keys, part.lengths, part.rows
        shapes = (keys.shape, lengths.shape, part.truncated.shape)
        num_texts = len(keys)
        if shapes != ((num_texts, KEY_BYTES), (num_texts,), (num_texts,)):
            raise EncodingError(f"keys, lengths and truncated do not fit: {shapes}")
        if int(lengths.min(initial=0)) < 0 or int(lengths.sum()) != len(rows):
            raise EncodingError(
                f"the lengths add up to {lengths.sum()}, there are {len(rows)} rows"
            )
        if self._parts and self._parts[0].rows.ndim != rows.ndim:
            raise EncodingError("one shard takes codes or values, not both; flush in between")
        added = set(map(bytes, keys))
        if len(added) != num_texts or not self.pending.isdisjoint(added):
            raise EncodingError("a key is given twice, or is pending already")
        return added

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
        rows = np.concatenate([part.rows for part in self._parts])
        truncated = np.concatenate([part.truncated for part in self._parts])
        order = sort_order(keys)
        rows = _reordered(rows, splits_of_lengths(lengths)[:-1][order], lengths[order])
        flags = np.where(truncated[order], FLAG_TRUNCATED, 0)
        return ShardContent(
            view=self._view,
            keys=keys[order],
            row_splits=splits_of_lengths(lengths[order]),
            flags=flags.astype(np.uint8),
            rows={"values": rows} if self._table is None else self._encode(rows, self._table),
        )

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


def _reordered(
    rows: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """The ranges of rows, one after the other; some texts at a time, for memory's sake."""
    splits = splits_of_lengths(lengths)
    ordered = np.empty_like(rows)
    for first in range(0, len(starts), _REORDER_TEXTS):
        part = slice(first, first + _REORDER_TEXTS)
        positions = expand_ranges(starts[part], lengths[part])
        into = ordered[splits[first] : splits[first] + len(positions)]
        # "clip": with "raise", `take` goes through a buffer. The positions are our own.
        np.take(rows, positions, axis=0, out=into, mode="clip")
    return ordered
