"""One vector for each text: the mean of its rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.ragged import RaggedArray


def mean_rows(features: RaggedArray, *, normalize: bool) -> NDArray[np.float32]:
    """The mean over the rows of each matrix.

    Sums are taken in float64: the mean of numbers that float32 can hold is then one that it can
    hold too, and its rounding does not show in float32.

    Args:
        features: n matrices of shape (num_tokens, dim).
        normalize: Whether each mean is divided by its Euclidean length.

    Returns:
        Shape (n, dim), float32; zeros for a text without rows, and for one whose mean is zero.
    """
    if len(features) == 1:
        # The most frequent request: a third of the time of what follows.
        return _mean_of_one(features.values, normalize=normalize)[None]
    lengths = features.lengths
    means = np.zeros((len(features), features.dim), np.float64)
    has_rows = lengths > 0
    if has_rows.any():
        # Between two starts of texts that have rows, there are no rows of other texts.
        starts = features.row_splits[:-1][has_rows]
        means[has_rows] = np.add.reduceat(features.values, starts, axis=0, dtype=np.float64)
    means /= np.maximum(lengths, 1)[:, None]
    if normalize:
        norms = np.sqrt(np.einsum("nd,nd->n", means, means))
        means /= np.where(norms > 0, norms, 1)[:, None]
    return means.astype(np.float32)


def _mean_of_one(values: NDArray[Any], *, normalize: bool) -> NDArray[np.float32]:
    """The mean of the rows (num_tokens, dim) of one text, (dim,)."""
    mean: NDArray[np.float64] = np.add.reduce(values, axis=0, dtype=np.float64)
    mean /= max(1, len(values))
    if normalize:
        mean /= math.sqrt(mean.dot(mean)) or 1.0
    return mean.astype(np.float32)
