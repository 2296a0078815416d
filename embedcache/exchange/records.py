"""A dataset's documents with their features, block by block: what every export writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embedcache
from embedcache.keys import Keys
from embedcache.store.database.records import ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.store.reader import ViewReader
from embedcache.store.refs import FeatureRefs
from embedcache.store.store import FeatureStore
from embedcache.stream.stream import FeatureStream

BLOCK_BYTES = 32 << 20
"""Rows gathered at a time. Also a Parquet row group and an Arrow record batch."""
BLOCK_TEXTS = 1 << 16


@dataclass(frozen=True, slots=True)
class DocumentBlock:
    """Successive documents with their features; every list has one entry a document.

    Attributes:
        keys: Shape (n, 16) uint8.
        lengths: Tokens of each, (n,) int64.
        values: Rows of all, one after the other, (T, dim).
        truncated: Whether the text was cut, (n,) bool.
        labels: The names of the labels of each.
        splits: The name of the split of each; empty if the corpus has none.
        ids: The corpus's own id of each; None if it was registered without.
    """

    keys: Keys
    lengths: NDArray[np.int64]
    values: NDArray[Any]
    truncated: NDArray[np.bool_]
    labels: list[list[str]]
    splits: list[str]
    ids: list[str] | None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def key_names(self) -> list[str]:
        """The keys as 32 hexadecimal digits each."""
        return [key.tobytes().hex() for key in self.keys]


@dataclass(frozen=True, slots=True)
class ExportRecords:
    """The documents that are exported, in corpus order.

    Attributes:
        dataset: The registered dataset.
        rows: Which of its documents, (n,) int64.
        refs: Where the features of each lie.
        dtype: Of the features as they are handed out.
        metadata: What the file says of itself; JSON values.
    """

    dataset: Dataset
    rows: NDArray[np.int64]
    refs: FeatureRefs
    dtype: np.dtype[Any]
    metadata: Mapping[str, Any]
    _reader: ViewReader
    _ids_path: Path

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """The embedding width."""
        return self._reader.view.dim

    @property
    def num_tokens(self) -> int:
        """Rows of all documents together."""
        return int(self.refs.lengths.sum())

    @property
    def metadata_json(self) -> str:
        """The metadata as a line of ASCII."""
        return json.dumps(dict(self.metadata), sort_keys=True)

    @property
    def has_ids(self) -> bool:
        """Whether the documents have ids of their own."""
        return next(self._all_ids(), None) is not None

    def blocks(self) -> Iterator[DocumentBlock]:
        """All documents, in blocks of bounded size.

        Raises:
            CorruptShardError: if bytes that are needed are not what was written.
        """
        ids = self.ids() if self.has_ids else None
        row_bytes = max(1, self.dim * self.dtype.itemsize)
        for first, last in block_ranges(self.refs.lengths * row_bytes):
            refs = self.refs.take(np.arange(first, last))
            yield DocumentBlock(
                keys=np.ascontiguousarray(self.dataset.keys[self.rows[first:last]]),
                lengths=refs.lengths,
                values=self._reader.gather(refs).values,
                truncated=refs.truncated,
                labels=self._labels(self.rows[first:last]),
                splits=self._splits(self.rows[first:last]),
                ids=None if ids is None else list(itertools.islice(ids, last - first)),
            )

    def ids(self) -> Iterator[str]:
        """The ids of the documents that are exported, one after the other."""
        chosen = np.zeros(len(self.dataset), np.bool_)
        chosen[self.rows] = True
        return itertools.compress(self._all_ids(), chosen.tolist())

    def _all_ids(self) -> Iterator[str]:
        # One JSON string a line; the file's digest was compared when the dataset was loaded.
        lines = np.load(self._ids_path, mmap_mode="r")
        return map(json.loads, _lines(memoryview(lines)))

    def _labels(self, rows: NDArray[np.int64]) -> list[list[str]]:
        names, splits = self.dataset.label_names, self.dataset.label_splits
        codes = self.dataset.label_codes
        ranges = zip(splits[rows].tolist(), splits[rows + 1].tolist(), strict=True)
        return [[names[code] for code in codes[start:stop].tolist()] for start, stop in ranges]

    def _splits(self, rows: NDArray[np.int64]) -> list[str]:
        names = self.dataset.split_names
        return [names[code] for code in self.dataset.split_codes[rows].tolist()]


def open_records(
    store: FeatureStore, dataset: str | None, *, view: str | None, split: str | None
) -> ExportRecords:
    """Find all that is to be exported; nothing is read of the features yet.

    Args:
        store: An open store.
        dataset: Name, or ``NAME@VERSION``; None is the newest.
        view: Fingerprint or its beginning; None: the view the dataset was last built under.
        split: Only this split's documents; None: all.

    Raises:
        UnknownNameError: if there is no such dataset, view or split.
        KeyNotFoundError: if the view lacks some of the texts; says how many, and the
            command that mends it.
    """
    loaded = store.load_dataset(dataset)
    record = store.view_of_dataset(loaded, view)
    # For what it refuses: its words are those that people know from training.
    FeatureStream(store, loaded, view=record.fingerprint, split=split, shuffle=False)
    reader = store.reader(record)
    rows = loaded.rows_of_split(split)
    refs = reader.locate(loaded.keys[rows])
    nothing = reader.gather(refs.take(np.zeros(0, np.int64)))
    dtype = nothing.values.dtype
    return ExportRecords(
        dataset=loaded,
        rows=rows,
        refs=refs,
        dtype=dtype,
        metadata=_metadata(loaded, record, split=split, dtype=dtype),
        _reader=reader,
        _ids_path=store.layout.dataset_path(loaded.version) / "ids.npy",
    )


def _metadata(
    dataset: Dataset, record: ViewRecord, *, split: str | None, dtype: np.dtype[Any]
) -> dict[str, Any]:
    return {
        "embedcache": embedcache.__version__,
        "dataset": dataset.name,
        "version": dataset.version,
        "split": split,
        "module": record.handle,
        "fingerprint": record.fingerprint,
        "view": json.loads(record.view.to_json()),
        "dim": record.view.dim,
        "dtype": dtype.name,
    }


def block_ranges(
    num_bytes: NDArray[np.int64], *, max_bytes: int = BLOCK_BYTES, max_texts: int = BLOCK_TEXTS
) -> Iterator[tuple[int, int]]:
    """Half-open ranges of texts that are at most so many bytes together, or one text.

    Args:
        num_bytes: Of each text, (n,).
        max_bytes: Of a range, unless it is one text.
        max_texts: Texts of a range.
    """
    ends = np.cumsum(num_bytes)
    first, last_end = 0, 0
    while first < len(ends):
        fitting = int(np.searchsorted(ends, last_end + max_bytes, side="right"))
        last = min(max(first + 1, fitting), first + max_texts)
        yield first, last
        first, last_end = last, int(ends[last - 1])


def _lines(text: memoryview, *, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The lines of a buffer without their ends, in bounded memory."""
    rest = b""
    for start in range(0, len(text), piece_bytes):
        *whole, rest = (rest + bytes(text[start : start + piece_bytes])).split(b"\n")
        yield from whole
