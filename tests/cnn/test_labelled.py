"""Documents with several labels: which count, and how they are cut into parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn import Run, TrainConfig, load_run, train
from cnn.labelled import choose_folds, choose_parts
from cnn.splits import label_sets, multilabel_split
from embedcache.errors import TrainingError

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
TEXTS = [f"text {number}" for number in range(40)]
LABELS = [
    tuple(name for name, step in (("a", 2), ("b", 3), ("c", 5)) if number % step == 0)
    for number in range(40)
]
AUTO = TrainConfig(preset="basic", filters=4, epochs=2, batch_size=8)


@pytest.fixture
def many(small: SmallStore) -> SmallStore:
    generator = np.random.default_rng(0)
    small.put_texts(TEXTS, [generator.normal(0, 1, (3, 16)) for _ in TEXTS])
    small.put_dataset(TEXTS, LABELS)
    return small


def test_several_labels_make_a_multilabel_task(many: SmallStore) -> None:
    labelled, parts = choose_parts(many.store.load_dataset(), AUTO.resolved())
    assert labelled.task == "multilabel"
    assert labelled.dataset.label_names == ("a", "b", "c")
    wanted = [[int(name in labels) for name in "abc"] for labels in LABELS]
    assert labelled.targets.tolist() == wanted
    assert labelled.count_classes(np.arange(40)).tolist() == [20, 14, 8]
    assert sorted([*parts.train.tolist(), *parts.dev.tolist()]) == list(range(40))
    assert len(parts.dev) == 4


def test_one_label_each_makes_a_single_task_unless_another_is_asked(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [("x",), ("y",)] * 20)
    dataset = small.store.load_dataset()
    assert choose_parts(dataset, AUTO.resolved())[0].task == "single"
    asked = TrainConfig(task="multilabel").resolved()
    labelled, _ = choose_parts(dataset, asked)
    assert labelled.targets.tolist() == [[1, 0], [0, 1]] * 20


def test_a_label_that_stands_twice_counts_once(small: SmallStore) -> None:
    small.put_dataset(TEXTS, [("x", "x"), ("y", "x")] * 20)
    labelled, _ = choose_parts(small.store.load_dataset(), AUTO.resolved())
    assert labelled.targets.tolist() == [[1, 0], [1, 1]] * 20
    assert labelled.dataset.num_labels.tolist() == [1, 2] * 20


def test_folds_of_several_labels_hold_all_documents_once(many: SmallStore) -> None:
    labelled, cuts = choose_folds(many.store.load_dataset(), AUTO.resolved(), 4)
    tests = [cut.test.tolist() for cut in cuts if cut.test is not None]
    assert sorted(row for rows in tests for row in rows) == list(range(40))
    for rows in tests:
        assert len(rows) == 10
        assert abs(labelled.count_classes(np.array(rows))[0] - 5) <= 2


def test_folds_beyond_the_rarest_label_are_refused(many: SmallStore) -> None:
    with pytest.raises(TrainingError, match="the 8 documents of the smallest class, 'c'"):
        choose_folds(many.store.load_dataset(), AUTO.resolved(), 9)


def test_a_label_that_only_test_has_is_refused_of_several_too(small: SmallStore) -> None:
    small.put_dataset(["a", "b", "c"], [("x", "y"), ("x",), ("z",)],
                      splits=["train", "train", "test"])  # fmt: skip
    with pytest.raises(TrainingError, match=r"only the split 'test' .* has the label 'z'"):
        choose_parts(small.store.load_dataset(), AUTO.resolved())


def test_a_multilabel_run_predicts_every_label_by_itself(many: SmallStore) -> None:
    run: Run = train(many.store, config=AUTO)
    assert (run.task, run.labels) == ("multilabel", ("a", "b", "c"))
    assert set(run.record["dev"]) >= {"accuracy", "macro_f1", "micro_f1", "loss"}
    loaded = load_run(many.store, run.name)
    predictions = loaded.load_predictions()
    assert predictions.labels.shape == predictions.probabilities.shape == (4, 3)
    for prediction in loaded.predict(TEXTS[:5]):
        wanted = {name for name, chance in prediction.probabilities.items() if chance >= 0.5}
        assert set(prediction.labels) == wanted


@given(st.integers(2, 200), st.integers(1, 6), st.floats(0.05, 0.6), st.integers(0, 99))
def test_a_multilabel_split_keeps_the_share_of_each_frequent_set(
    num_texts: int, num_labels: int, fraction: float, seed: int
) -> None:
    targets = np.random.default_rng(seed).integers(0, 2, (num_texts, num_labels), np.uint8)
    sets = label_sets(targets)
    assert (targets[:, None] == targets[None]).all(axis=2).tolist() == (
        (sets[:, None] == sets[None]).tolist()
    )
    stay, aside = multilabel_split(sets, fraction, seed=seed)
    assert sorted([*stay.tolist(), *aside.tolist()]) == list(range(num_texts))
    wanted = min(max(round(fraction * num_texts), 1), num_texts - 1)
    assert len(aside) == wanted
    for each in np.unique(sets):
        count = np.count_nonzero(sets == each)
        drawn = np.count_nonzero(sets[aside] == each)
        assert abs(drawn - wanted * count / num_texts) < 2
    again = multilabel_split(sets, fraction, seed=seed)
    assert np.array_equal(again[1], aside)


def test_one_text_is_not_set_aside() -> None:
    stay, aside = multilabel_split(np.zeros(1, np.int32), 0.5, seed=0)
    assert (len(stay), len(aside)) == (1, 0)
