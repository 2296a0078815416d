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


def label_sets(targets: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The number of each text's set of labels: (n, C) of 0 and 1 → (n,) int32.

    Sets are numbered in the order of their rows read as binary numbers, so that sets with
    the same first labels are neighbours.
    """
    packed = np.packbits(targets, axis=1)
    return np.unique(packed, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


def multilabel_split(
    sets: NDArray[np.int32], fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Set a share of texts with several labels aside.

    A systematic sample: texts are ordered by their set of labels, within a set by chance, and
    taken at equal distances. So sets are as frequent in both parts as in the whole, to one
    text; those of a few texts, which `stratified_split` would never set aside, share their
    neighbours' quota. A label of few texts may end in one part only.

    Args:
        sets: From `label_sets`, (n,).
        fraction: Share to set aside, in (0, 1).
        seed: What the draw depends on.

    Returns:
        As `stratified_split`; nothing is set aside of a single text.
    """
    generator = np.random.default_rng((_SPLIT_STREAM, seed))
    shuffled = generator.permutation(len(sets))
    order = shuffled[np.argsort(sets[shuffled], kind="stable")]
    count = min(max(round(fraction * len(sets)), 1), len(sets) - 1)
    aside = np.zeros(len(sets), np.bool_)
    if count > 0:
        places = ((np.arange(count) + generator.random()) * len(sets) / count).astype(np.int64)
        aside[order[places]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def _members_of_classes(labels: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """The positions of each class, in the order of the classes' numbers."""
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)
