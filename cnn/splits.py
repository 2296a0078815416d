"""Cutting labelled texts into parts in which the classes are as frequent as in the whole.

NumPy only; the same labels and the same seed give the same parts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Tell the two draws apart from each other and from the orders of epochs.
_SPLIT_STREAM = 0x73706C69
_FOLDS_STREAM = 0x666F6C64


def stratified_split(
    labels: NDArray[np.int32], fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Set a share of each class aside.

    Of a class with two members or more, at least one goes to each part; a class's only
    member stays in the first.

    Args:
        labels: Class of each of n texts, (n,).
        fraction: Share to set aside, in (0, 1).
        seed: What the draw depends on.

    Returns:
        Positions that stay and positions set aside; both ascending, int64, together all.
    """
    generator = np.random.default_rng((_SPLIT_STREAM, seed))
    aside = np.zeros(len(labels), np.bool_)
    for members in _members_of_classes(labels):
        wanted = round(fraction * len(members))
        count = min(max(wanted, 1), len(members) - 1)
        aside[generator.permutation(members)[:count]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def stratified_folds(labels: NDArray[np.int32], num_folds: int, *, seed: int) -> NDArray[np.int64]:
    """Deal texts into folds whose sizes, and whose shares of each class, differ by one at most.

    Args:
        labels: Class of each of n texts, (n,).
        num_folds: At least 2.
        seed: What the draw depends on.

    Returns:
        Fold of each text, (n,) int64, from 0 to ``num_folds - 1``.
    """
    generator = np.random.default_rng((_FOLDS_STREAM, seed))
    folds = np.empty(len(labels), np.int64)
    dealt = 0
    for members in _members_of_classes(labels):
        # Go on where the class before stopped, or the first folds would get all the odd ones.
        folds[generator.permutation(members)] = (dealt + np.arange(len(members))) % num_folds
        dealt += len(members)
    return folds


def _members_of_classes(labels: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """The positions of each class, in the order of the classes' numbers."""
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)
