"""Texts that are nearly the same: by the cosine of their mean-pooled vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys
from embedcache.store.reader import ViewReader
from embedcache.store.refs import FeatureRefs

_BLOCK_BYTES = 1 << 26
"""Of the vectors that are held, of those that are compared with them, and of their products:
each at most so many, or one row."""
_GATHER_BYTES = 1 << 26
"""Of the features that are pooled at once, longer texts alone excepted."""

Rows = NDArray[np.int64]


def near_finder(
    reader: ViewReader, keys: Keys, threshold: float
) -> Callable[[Rows, Rows], NDArray[np.int64]]:
    """A function that finds near duplicates between two parts of a dataset.

    It takes the positions of the documents of both, and gives the pairs, (m, 2) int64: each
    document that has its like in the other part, with the nearest one there. The vectors of
    the smaller part are held in blocks of bounded size, and the larger part's are pooled anew
    for each of them: once, as a rule.

    Args:
        reader: Of the view.
        keys: Keys of all documents of the dataset, (n, 16).
        threshold: Least cosine, in (0, 1].
    """

    def find(first: Rows, second: Rows) -> NDArray[np.int64]:
        if len(first) <= len(second):
            return _near_pairs(reader, keys, first, second, threshold)
        return _near_pairs(reader, keys, second, first, threshold)[:, ::-1]

    return find


def pool_texts(reader: ViewReader, refs: FeatureRefs) -> NDArray[np.float32]:
    """The mean of each text's rows, scaled to length 1: (n, dim) float32.

    Zeros for a text without tokens, or whose mean is zero: no cosine is defined there, and
    it has no near duplicates.
    """
    pooled = np.zeros((len(refs), reader.view.dim), np.float32)
    for chosen in _gathers(refs, reader.view.dim * reader.dtype.itemsize):
        features = reader.gather(refs.take(chosen))
        splits = features.row_splits
        has_rows = np.flatnonzero(np.diff(splits) > 0)
        if len(has_rows):
            values = features.values.astype(np.float32)
            pooled[chosen][has_rows] = np.add.reduceat(values, splits[has_rows], axis=0)
    norms = np.linalg.norm(pooled, axis=1, keepdims=True)
    # The number of rows does not matter: a sum points where the mean does.
    np.divide(pooled, norms, out=pooled, where=norms > 0)
    return pooled


def _near_pairs(
    reader: ViewReader, keys: Keys, held: Rows, passing: Rows, threshold: float
) -> NDArray[np.int64]:
    dim = reader.view.dim
    num_rows = max(1, _BLOCK_BYTES // (4 * dim))
    found = _Nearest(len(held)), _Nearest(len(passing))
    for held_at, held_rows in _blocks(held, num_rows):
        vectors = pool_texts(reader, reader.locate(keys[held_rows]))
        num_products = max(1, min(num_rows, _BLOCK_BYTES // (4 * len(held_rows))))
        for at, rows in _blocks(passing, num_products):
            cosines = pool_texts(reader, reader.locate(keys[rows])) @ vectors.T
            cosines[_same_text(keys[rows], keys[held_rows])] = -1.0
            found[0].offer(held_at, cosines.max(axis=0), rows[cosines.argmax(axis=0)])
            found[1].offer(at, cosines.max(axis=1), held_rows[cosines.argmax(axis=1)])
    of_held, of_passing = (nearest.above(threshold) for nearest in found)
    return np.unique(
        np.concatenate(
            [
                np.stack([held[of_held], found[0].rows[of_held]], 1),
                np.stack([found[1].rows[of_passing], passing[of_passing]], 1),
            ]
        ),
        axis=0,
    )


class _Nearest:
    """The nearest document of the other part that each has met so far."""

    def __init__(self, count: int) -> None:
        self.rows = np.zeros(count, np.int64)
        self._cosines = np.full(count, -1.0, np.float32)

    def offer(self, start: int, cosines: NDArray[np.float32], rows: Rows) -> None:
        chosen = slice(start, start + len(rows))
        better = cosines > self._cosines[chosen]
        self.rows[chosen][better] = rows[better]
        self._cosines[chosen][better] = cosines[better]

    def above(self, threshold: float) -> NDArray[np.int64]:
        # The cosine of equal vectors may be a rounding below 1.
        return np.flatnonzero(self._cosines >= threshold - 1e-6)


def _same_text(ours: Keys, theirs: Keys) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where in a table of two lists of keys both are the same."""
    both = np.unique(np.concatenate([ours, theirs]), axis=0, return_inverse=True)[1].reshape(-1)
    one, other = both[: len(ours)], both[len(ours) :]
    order = np.argsort(other, kind="stable")
    low, high = (np.searchsorted(other[order], one, side=side) for side in ("left", "right"))
    counts = high - low
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(one)), counts), order[np.repeat(low, counts) + offsets]


def _blocks(rows: Rows, count: int) -> Iterator[tuple[int, Rows]]:
    return ((start, rows[start : start + count]) for start in range(0, len(rows), count))


def _gathers(refs: FeatureRefs, row_bytes: int) -> Iterator[slice]:
    """Ranges of texts whose features are gathered at once."""
    ends = np.cumsum(refs.lengths) * row_bytes
    start = 0
    while start < len(refs):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _GATHER_BYTES, side="right"))
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop
