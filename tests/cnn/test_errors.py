"""What is wrong with a training's data or options is told in one line, before Keras loads."""

from __future__ import annotations

import os
from typing import Any

import pytest

from cnn import TrainConfig, train
from embedcache.errors import (
    EmbedCacheError,
    KeyNotFoundError,
    StoreReadOnlyError,
    TrainingError,
    UnknownNameError,
)

SmallStore = Any
TEXTS = [f"text {number}" for number in range(12)]
XY = [("x",), ("y",)] * 6


def fail(
    small: SmallStore,
    *,
    error: type[EmbedCacheError] = TrainingError,
    labels: list[str] | None = None,
    dataset: str | None = None,
    **config: Any,
) -> str:
    """The message of a training that must fail; the features of the texts need not be there."""
    with pytest.raises(error) as caught:
        train(small.store, dataset, TrainConfig(**config), labels=labels)
    message = str(caught.value)
    assert "\n" not in message
    assert small.store.catalog.runs() == []
    return message


def test_a_dataset_without_labels(small: SmallStore) -> None:
    small.put_dataset(TEXTS, None)
    message = fail(small)
    assert "'small' has no labels" in message
    for way in ("`__label__NAME text`", "--label-field", "--labels FILE", "in corpus order"):
        assert way in message


def test_labels_of_the_wrong_number(small: SmallStore) -> None:
    small.put_dataset(TEXTS, None)
    message = fail(small, labels=["x"] * 11)
    assert "11 labels" in message
    assert "12 documents" in message


def test_some_documents_without_a_label(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [*XY[:9], (), ("x",), ()])
    message = fail(small)
    assert "2 of 12 documents" in message
    assert "number 10" in message


def test_some_labels_given_that_are_empty(small: SmallStore) -> None:
    small.put_dataset(TEXTS, None)
    assert "3 of 12 documents" in fail(small, labels=["x", "y"] * 4 + ["x", "", "", ""])


def test_documents_with_several_labels(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [*XY[:10], ("x", "y"), ("y",)])
    message = fail(small, task="single")
    assert "1 of 12 documents" in message
    assert "number 11" in message
    assert "`--task multilabel`" in message


def test_only_one_class(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [("x",)] * 12)
    assert "only one class to train on, 'x'" in fail(small)


def test_only_one_class_with_folds(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [("x",)] * 12)
    assert "only one class to train on, 'x'" in fail(small, folds=2)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_label_that_only_another_split_has(small: SmallStore, split: str) -> None:
    small.put_dataset(TEXTS, [*XY[:10], ("zebra",), ("x",)], splits=["train"] * 10 + [split] * 2)
    assert f"only the split '{split}' of dataset 'small' has the label 'zebra'" in fail(small)


def test_splits_without_train(small: SmallStore) -> None:
    small.put_dataset(TEXTS, XY, splits=["test", "fit"] * 6)
    message = fail(small)
    assert "no split 'train'" in message
    assert "it has fit, test" in message


def test_an_empty_dataset(small: SmallStore) -> None:
    small.put_dataset([], [])
    assert "no documents to train on" in fail(small)


def test_an_empty_dataset_with_folds(small: SmallStore) -> None:
    small.put_dataset([], [])
    assert "no documents to train on" in fail(small, folds=2)


def test_a_batch_larger_than_the_training_documents(small: SmallStore) -> None:
    small.put_dataset(TEXTS, XY)
    message = fail(small, batch_size=13)
    assert "batch size 13" in message
    assert "10 training documents" in message


def test_more_folds_than_the_smallest_class_has_documents(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [("x",)] * 9 + [("rare",)] * 3)
    message = fail(small, folds=4)
    assert "4 folds" in message
    assert "the 3 documents of the smallest class, 'rare'" in message


def test_a_dev_part_that_would_be_empty(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [(f"label {number}",) for number in range(12)])
    message = fail(small)
    assert "no dev part can be set aside from 12 training documents" in message


def test_a_view_that_lacks_texts(small: SmallStore) -> None:
    texts, _ = small.put_classes({"x": 10, "y": 10}, name="whole")
    labels = [("x",), ("y",)] * 10 + [("x",)]
    small.put_dataset([*texts, "never embedded"], labels)
    message = fail(small, error=KeyNotFoundError, dataset="small")
    assert "lacks 1 of 21 texts" in message
    assert "embedcache build" in message


def test_a_store_that_cannot_be_written(small: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    small.put_classes({"x": 10, "y": 10})
    # Not by permissions: the superuser, whom tests may run as, passes them.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in fail(small, error=StoreReadOnlyError)


def test_a_dataset_that_is_not_there(small: SmallStore) -> None:
    small.put_dataset(TEXTS, XY)
    assert "small" in fail(small, error=UnknownNameError, dataset="large")
