"""Which documents a training uses, for what, and with which labels; and what can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cnn.config import ResolvedConfig
from cnn.splits import stratified_split
from embedcache.errors import TrainingError
from embedcache.store.dataset import NO_SPLIT, Dataset

TRAIN_SPLIT = "train"
DEV_SPLITS = ("dev", "val", "valid", "validation")
TEST_SPLIT = "test"

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """The documents that a training uses, as ascending positions in the dataset, int64.

    Attributes:
        train: Those that the weights are fitted to.
        dev: Those that the epoch is chosen by.
        test: Those that the chosen epoch is judged by; None: there are none.
    """

    train: Rows
    dev: Rows
    test: Rows | None

    def all_parts(self) -> tuple[Rows, ...]:
        """Train, dev and, if there is one, test."""
        return (self.train, self.dev) if self.test is None else (self.train, self.dev, self.test)


def attach_labels(dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """The dataset with these labels instead of its own.

    Args:
        dataset: n documents.
        labels: n labels in corpus order; ``""`` for a document that has none.

    Raises:
        TrainingError: if there are not n.
    """
    if len(labels) != len(dataset):
        raise TrainingError(
            f"{len(labels)} labels were given for the {len(dataset)} documents of dataset"
            f" {dataset.name!r}; give one label a document, in corpus order"
        )
    names = sorted(set(labels) - {""})
    places = {name: place for place, name in enumerate(names)}
    codes = np.fromiter((places.get(label, -1) for label in labels), np.int32, len(labels))
    return _with_codes(dataset, codes, tuple(names))


def choose_parts(dataset: Dataset, config: ResolvedConfig) -> tuple[Dataset, Parts]:
    """Choose the documents to train on, to choose the epoch by, and to test on.

    Train is the split ``train``, or every document if the dataset has no splits; dev the
    first of the splits ``dev``, ``val``, ``valid``, ``validation`` that is there, or else a
    stratified share of train; test the split ``test``.

    Returns:
        The dataset with one label a document, and only labels that occur in the parts;
        and the parts.

    Raises:
        TrainingError: if there is no train split, or labels are missing or cannot be learnt.
    """
    train = _train_rows(dataset)
    dev_split = next((name for name in DEV_SPLITS if name in dataset.split_names), None)
    test = dataset.rows_of_split(TEST_SPLIT) if TEST_SPLIT in dataset.split_names else None
    given = {TRAIN_SPLIT: train}
    if dev_split is not None:
        given[dev_split] = dataset.rows_of_split(dev_split)
    if test is not None:
        given[TEST_SPLIT] = test
    labelled = _single_labelled(dataset, np.concatenate(list(given.values())))
    _check_classes(labelled, given)
    if dev_split is not None:
        return labelled, Parts(train, given[dev_split], test)
    return labelled, _with_dev(labelled, Parts(train, train[:0], test), config)


def choose_all(dataset: Dataset) -> Dataset:
    """The dataset with one label a document, for a cross-validation over all of them.

    Raises:
        TrainingError: if labels are missing or cannot be learnt.
    """
    rows = dataset.rows_of_split(None)
    labelled = _single_labelled(dataset, rows)
    _check_classes(labelled, {TRAIN_SPLIT: rows})
    return labelled


def parts_of_fold(dataset: Dataset, folds: Rows, number: int, config: ResolvedConfig) -> Parts:
    """The parts of one fold: it is the test; dev is a stratified share of the rest.

    Args:
        dataset: From `choose_all`.
        folds: Fold of each document, (n,).
        number: Which of them.
        config: For ``dev_fraction`` and ``seed``.

    Raises:
        TrainingError: if the dev part would be empty.
    """
    rest = np.flatnonzero(folds != number)
    return _with_dev(dataset, Parts(rest, rest[:0], np.flatnonzero(folds == number)), config)


def check_folds(dataset: Dataset, num_folds: int) -> None:
    """Raise `TrainingError` if a class has fewer documents than there are folds."""
    codes = dataset.first_labels(dataset.rows_of_split(None))
    counts = np.bincount(codes, minlength=len(dataset.label_names))
    size = int(counts.min())
    if size < num_folds:
        name = dataset.label_names[int(counts.argmin())]
        raise TrainingError(
            f"{num_folds} folds are more than the {size} documents of the smallest class,"
            f" {name!r}, of dataset {dataset.name!r}; "
            + (f"ask for {size} folds or fewer" if size > 1 else "add documents of that class")
        )


def _train_rows(dataset: Dataset) -> Rows:
    names = [name for name in dataset.split_names if name != NO_SPLIT]
    if not names:
        rows = dataset.rows_of_split(None)
    elif TRAIN_SPLIT in names:
        rows = dataset.rows_of_split(TRAIN_SPLIT)
    else:
        raise TrainingError(
            f"dataset {dataset.name!r} has no split {TRAIN_SPLIT!r}; it has"
            f" {', '.join(sorted(names))}: name the one to train on so, as in"
            f" `embedcache build {TRAIN_SPLIT}=FILE`"
        )
    return rows


def _with_dev(dataset: Dataset, parts: Parts, config: ResolvedConfig) -> Parts:
    """The parts with a stratified share of train as dev."""
    stay, aside = stratified_split(
        dataset.first_labels(parts.train), config.dev_fraction, seed=config.seed
    )
    if len(aside) == 0:
        raise TrainingError(
            f"dataset {dataset.name!r}: no dev part can be set aside from {len(parts.train)}"
            " training documents, because no class has two; add documents, or a split named"
            f" {DEV_SPLITS[0]!r}"
        )
    return Parts(parts.train[stay], parts.train[aside], parts.test)


def _single_labelled(dataset: Dataset, rows: Rows) -> Dataset:
    """The dataset with one label for each of the rows, and none for the others."""
    if len(rows) == 0:
        raise TrainingError(
            f"dataset {dataset.name!r} has no documents to train on; build it from a corpus"
            " that has some"
        )
    counts = dataset.num_labels[rows]
    if not counts.any():
        raise TrainingError(
            f"dataset {dataset.name!r} has no labels; build it from a corpus that has them"
            " (fastText lines `__label__NAME text`, or a csv or tsv column with --label-field),"
            " or give one label per line, in corpus order, with `embedcache train --labels FILE`"
        )
    num_without = int(np.count_nonzero(counts == 0))
    if num_without:
        raise TrainingError(
            f"{num_without} of {len(rows)} documents of dataset {dataset.name!r} have no label,"
            f" the first is number {_first(rows, counts == 0)}; label them in the corpus and build"
            " again, or give all labels with `embedcache train --labels FILE`"
        )
    num_several = int(np.count_nonzero(counts > 1))
    if num_several:
        raise TrainingError(
            f"{num_several} of {len(rows)} documents of dataset {dataset.name!r} have several"
            f" labels, the first is number {_first(rows, counts > 1)}; multilabel training is not"
            " supported yet: give one label each, for instance with `embedcache train --labels"
            " FILE`"
        )
    codes = np.full(len(dataset), -1, np.int32)
    used, codes[rows] = np.unique(dataset.first_labels(rows), return_inverse=True)
    return _with_codes(dataset, codes, tuple(dataset.label_names[place] for place in used))


def _first(rows: Rows, is_wrong: NDArray[np.bool_]) -> int:
    """The number in the corpus, from 1 on, of the first document that is wrong."""
    return int(rows[is_wrong].min()) + 1


def _check_classes(dataset: Dataset, given: dict[str, Rows]) -> None:
    """Raise unless train has two classes or more, and every class that another split has."""
    trained = set(dataset.first_labels(given[TRAIN_SPLIT]).tolist())
    for split, rows in given.items():
        unknown = sorted(set(dataset.first_labels(rows).tolist()) - trained)
        if unknown:
            raise TrainingError(
                f"only the split {split!r} of dataset {dataset.name!r} has the label"
                f" {dataset.label_names[unknown[0]]!r}"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + f"; add documents with it to the split {TRAIN_SPLIT!r}, or take it out"
            )
    if len(trained) < 2:
        raise TrainingError(
            f"dataset {dataset.name!r} has only one class to train on,"
            f" {dataset.label_names[0]!r}; a classifier needs two or more: check the label column"
        )


def _with_codes(dataset: Dataset, codes: NDArray[np.int32], names: tuple[str, ...]) -> Dataset:
    """The dataset with one label a document, or none where the code is -1."""
    has_label = codes >= 0
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_label, dtype=np.int64)])
    return replace(dataset, label_codes=codes[has_label], label_splits=ends, label_names=names)
