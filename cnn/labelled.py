"""Which documents a training uses, for what, and with which labels; and what can be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.config import ResolvedConfig
from cnn.spec import MULTILABEL, SINGLE
from cnn.splits import label_sets, multilabel_split, stratified_folds, stratified_split
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

    def by_name(self) -> dict[str, Rows]:
        """``{"train": …, "dev": …}``, and ``"test"`` if there is one."""
        both = {TRAIN_SPLIT: self.train, DEV_SPLITS[0]: self.dev}
        return both if self.test is None else {**both, TEST_SPLIT: self.test}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A dataset whose labels can be learnt.

    Attributes:
        dataset: Only with the labels that the documents used have, and none for the others.
        task: ``"single"`` or ``"multilabel"``.
        targets: Class of each of all n documents, (n,) int32, -1 where it is not used; for
            multilabel (n, C) uint8, 1 where it has the label.
    """

    dataset: Dataset
    task: str
    targets: NDArray[Any]

    @property
    def num_classes(self) -> int:
        """C, the labels that there are."""
        return len(self.dataset.label_names)

    def strata(self, rows: Rows) -> NDArray[np.int32]:
        """What documents are to be as frequent by in each part, (len(rows),) int32.

        Their classes; for multilabel the number of their set of labels.
        """
        targets = self.targets[rows]
        return targets if self.task == SINGLE else label_sets(targets)

    def count_classes(self, rows: Rows) -> NDArray[np.int64]:
        """How many of these documents have each label, (C,) int64."""
        targets = self.targets[rows]
        if self.task == SINGLE:
            return np.bincount(targets, minlength=self.num_classes)
        counts: NDArray[np.int64] = targets.sum(axis=0, dtype=np.int64)
        return counts


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


