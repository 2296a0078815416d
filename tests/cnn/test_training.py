"""`train`: what it learns and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn import Run, TrainConfig, train
from cnn.backend import import_keras
from cnn.fitting import EpochReport, rank_scores
from cnn.fresh import FreshModels
from embedcache.errors import TrainingError

# Keras's Variable has no ``copy`` in its ``__array__``; NumPy 2 warns whenever one is saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
SCORES = ("accuracy", "macro_f1", "loss")
BASIC = TrainConfig(preset="basic", filters=8, epochs=4, batch_size=20, learning_rate=0.02)
# Compiled in a third of the time, for what does not depend on the network.
LINEAR = TrainConfig(preset="linear", epochs=1, batch_size=20)


def figures(run: Run) -> dict[str, Any]:
    """What of a run's record does not depend on the clock."""
    clocked = ("run", "seconds", "seconds_per_epoch", "input_overhead")
    return {name: value for name, value in run.record.items() if name not in clocked}


def test_kim_learns_two_classes(two_run: Run) -> None:
    assert two_run.metrics["dev"]["accuracy"] >= 0.95
    assert two_run.metrics["test"]["accuracy"] >= 0.95


def test_basic_learns_four_classes(four_run: Run) -> None:
    assert four_run.metrics["dev"]["accuracy"] >= 0.95


def test_without_a_test_split_there_are_no_test_scores(four_run: Run) -> None:
    assert four_run.metrics["test"] is None
    assert four_run.metrics["folds"] is None


def test_the_record_has_the_fields_of_train_json(shared: SmallStore, two_run: Run) -> None:
    assert list(two_run.record) == [
        "run", "dataset", "version", "view", "seed", "epochs", "best_epoch", "dev", "test",
        "folds", "seconds", "seconds_per_epoch", "input_overhead", "leaks",
    ]  # fmt: skip
    for part in ("dev", "test"):
        scores = two_run.record[part]
        assert list(scores) == ["accuracy", "macro_f1", "loss", "accuracy_interval", "auc", "ece"]
        low, high = scores["accuracy_interval"]
        assert low <= scores["accuracy"] <= high
    assert two_run.record["dataset"] == "two"
    assert two_run.record["view"] == shared.view.fingerprint
    assert 1 <= two_run.record["best_epoch"] <= two_run.record["epochs"] <= 8
    assert two_run.record["input_overhead"] >= 0
    rows = [row for row in shared.store.catalog.runs() if row.run == two_run.name]
    assert [dict(row.record) for row in rows] == [two_run.record]
    assert json.loads(json.dumps(two_run.record)) == two_run.record


def test_the_same_seed_gives_the_same_run_and_no_global_seed_matters(shared: SmallStore) -> None:
    runs = []
    for seed in (3, 3, 4):
        import_keras().utils.set_random_seed(len(runs))
        before = np.random.get_state()[1]
        runs.append(train(shared.store, "two", replace(BASIC, epochs=2, seed=seed)))
        assert np.array_equal(before, np.random.get_state()[1])
    assert figures(runs[0]) == figures(runs[1])
    assert runs[0].record["dev"]["loss"] != runs[2].record["dev"]["loss"]
    text = ["two good 5"]
    assert runs[0].predict(text) == runs[1].predict(text)


def test_early_stopping_restores_the_best_epoch(small: SmallStore) -> None:
    texts, _ = small.put_classes({"x": 40, "y": 40}, splits=("train", "dev", "train", "test"))
    # Labels that nothing can tell: the dev accuracy goes up and down.
    noise = np.random.default_rng(0).choice(["x", "y"], len(texts)).tolist()
    reports: list[EpochReport] = []
    config = replace(BASIC, epochs=30, patience=3, learning_rate=0.05)
    run = train(small.store, config=config, labels=noise, on_epoch=reports.append)

    best = max(reports, key=lambda report: rank_scores(report.dev))
    assert len(reports) < 30
    assert best.epoch == len(reports) - 3
    assert (run.record["epochs"], run.record["best_epoch"]) == (len(reports), best.epoch)
    assert {name: run.record["dev"][name] for name in SCORES} == best.dev.to_record()
    assert best.dev != reports[-1].dev
    # The weights kept are the best epoch's: they give its dev loss.
    dev = [place for place in range(len(texts)) if place % 4 == 1]
    predictions = run.predict([texts[place] for place in dev])
    chances = [
        found.probabilities[noise[place]] for place, found in zip(dev, predictions, strict=True)
    ]
    assert -np.mean(np.log(chances)) == pytest.approx(best.dev.loss, rel=1e-4)


def test_reports_tell_the_best_epoch_and_the_time(shared: SmallStore) -> None:
    reports: list[EpochReport] = []
    run = train(shared.store, "two", BASIC, on_epoch=reports.append)
    assert [report.epoch for report in reports] == list(range(1, len(reports) + 1))
    assert all(report.steps == 120 // 20 for report in reports)
    assert reports[0].is_best
    assert [report for report in reports if report.is_best][-1].epoch == run.record["best_epoch"]
    assert all(report.step_s + report.wait_s <= report.seconds for report in reports)
    assert run.history == [report.to_record() for report in reports]


def test_folds_give_scores_for_each_and_their_mean(shared: SmallStore) -> None:
    reports: list[EpochReport] = []
    config = replace(BASIC, folds=3, epochs=3)
    run = train(shared.store, "four", config, on_epoch=reports.append)
    folds = run.metrics["folds"]
    assert [fold["fold"] for fold in folds] == [0, 1, 2]
    for part in ("dev", "test"):
        for name in SCORES:
            mean = np.mean([fold[part][name] for fold in folds])
            assert run.metrics[part][name] == pytest.approx(mean)
    best = max(folds, key=lambda fold: (fold["dev"]["accuracy"], -fold["dev"]["loss"]))
    assert run.record["best_epoch"] == best["best_epoch"]
    assert run.record["epochs"] == best["epochs"]
    assert {report.fold for report in reports} == {0, 1, 2}
    assert len(run.history) == sum(fold["epochs"] for fold in folds)


def test_labels_given_take_the_place_of_the_datasets_own(shared: SmallStore) -> None:
    dataset = shared.store.load_dataset("two")
    labels = ["odd" if place % 2 else "even" for place in range(len(dataset))]
    run = train(shared.store, "two", LINEAR, labels=labels)
    assert run.labels == ("even", "odd")


def test_a_default_batch_shrinks_to_a_small_dataset(small: SmallStore) -> None:
    small.put_classes({"x": 10, "y": 10})
    run = train(small.store, config=replace(LINEAR, batch_size=None))
    assert run.config["batch_size"] == 18


@pytest.mark.parametrize(("features", "rate"), [("small", 1e37), ("huge", 1e-3)])
def test_a_loss_that_is_no_number_stops_the_training(
    tmp_path: Path, make_store: Callable[..., SmallStore], features: str, rate: float
) -> None:
    small = make_store(tmp_path / "store", dtype="float32")
    texts, labels = small.put_classes({"x": 40, "y": 40})
    if features == "huge":
        # Legal, finite numbers, whose sums are not.
        signs = np.random.default_rng(0).choice([-3e38, 3e38], (len(texts), 4, 16))
        texts = [f"huge {text}" for text in texts]
        small.put_texts(texts, list(signs))
        small.put_dataset(texts, [(label,) for label in labels])
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at .* epoch 1") as caught:
        train(small.store, "small", replace(BASIC, learning_rate=rate))
    assert "learning rate" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert small.store.catalog.runs() == []
    assert list(small.store.layout.runs.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_training_leaves_no_run(
    small: SmallStore, error: type[BaseException]
) -> None:
    small.put_classes({"x": 20, "y": 20})

    def interrupt(_report: EpochReport) -> None:
        raise error

    with pytest.raises(error):
        train(small.store, config=LINEAR, on_epoch=interrupt)
    assert small.store.catalog.runs() == []
    assert list(small.store.layout.runs.iterdir()) == []
    assert list(small.store.layout.tmp.iterdir()) == []


def test_documents_of_other_splits_are_left_alone(small: SmallStore) -> None:
    texts, labels = small.put_classes({"x": 30, "y": 30}, name="whole")
    splits = ["unsupervised" if place % 3 == 2 else "train" for place in range(len(texts))]
    given = [
        () if split == "unsupervised" else (label,)
        for split, label in zip(splits, labels, strict=True)
    ]
    small.put_dataset(texts, given, splits=splits)
    run = train(small.store, "small", LINEAR)
    assert run.labels == ("x", "y")


@pytest.mark.parametrize("preset", ["kim", "basic"])
def test_a_fold_does_not_depend_on_the_folds_before_it(
    shared: SmallStore, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    config = TrainConfig(
        preset=preset, filters=4, kernel_sizes=(2,), dropout=0.3, folds=2, epochs=2, batch_size=27
    )
    one = train(shared.store, "four", config)
    make = FreshModels.make

    def make_anew(self: FreshModels, *arguments: Any) -> Any:
        self._model = None
        return make(self, *arguments)

    monkeypatch.setattr(FreshModels, "make", make_anew)
    two = train(shared.store, "four", config)
    assert figures(one) == figures(two)
    probabilities = [run.load_predictions().probabilities for run in (one, two)]
    np.testing.assert_array_equal(*probabilities)


def test_folds_print_nothing_of_tracing(
    shared: SmallStore, caplog: pytest.LogCaptureFixture
) -> None:
    # The fifth time that a function is traced anew it is warned of, whatever the model.
    train(shared.store, "four", replace(LINEAR, folds=6, class_weights="balanced"))
    assert "retracing" not in caplog.text
