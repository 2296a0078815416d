"""evaluate: cases worked out by hand, and scikit-learn's figures where it is installed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn.evaluation import bootstrap_interval, compute_auc, compute_ece, evaluate
from cnn.metrics import compute_scores, decide
from embedcache.errors import TrainingError

NAMES = ["a", "b", "c"]
LABELS = np.array([0, 0, 1, 2], np.int32)
PROBABILITIES = np.array(
    [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.125, 0.75, 0.125]], np.float32
)
MULTI_LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.uint8)
MULTI_PROBABILITIES = np.array([[0.75, 0.25, 0.25], [0.5, 0.25, 0.75], [0.25, 0.0, 0.25]])


@pytest.fixture(scope="module")
def metrics() -> Any:
    return pytest.importorskip(
        "sklearn.metrics", reason="scikit-learn, to compare with, is not installed"
    )


def draw(num_texts: int, num_classes: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels, and probabilities that are better than chance."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_texts).astype(np.int32)
    logits = generator.normal(size=(num_texts, num_classes)) + np.eye(num_classes)[labels]
    # Rounded: equal scores, whose ranks are what is easy to get wrong.
    odds = np.exp(np.round(logits, 1))
    return labels, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def draw_multilabel(num_texts: int = 300) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(0)
    labels = (generator.random((num_texts, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.uint8)
    logits = generator.normal(size=labels.shape) + 2.0 * labels - 1.0
    return labels, (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def test_a_case_worked_out_by_hand() -> None:
    found = evaluate(PROBABILITIES, LABELS, NAMES)
    assert found.confusion == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert [asdict(scores) for scores in found.per_class] == [
        {"label": "a", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {"label": "b", "precision": pytest.approx(1 / 3), "recall": 1.0, "f1": 0.5, "support": 1},
        {"label": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
    ]
    assert (found.accuracy, found.num_texts, found.task) == (0.5, 4, "single")
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert found.loss == pytest.approx(-(2 * math.log(0.5) + math.log(0.25) + math.log(0.125)) / 4)
    assert (found.auc, found.micro_f1) == (None, None)
    # Three of confidence 1/2, two of them right; one of 3/4, wrong.
    assert found.ece == pytest.approx((abs(2 - 3 * 0.5) + 0.75) / 4)
    assert found.scores == compute_scores(PROBABILITIES, LABELS)


def test_a_multilabel_case_worked_out_by_hand() -> None:
    found = evaluate(MULTI_PROBABILITIES, MULTI_LABELS, NAMES, task="multilabel")
    # Of each label [[TN, FP], [FN, TP]]; one half is a yes.
    assert found.confusion == [[[1, 0], [0, 2]], [[2, 0], [1, 0]], [[2, 1], [0, 0]]]
    assert [scores.f1 for scores in found.per_class] == [1.0, 0.0, 0.0]
    assert [scores.support for scores in found.per_class] == [2, 1, 0]
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.macro_f1 == pytest.approx(1 / 3)
    assert found.micro_f1 == pytest.approx(4 / (4 + 1 + 1))
    own = [0.75, 0.75, 0.75, 0.5, 0.25, 0.25, 0.75, 1.0, 0.75]
    assert found.loss == pytest.approx(-np.log(own).mean())
    assert found.auc is None
    # 3/4 six times, one of them wrong; 1/2 once, right; 3/4 for a wrong no; 1 once.
    assert found.ece == pytest.approx((abs(5 - 7 * 0.75) + 0.5 + 0.0) / 9)
    assert found.scores == compute_scores(MULTI_PROBABILITIES, MULTI_LABELS)


def test_decisions() -> None:
    assert decide(PROBABILITIES, "single").tolist() == [0, 1, 1, 1]
    wanted = [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert decide(MULTI_PROBABILITIES, "multilabel").tolist() == wanted


@pytest.mark.parametrize("num_classes", [2, 5])
def test_figures_of_one_label_are_scikit_learns(metrics: Any, num_classes: int) -> None:
    labels, probabilities = draw(400, num_classes)
    names = [f"class {number}" for number in range(num_classes)]
    found = evaluate(probabilities, labels, names)
    predicted = probabilities.argmax(axis=1)
    assert found.accuracy == metrics.accuracy_score(labels, predicted)
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    scores = probabilities.astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(metrics.log_loss(labels, scores), abs=1e-6)
    assert found.confusion == metrics.confusion_matrix(labels, predicted).tolist()
    wanted = metrics.precision_recall_fscore_support(labels, predicted)
    ours = [(one.precision, one.recall, one.f1, one.support) for one in found.per_class]
    np.testing.assert_allclose(np.transpose(ours), wanted)
    if num_classes == 2:
        auc = metrics.roc_auc_score(labels, probabilities[:, 1])
        assert found.auc == pytest.approx(auc)


def test_figures_of_multilabel_are_scikit_learns(metrics: Any) -> None:
    labels, probabilities = draw_multilabel()
    found = evaluate(probabilities, labels, list("abcd"), task="multilabel")
    predicted = probabilities >= 0.5
    assert found.accuracy == metrics.accuracy_score(labels, predicted)
    for average, ours in (("macro", found.macro_f1), ("micro", found.micro_f1)):
        assert ours == pytest.approx(metrics.f1_score(labels, predicted, average=average))
    assert found.confusion == metrics.multilabel_confusion_matrix(labels, predicted).tolist()
    losses = [metrics.log_loss(labels[:, c], probabilities[:, c]) for c in range(4)]
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-6)


def test_a_record_is_json_and_has_every_field() -> None:
    found = evaluate(MULTI_PROBABILITIES, MULTI_LABELS, NAMES, task="multilabel")
    record = json.loads(json.dumps(found.to_record()))
    assert record == found.to_record()
    assert set(record) == {
        "task", "num_texts", "accuracy", "accuracy_interval", "macro_f1", "micro_f1", "loss",
        "auc", "ece", "per_class", "confusion",
    }  # fmt: skip
    assert record["per_class"][0]["label"] == "a"


def test_a_class_that_no_text_has_and_none_is_predicted_has_no_part_in_macro_f1() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]], np.float32)
    found = evaluate(probabilities, np.array([0, 1], np.int32), NAMES)
    assert found.macro_f1 == 1.0
    assert (found.per_class[2].support, found.per_class[2].f1) == (0, 0.0)
    assert found.confusion[2] == [0, 0, 0]


def test_one_class_alone_has_no_area_under_the_curve() -> None:
    labels, probabilities = draw(20, 2)
    assert evaluate(probabilities, labels, ["x", "y"]).auc is not None
    assert evaluate(probabilities, np.zeros(20, np.int32), ["x", "y"]).auc is None
    assert compute_auc(np.array([0.1, 0.2]), np.array([True, True])) is None


def test_area_under_the_curve_of_cases_worked_out_by_hand() -> None:
    is_positive = np.array([False, True, True, False])
    assert compute_auc(np.array([0.1, 0.9, 0.8, 0.2]), is_positive) == 1.0
    assert compute_auc(np.array([0.9, 0.1, 0.2, 0.8]), is_positive) == 0.0
    assert compute_auc(np.full(4, 0.5), is_positive) == 0.5
    # Of four pairs two are in order and one is equal.
    assert compute_auc(np.array([0.1, 0.3, 0.05, 0.3]), is_positive) == pytest.approx(1.5 / 4)


def test_calibration_error_of_cases_worked_out_by_hand() -> None:
    is_right = np.array([True, False, True, True])
    # One bin: confidence 0.75 and accuracy 0.75 on average.
    assert compute_ece(np.array([1.0, 0.5, 0.75, 0.75]), is_right, num_bins=1) == 0.0
    # Edges belong to the bin below: (0, 1/2] holds the 0.5.
    assert compute_ece(np.array([0.5, 0.5, 1.0, 1.0]), is_right, num_bins=2) == 0.0
    assert compute_ece(np.array([0.0, 1.0]), np.array([True, False])) == 1.0


def test_calibrated_probabilities_have_a_small_calibration_error() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.5, 1.0, 100_000)
    is_right = generator.random(100_000) < confidences
    assert compute_ece(confidences, is_right) < 0.01
    assert compute_ece(confidences, generator.random(100_000) < 0.5) == pytest.approx(
        0.25, abs=0.01
    )


def test_the_interval_is_that_of_a_bootstrap_that_draws_texts() -> None:
    is_right = np.arange(500) < 400
    low, high = bootstrap_interval(is_right, seed=0)
    generator = np.random.default_rng(1)
    drawn = is_right[generator.integers(0, 500, (2_000, 500))].mean(axis=1)
    np.testing.assert_allclose([low, high], np.percentile(drawn, [2.5, 97.5]), atol=0.004)
    # And near the normal one: ±1.96·√(p(1 − p)/n).
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 500), rel=0.1)


def test_only_the_seed_changes_the_interval() -> None:
    labels, probabilities = draw(97, 3)
    first, same, other = (evaluate(probabilities, labels, NAMES, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first.accuracy_interval != other.accuracy_interval
    assert first.accuracy_interval[0] < first.accuracy < first.accuracy_interval[1]


def test_a_text_that_is_alone_has_an_interval() -> None:
    found = evaluate(PROBABILITIES[:1], LABELS[:1], NAMES)
    assert (found.accuracy, found.accuracy_interval) == (1.0, (1.0, 1.0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_no_numbers_are_refused_in_one_line(value: float) -> None:
    for probabilities, labels, task in (
        (PROBABILITIES, LABELS, "single"),
        (MULTI_PROBABILITIES, MULTI_LABELS, "multilabel"),
    ):
        bad = probabilities.copy()
        bad[1:, 2] = value
        with pytest.raises(
            TrainingError, match=r"for \d of \d texts, the first at place 2"
        ) as caught:
            evaluate(bad, labels, NAMES, task=task)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("probabilities", "labels", "names", "task"),
    [
        (PROBABILITIES[:0], LABELS[:0], NAMES, "single"),
        (PROBABILITIES, LABELS[:3], NAMES, "single"),
        (PROBABILITIES, LABELS, NAMES[:2], "single"),
        (PROBABILITIES, LABELS, NAMES, "multilabel"),
        (MULTI_PROBABILITIES, MULTI_LABELS, NAMES, "single"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    probabilities: NDArray[Any], labels: NDArray[Any], names: list[str], task: str
) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        evaluate(probabilities, labels, names, task=task)
