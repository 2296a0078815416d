"""Rows of a source → the shards of a view: each text once, and nothing that is there already."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import ExchangeError, StoreError
from embedcache.exchange.records import block_ranges
from embedcache.exchange.sources import FeatureSource
from embedcache.exchange.texts import NO_MATRIX, Documents
from embedcache.keys import Keys
from embedcache.ragged import splits_of_lengths
from embedcache.store.shards.codec import BadRowError, to_storage
from embedcache.store.store import FeatureStore
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView

_BLOCK_BYTES = 32 << 20
_BLOCK_TEXTS = 4096


class ViewFiller:
    """Puts the features of documents into a view; a context manager.

    A text that the store has, or that came before, is compared with what is kept and not
    written. Leaving the block by an error that is not the store's own, Ctrl-C among them,
    keeps what was taken by then.

    Attributes:
        misses: Distinct texts that the store lacked.
        tokens: Rows of these.
        differing: Documents whose features are not those that are kept of the same text.
    """

    def __init__(
        self,
        store: FeatureStore,
        view: FeatureView,
        source: FeatureSource,
        documents: Documents,
        *,
        limits: WriterLimits | None = None,
    ) -> None:
        self._view = view
        self._source = source
        self._documents = documents
        self._reader = store.reader(view)
        self._writer = store.writer(view, limits=limits)
        # Digests of the rows of texts that cannot be read back yet: of the open shard, and of
        # the one that is being published.
        self._open: dict[bytes, bytes] = {}
        self._closing: dict[bytes, bytes] = {}
        self.misses = 0
        self.tokens = 0
        self.differing = 0

    def __enter__(self) -> ViewFiller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or not issubclass(kind, StoreError):
            self._writer.flush()
        self._reader.save_index()

    @property
    def published_bytes(self) -> list[int]:
        """Size of each shard written."""
        return [record.num_bytes for record in self._writer.published]

    def fill(self, on_block: Callable[[int, float], None]) -> None:
        """Take all documents.

        Args:
            on_block: Called after each block with how many documents are done, and which
                share of all rows.

        Raises:
            ExchangeError: at the first text whose features cannot be kept; what came before
                stays.
        """
        documents, source = self._documents, self._source
        lengths = np.where(documents.matrices == NO_MATRIX, 0, source.lengths[documents.matrices])
        row_bytes = source.layers.width * max(source.dtype.itemsize, 4)
        ranges = block_ranges(lengths * row_bytes, max_bytes=_BLOCK_BYTES, max_texts=_BLOCK_TEXTS)
        rows_done = 0
        for first, last in ranges:
            self._take_block(first, last, lengths[first:last])
            rows_done += int(lengths[first:last].sum())
            on_block(last, rows_done / max(1, int(lengths.sum())))

    def _take_block(self, first: int, last: int, lengths: NDArray[np.int64]) -> None:
        matrices = self._documents.matrices[first:last]
        known = matrices[matrices != NO_MATRIX]
        if len(known):
            rows = self._source.read(int(known[0]), int(known[-1]) + 1)
        else:
            rows = np.zeros((0, self._view.dim), self._source.dtype)
        stored = self._to_storage(rows, first, lengths)
        keys = self._documents.keys[first:last]
        is_hit = self._reader.contains(keys)
        self._compare_hits(first, keys, stored, splits_of_lengths(lengths), is_hit)
        self._add_others(first, keys, stored, lengths, is_hit)

    def _to_storage(
        self, rows: NDArray[Any], first: int, lengths: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Rows of the storage dtype, or the error of the first text that it cannot hold."""
        half = rows.dtype.itemsize == np.dtype(np.float16).itemsize
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float16 if half else np.float32, copy=False)
        try:
            return to_storage(
                rows.astype(rows.dtype.newbyteorder("="), copy=False), self._view.dtype
            )
        except BadRowError as error:
            text = int(np.searchsorted(np.cumsum(lengths), error.row, side="right"))
            is_finite = bool(np.isfinite(rows[error.row]).all())
            reason = str(error) if is_finite else "there is a NaN or an infinity among the numbers"
            raise ExchangeError(
                f"{self._where(first + text)}: {reason}; what came before it is kept"
            ) from error

    def _where(self, document: int) -> str:
        matrix = int(self._documents.matrices[document])
        place = self._documents.places.of(document)
        return f"{self._source.path}: {self._source.name_of(matrix)} ({place})"

    def _compare_hits(
        self,
        first: int,
        keys: Keys,
        stored: NDArray[Any],
        splits: NDArray[np.int64],
        is_hit: NDArray[np.bool_],
    ) -> None:
        """Compare what is in the store with what the file has."""
        hits = np.flatnonzero(is_hit)
        if not len(hits):
            return
        kept = self._reader.gather(self._reader.locate(keys[hits]))
        for position, matrix in zip(hits.tolist(), kept, strict=True):
            rows = stored[splits[position] : splits[position + 1]]
            # By their bits: 0.0 and -0.0 are not the same feature.
            if not np.array_equal(_bits(rows), _bits(matrix)):
                self._note_difference(first + position)

    def _add_others(
        self,
        first: int,
        keys: Keys,
        stored: NDArray[Any],
        lengths: NDArray[np.int64],
        is_hit: NDArray[np.bool_],
    ) -> None:
        splits = splits_of_lengths(lengths).tolist()
        new = np.zeros(len(keys), np.bool_)
        for position in np.flatnonzero(~is_hit).tolist():
            key = keys[position].tobytes()
            rows = stored[splits[position] : splits[position + 1]]
            digest = xxhash.xxh3_128_digest(np.ascontiguousarray(rows).data)
            kept = self._closing.get(key) or self._open.get(key)
            if kept is None:
                self._open[key] = digest
                new[position] = True
            elif kept != digest:
                self._note_difference(first + position)
        if not new.any():
            return
        values = stored if new.all() else stored[np.repeat(new, lengths)]
        truncated = self._documents.truncated[first : first + len(keys)]
        self._writer.add_values(keys[new], lengths[new], truncated[new], values=values)
        self.misses += int(np.count_nonzero(new))
        self.tokens += len(values)
        if self._writer.is_due:
            # The shard that was being published is readable when this returns.
            self._writer.close_shard()
            self._closing, self._open = self._open, {}

    def _note_difference(self, document: int) -> None:
        """Count it where that can rightly be; else it is an error, naming both."""
        self.differing += 1
        if self._source.is_stateful:
            return
        same = (self._documents.keys[:document] == self._documents.keys[document]).all(axis=1)
        earlier = int(np.argmax(same)) if same.any() else None
        if earlier is None:
            other, advice = "the store has for it under this name", "give another name with --as"
        else:
            other = f"the same text has in {self._documents.places.of(earlier)}"
            advice = "remove one of the two"
        raise ExchangeError(f"{self._where(document)}: has other features than {other}; {advice}")


def _bits(rows: NDArray[Any]) -> NDArray[Any]:
    return rows.view(f"u{rows.itemsize}")
