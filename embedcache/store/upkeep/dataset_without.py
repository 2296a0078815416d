"""A dataset version without some of its documents."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import NO_SPLIT, Dataset, DatasetWriter
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import mapped_os_errors

_HEADER_BYTES = 128
_BATCH_DOCUMENTS = 4096


def publish_without(
    layout: StoreLayout, dataset: Dataset, folder: Path, keep: NDArray[np.bool_]
) -> DatasetRecord | None:
    """Write a dataset version of some documents of another; it is not registered yet.

    It is the version that a build of a corpus without the others would make.

    Args:
        layout: The store's.
        dataset: The other.
        folder: Its folder: the documents' own ids are in it.
        keep: Which documents, (n,) bool.

    Returns:
        The new version, without name, sources and time; None if no document is left.

    Raises:
        StoreError: if the device refuses.
    """
    if not keep.any():
        return None
    ids = _ids(folder / "ids.npy")
    with DatasetWriter(layout.tmp) as writer:
        for start in range(0, len(dataset), _BATCH_DOCUMENTS):
            rows = np.arange(start, min(start + _BATCH_DOCUMENTS, len(dataset)))
            chosen = rows[keep[rows]]
            names = list(itertools.islice(ids, len(rows))) if ids is not None else None
            writer.add(
                dataset.keys[chosen],
                _labels(dataset, chosen),
                _splits(dataset, chosen),
                [names[row - start] for row in chosen.tolist()] if names is not None else None,
            )
        version, num_unique = writer.finish()
        writer.publish(layout.dataset_path(version))
        return DatasetRecord("", version, len(writer), num_unique, [], 0.0)


def _labels(dataset: Dataset, rows: NDArray[np.int64]) -> list[tuple[str, ...]] | None:
    if not dataset.label_names:
        return None
    names, splits = dataset.label_names, dataset.label_splits
    return [
        tuple(names[code] for code in dataset.label_codes[splits[row] : splits[row + 1]].tolist())
        for row in rows.tolist()
    ]


def _splits(dataset: Dataset, rows: NDArray[np.int64]) -> list[str] | None:
    if dataset.split_names == (NO_SPLIT,):
        return None
    return [dataset.split_names[code] for code in dataset.split_codes[rows].tolist()]


def _ids(path: Path) -> Iterator[str] | None:
    """The documents' own ids, in order; None if the corpus has none."""
    with mapped_os_errors(path):
        if path.stat().st_size <= _HEADER_BYTES:
            return None
    return _read_ids(path)


def _read_ids(path: Path) -> Iterator[str]:
    with mapped_os_errors(path), path.open("rb") as file:
        file.seek(_HEADER_BYTES)
        for line in file:
            yield json.loads(line)