def choose_parts(dataset: Dataset, config: ResolvedConfig) -> tuple[Labelled, Parts]:
    """Choose the documents to train on, to choose the epoch by, and to test on.

    Train is the split ``train``, or every document if the dataset has no splits; dev the
    first of the splits ``dev``, ``val``, ``valid``, ``validation`` that is there, or else a
    stratified share of train; test the split ``test``.

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
    labelled = _label_rows(dataset, np.concatenate(list(given.values())), config.task)
    check_classes(labelled, given)
    if dev_split is not None:
        return labelled, Parts(train, given[dev_split], test)
    return labelled, _with_dev(labelled, Parts(train, train[:0], test), config)


def choose_folds(
    dataset: Dataset, config: ResolvedConfig, num_folds: int
) -> tuple[Labelled, list[Parts]]:
    """Deal all documents into folds; each is once the test, dev a stratified share of the rest.

    Raises:
        TrainingError: if labels are missing or cannot be learnt, or there are more folds
            than documents of a class.
    """
    rows = dataset.rows_of_split(None)
    labelled = _label_rows(dataset, rows, config.task)
    check_classes(labelled, {TRAIN_SPLIT: rows})
    _check_folds(labelled, num_folds)
    folds = stratified_folds(labelled.strata(rows), num_folds, seed=config.seed)
    return labelled, [_parts_of_fold(labelled, folds, fold, config) for fold in range(num_folds)]


def check_classes(labelled: Labelled, given: Mapping[str, Rows]) -> None:
    """Raise unless train has classes to tell apart, and every one that another split has.

    Args:
        labelled: The documents.
        given: Those of each split; ``train`` among them.

    Raises:
        TrainingError: if a label could not be learnt; names it.
    """
    dataset, trained = labelled.dataset, labelled.count_classes(given[TRAIN_SPLIT])
    for split, rows in given.items():
        unknown = np.flatnonzero((trained == 0) & (labelled.count_classes(rows) > 0)).tolist()
        if unknown:
            raise TrainingError(
                f"only the split {split!r} of dataset {dataset.name!r} has the label"
                f" {dataset.label_names[unknown[0]]!r}"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + f"; add documents with it to the split {TRAIN_SPLIT!r}, or take it out"
            )
    if labelled.task == SINGLE and np.count_nonzero(trained) < 2:
        raise TrainingError(
            f"dataset {dataset.name!r} has only one class to train on,"
            f" {dataset.label_names[0]!r}; a classifier needs two or more: check the label column"
        )


def _parts_of_fold(labelled: Labelled, folds: Rows, number: int, config: ResolvedConfig) -> Parts:
    rest = np.flatnonzero(folds != number)
    return _with_dev(labelled, Parts(rest, rest[:0], np.flatnonzero(folds == number)), config)


def _check_folds(labelled: Labelled, num_folds: int) -> None:
    """Raise `TrainingError` if a class has fewer documents than there are folds."""
    dataset = labelled.dataset
    counts = labelled.count_classes(dataset.rows_of_split(None))
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


def _with_dev(labelled: Labelled, parts: Parts, config: ResolvedConfig) -> Parts:
    """The parts with a stratified share of train as dev."""
    split = stratified_split if labelled.task == SINGLE else multilabel_split
    stay, aside = split(labelled.strata(parts.train), config.dev_fraction, seed=config.seed)
    if len(aside) == 0:
        raise TrainingError(
            f"dataset {labelled.dataset.name!r}: no dev part can be set aside from"
            f" {len(parts.train)} training documents, because no class has two; add documents, or"
            f" a split named {DEV_SPLITS[0]!r}"
        )
    return Parts(parts.train[stay], parts.train[aside], parts.test)


def _label_rows(dataset: Dataset, rows: Rows, task: str) -> Labelled:
    """The dataset with labels for these rows, and none for the others."""
    if len(rows) == 0:
        raise TrainingError(
            f"dataset {dataset.name!r} has no documents to train on; build it from a corpus"
            " that has some"
        )
    if not dataset.num_labels[rows].any():
        raise TrainingError(
            f"dataset {dataset.name!r} has no labels; build it from a corpus that has them"
            " (fastText lines `__label__NAME text`, or a csv or tsv column with --label-field),"
            " or give one label per line, in corpus order, with `embedcache train --labels FILE`"
        )
    if task == MULTILABEL or (task != SINGLE and (dataset.num_labels[rows] > 1).any()):
        return _multilabelled(dataset, rows)
    return _single_labelled(dataset, rows)


def _single_labelled(dataset: Dataset, rows: Rows) -> Labelled:
    counts = dataset.num_labels[rows]
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
            f" labels, the first is number {_first(rows, counts > 1)}; train with `--task"
            " multilabel`, or give one label each with `embedcache train --labels FILE`"
        )
    codes = np.full(len(dataset), -1, np.int32)
    used, codes[rows] = np.unique(dataset.first_labels(rows), return_inverse=True)
    names = tuple(dataset.label_names[place] for place in used)
    return Labelled(_with_codes(dataset, codes, names), SINGLE, codes)


def _multilabelled(dataset: Dataset, rows: Rows) -> Labelled:
    """Any number of labels a document, none too; one that stands twice counts once."""
    documents = np.repeat(np.arange(len(dataset)), dataset.num_labels)
    is_used = np.zeros(len(dataset), np.bool_)
    is_used[rows] = True
    chosen = is_used[documents]
    used, codes = np.unique(dataset.label_codes[chosen], return_inverse=True)
    targets = np.zeros((len(dataset), len(used)), np.uint8)
    targets[documents[chosen], codes] = 1
    label_rows, label_codes = np.nonzero(targets)
    changed = replace(
        dataset,
        label_codes=label_codes.astype(np.int32),
        label_splits=_ends(np.bincount(label_rows, minlength=len(dataset))),
        label_names=tuple(dataset.label_names[place] for place in used),
    )
    return Labelled(changed, MULTILABEL, targets)


def _first(rows: Rows, is_wrong: NDArray[np.bool_]) -> int:
    """The number in the corpus, from 1 on, of the first document that is wrong."""
    return int(rows[is_wrong].min()) + 1


def _with_codes(dataset: Dataset, codes: NDArray[np.int32], names: tuple[str, ...]) -> Dataset:
    """The dataset with one label a document, or none where the code is -1."""
    has_label = codes >= 0
    return replace(
        dataset, label_codes=codes[has_label], label_splits=_ends(has_label), label_names=names
    )


def _ends(counts: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) counts → (n + 1,) int64: where each begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
