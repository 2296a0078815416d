"""Records → NumPy's ``.npz``: the arrays one after the other, each in pieces."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from embedcache.exchange.records import ExportRecords, block_ranges
from embedcache.ragged import expand_ranges, splits_of_lengths

_PIECE_TEXTS = 1 << 18


def write_npz(file: IO[bytes], records: ExportRecords) -> None:
    """Write what ``numpy.load`` reads without pickle.

    ``values`` (T, dim), ``row_splits`` (n + 1,), ``keys`` (n, 16) uint8, ``truncated`` (n,),
    ``label_codes``, ``label_splits`` and ``label_names``, ``split_codes`` and
    ``split_names``, ``ids`` where there are any, and ``metadata``, a text of JSON. The same
    records give the same bytes.

    Raises:
        OSError: if the device refuses.
    """
    archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)
    try:
        _write_arrays(archive, records)
        archive.close()
    except BaseException:
        # Closing it would write a directory, which a full disk refuses once more.
        archive.fp = None
        raise


def _write_arrays(archive: zipfile.ZipFile, records: ExportRecords) -> None:
    dataset, num_texts = records.dataset, len(records)
    values = (block.values for block in records.blocks())
    _write(archive, "values", records.dtype, (records.num_tokens, records.dim), values)
    _write_whole(archive, "row_splits", splits_of_lengths(records.refs.lengths))
    keys = (dataset.keys[rows] for rows in _pieces(records.rows))
    _write(archive, "keys", np.dtype("u1"), (num_texts, dataset.keys.shape[1]), keys)
    _write_whole(archive, "truncated", records.refs.truncated)
    num_labels = dataset.num_labels[records.rows]
    codes = (_label_codes(records, rows) for rows in _pieces(records.rows))
    _write(archive, "label_codes", np.dtype("<i4"), (int(num_labels.sum()),), codes)
    _write_whole(archive, "label_splits", splits_of_lengths(num_labels))
    _write_whole(archive, "label_names", _text_array(dataset.label_names))
    split_codes = (dataset.split_codes[rows] for rows in _pieces(records.rows))
    _write(archive, "split_codes", np.dtype("u1"), (num_texts,), split_codes)
    _write_whole(archive, "split_names", _text_array(dataset.split_names))
    if records.has_ids:
        # Twice through them: NumPy's texts are all as wide as the longest one.
        width = max(1, max(map(len, records.ids()), default=1))
        ids = (np.array(part, f"<U{width}") for part in _batched(records.ids()))
        _write(archive, "ids", np.dtype(f"<U{width}"), (num_texts,), ids)
    _write_whole(archive, "metadata", np.array(records.metadata_json, np.str_))


def _label_codes(records: ExportRecords, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    dataset = records.dataset
    places = expand_ranges(dataset.label_splits[rows], dataset.num_labels[rows])
    return dataset.label_codes[places]


def _pieces(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    sizes = np.ones(len(rows), np.int64)
    for first, last in block_ranges(sizes, max_bytes=_PIECE_TEXTS, max_texts=_PIECE_TEXTS):
        yield rows[first:last]


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _PIECE_TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch


def _text_array(texts: tuple[str, ...]) -> NDArray[np.str_]:
    return np.array(list(texts), np.str_) if texts else np.zeros(0, "<U1")


def _write_whole(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    _write(archive, name, array.dtype, array.shape, [array])


def _write(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    pieces: Iterable[NDArray[Any]],
) -> None:
    """Write one array in pieces, which are as many rows together as its shape says."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype.newbyteorder("<")),
        "fortran_order": False,
        "shape": shape,
    }
    # A ZipInfo of its own has no time of day; it may grow beyond 4 GiB.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for piece in pieces:
            entry.write(np.ascontiguousarray(piece, dtype.newbyteorder("<")).tobytes())
