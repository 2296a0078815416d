"""TokenTable: the distinct token rows of texts, numbered, for a table that is trained."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import KeyNotFoundError, TrainingError
from embedcache.keys import Keys
from embedcache.ragged import expand_ranges, whole_rows
from embedcache.store.ahead import codes_of_texts
from embedcache.store.refs import FeatureRefs
from embedcache.store.shards.codec import from_storage
from embedcache.store.shards.shard import Shard
from embedcache.stream.source import FeatureReader, RowSource

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The distinct rows that texts have under a view, numbered from 1 on; 0 is padding.

    Of a view whose rows depend on their token alone, a row stands for a token (or for all
    tokens that the module gives the same vector). Numbers follow the order of the rows' bytes:
    they depend on the set of rows, neither on the texts' order nor on how they lie in shards.

    Attributes:
        rows: Shape (V + 1, dim), of the view's value dtype; row 0 is zeros. Not to be written to.
    """

    rows: NDArray[Any]

    @classmethod
    def of_texts(cls, reader: FeatureReader, keys: Keys) -> TokenTable:
        """The table of the tokens of texts.

        Args:
            reader: Of a view that keeps a dictionary.
            keys: Of the texts, (n, 16).

        Raises:
            TrainingError: if none of the texts lies in a shard with a dictionary.
            KeyNotFoundError: if the view lacks some of the texts.
            CorruptShardError: if bytes that are needed are not what was written.
        """
        refs = reader.locate(keys)
        missing = int(np.count_nonzero(refs.shards < 0))
        view = reader.view.fingerprint[:12]
        if missing:
            raise KeyNotFoundError(
                f"view {view} lacks {missing} of {len(refs)} texts; `embedcache build` computes"
                " them"
            )
        parts, is_dictionary = [], False
        for source, _, starts, lengths in reader.groups(refs):
            parts.append(_distinct_rows(source, starts, lengths))
            is_dictionary = is_dictionary or source.is_dictionary
        if not is_dictionary:
            raise TrainingError(
                f"view {view} keeps no dictionary of tokens, and a table of tokens cannot be made"
                " without one: take a view of a bag-of-words module, built with --encoding"
                " dictionary"
            )
        nothing = np.zeros((1, reader.view.dim), reader.dtype)
        distinct = np.unique(whole_rows(np.concatenate(parts)))
        rows = distinct.view(reader.dtype).reshape(-1, reader.view.dim)
        return cls(_read_only(np.concatenate([nothing, rows])))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits: the 16-byte BLAKE2b of shape, dtype and rows."""
        return blake2b(_npy_bytes(self.rows), digest_size=_DIGEST_BYTES).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as an ``.npy`` file, the digest's 16 bytes behind them."""
        content = _npy_bytes(self.rows)
        digest = blake2b(content, digest_size=_DIGEST_BYTES).digest()
        Path(path).write_bytes(content + digest)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenTable:
        """The table that `save` wrote.

        Raises:
            TrainingError: if the file is missing or not what was written.
        """
        try:
            rows = _rows_of_file(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TrainingError(
                f"{os.fspath(path)}: the table of tokens is missing or damaged ({reason}); train"
                " again"
            ) from None
        return cls(_read_only(rows))


class TokenNumbers:
    """Finds the numbers of texts' tokens in a table. Any threads.

    Args:
        reader: Of the view that the table is of.
        table: The table; rows that are not in it are 0.

    Raises:
        TrainingError: if the table's rows are not as wide as the view's, or of another dtype.
    """

    def __init__(self, reader: FeatureReader, table: TokenTable) -> None:
        expected = (reader.view.dim, reader.dtype)
        if (table.rows.shape[1], table.rows.dtype) != expected:
            raise TrainingError(
                f"the table of tokens has rows of {table.rows.shape[1]} {table.rows.dtype}, view"
                f" {reader.view.fingerprint[:12]} has {expected[0]} {expected[1]}: take a table"
                " of this view"
            )
        self._reader = reader
        rows = whole_rows(np.ascontiguousarray(table.rows[1:])).tolist()
        self._numbers = {row: number for number, row in enumerate(rows, 1)}
        self._places: weakref.WeakKeyDictionary[Shard, NDArray[np.intp]] = (
            weakref.WeakKeyDictionary()
        )

    def gather_padded(self, refs: FeatureRefs, length: int) -> NDArray[np.int32]:
        """The numbers of n texts' tokens, (n, length) int32, 0 after the end of each.

        Args:
            refs: Where the texts lie, none longer than ``length``.
            length: What they are padded to.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            KeyNotFoundError: if they were removed since they were located.
        """
        out = np.zeros((len(refs), length), np.int32)
        flat = out.reshape(-1)
        firsts = np.arange(len(refs)) * length
        for source, members, starts, lengths in self._reader.groups(refs):
            flat[expand_ranges(firsts[members], lengths)] = self._of_texts(source, starts, lengths)
        return out

    def _of_texts(
        self, source: RowSource, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.intp]:
        shard = _dictionary_shard(source)
        if shard is None:
            return self._find(source.take(expand_ranges(starts, lengths)))
        places = self._places.get(shard)
        if places is None:
            rows = from_storage(shard.stored_dictionary(), shard.view.dtype)
            places = self._places[shard] = self._find(rows)
        return codes_of_texts(shard, places, starts, lengths)

    def _find(self, rows: NDArray[Any]) -> NDArray[np.intp]:
        """The number of each row, (n,)."""
        known, found = self._numbers, whole_rows(np.ascontiguousarray(rows)).tolist()
        return np.array([known.get(row, 0) for row in found], np.intp)


def _dictionary_shard(source: RowSource) -> Shard | None:
    """The shard, if rows come from one with a dictionary; a service sends them spelled out."""
    return source if isinstance(source, Shard) and source.is_dictionary else None


def _distinct_rows(
    source: RowSource, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """The rows of texts of one source, each once."""
    positions = expand_ranges(starts, lengths)
    shard = _dictionary_shard(source)
    if shard is None:
        rows = np.ascontiguousarray(source.take(positions))
        return np.unique(whole_rows(rows)).view(rows.dtype).reshape(-1, rows.shape[1])
    stored = shard.stored_dictionary()
    is_used = np.zeros(len(stored), np.bool_)
    is_used[shard.codes(positions)] = True
    return np.ascontiguousarray(from_storage(stored[is_used], shard.view.dtype))


def _rows_of_file(written: bytes) -> NDArray[Any]:
    content, digest = written[:-_DIGEST_BYTES], written[-_DIGEST_BYTES:]
    if blake2b(content, digest_size=_DIGEST_BYTES).digest() != digest:
        raise ValueError("it is not what was written")
    rows: NDArray[Any] = np.load(BytesIO(content), allow_pickle=False)
    return rows


def _npy_bytes(rows: NDArray[Any]) -> bytes:
    content = BytesIO()
    np.save(content, np.ascontiguousarray(rows), allow_pickle=False)
    return content.getvalue()


def _read_only(rows: NDArray[Any]) -> NDArray[Any]:
    rows.flags.writeable = False
    return rows
