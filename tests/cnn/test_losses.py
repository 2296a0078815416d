"""What a step minimises and reports: losses, class weights, accuracy, max-norm, optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn.config import ResolvedConfig, TrainConfig
from cnn.losses import balanced_class_weights
from cnn.metrics import compute_scores
from cnn.model import ModelSpec, build_model, compile_model, train_step

DIM = 4
SINGLE = np.array([0, 2, 1, 0, 0], np.int32)
MULTI = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], np.uint8)
SPECS = {task: ModelSpec(DIM, 3, "float32", task=task) for task in ("single", "multilabel")}
LABELS = {"single": SINGLE, "multilabel": MULTI}


def config_of(**changes: Any) -> ResolvedConfig:
    return TrainConfig(**{"preset": "linear", **changes}).resolved()


def compiled(config: ResolvedConfig, task: str, weights: NDArray[Any] | None = None) -> Any:
    model = build_model(config, SPECS[task])
    compile_model(model, config, SPECS[task], weights)
    return model


@pytest.fixture(scope="module")
def batch() -> list[NDArray[Any]]:
    values = np.random.default_rng(0).normal(size=(5, 8, DIM)).astype(np.float32)
    lengths = np.array([8, 3, 1, 5, 2], np.int32)
    values[np.arange(8) >= lengths[:, None]] = 0.0
    return [values, lengths]


@pytest.mark.parametrize("task", ["single", "multilabel"])
def test_a_step_reports_the_loss_and_the_accuracy_of_its_own_batch(
    task: str, batch: list[NDArray[Any]]
) -> None:
    model = compiled(config_of(learning_rate=0.3), task)
    for _ in range(4):
        wanted = compute_scores(np.asarray(model.predict_on_batch(batch)), LABELS[task])
        loss, accuracy = train_step(model, batch, LABELS[task])
        # Not a mean over the steps so far.
        assert loss == pytest.approx(wanted.loss, abs=1e-6)
        assert accuracy == pytest.approx(wanted.accuracy, abs=1e-6)


def test_class_weights_are_inside_the_loss_of_one_label(batch: list[NDArray[Any]]) -> None:
    weights = np.array([0.5, 2.0, 3.0])
    model = compiled(config_of(), "single", weights)
    probabilities = np.asarray(model.predict_on_batch(batch), np.float64)
    own = probabilities[np.arange(5), SINGLE]
    wanted = np.mean(weights[SINGLE] * -np.log(own))
    assert train_step(model, batch, SINGLE)[0] == pytest.approx(wanted, abs=1e-5)


def test_class_weights_of_multilabel_are_those_of_positives(batch: list[NDArray[Any]]) -> None:
    weights = np.array([0.5, 2.0, 3.0])
    model = compiled(config_of(), "multilabel", weights)
    p = np.asarray(model.predict_on_batch(batch), np.float64)
    wanted = -np.mean(weights * MULTI * np.log(p) + (1 - MULTI) * np.log(1 - p))
    assert train_step(model, batch, MULTI)[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("task", ["single", "multilabel"])
def test_weights_of_one_are_no_weights(task: str, batch: list[NDArray[Any]]) -> None:
    plain = compiled(config_of(), task)
    weighted = compiled(config_of(), task, np.ones(3, np.float32))
    for _ in range(3):
        first, second = (train_step(model, batch, LABELS[task]) for model in (plain, weighted))
        assert first == pytest.approx(second, abs=1e-6)


def test_a_weight_is_as_good_as_so_many_copies_of_the_text(batch: list[NDArray[Any]]) -> None:
    """The gradient has the weights too, not only the figure that is shown."""
    config = config_of(learning_rate=0.1)
    copied = [np.concatenate([array, array[[1]], array[[1]]]) for array in batch]
    # Mean over 7 texts in place of 5: the other texts' weights make up for it.
    plain = compiled(config, "single")
    weighted = compiled(config, "single", np.array([5 / 7, 5 / 7, 15 / 7]))
    for _ in range(3):
        train_step(plain, copied, np.append(SINGLE, [2, 2]).astype(np.int32))
        train_step(weighted, batch, SINGLE)
    for left, right in zip(plain.get_weights(), weighted.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_weights_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class_weights must have the shape \(3,\): got \(2,\)"):
        compiled(config_of(), "single", np.ones(2))


def test_balanced_weights_of_a_case_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1], np.int32)
    assert balanced_class_weights(labels, 2).tolist() == [0.75, 1.5]
    # Under them the mean weight of a text is 1.
    assert balanced_class_weights(labels, 2)[labels].mean() == 1.0
    # A class that no text has: 1, and it counts among C.
    np.testing.assert_allclose(balanced_class_weights(labels, 3), [0.5, 1.0, 1.0])


def test_balanced_weights_of_multilabel_of_a_case_worked_out_by_hand() -> None:
    # Of 5 texts 4, 2, 0 and 5 have the label.
    labels = np.array([[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]])
    np.testing.assert_allclose(balanced_class_weights(labels, 4), [0.25, 1.5, 1.0, 0.2])


def test_balanced_weights_are_scikit_learns() -> None:
    sklearn = pytest.importorskip(
        "sklearn.utils.class_weight", reason="scikit-learn, to compare with, is not installed"
    )
    labels = np.random.default_rng(0).choice(5, 200, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    wanted = sklearn.compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(balanced_class_weights(labels, 5), wanted, rtol=1e-6)
    of_one = sklearn.compute_class_weight(
        "balanced", classes=np.arange(2), y=(labels == 2).astype(int)
    )
    multi = np.eye(5, dtype=np.uint8)[labels]
    assert balanced_class_weights(multi, 5)[2] == pytest.approx(of_one[1] / of_one[0], rel=1e-6)


@pytest.mark.parametrize(("max_norm", "is_bounded"), [(0.5, True), (0, False)])
@pytest.mark.parametrize("optimizer", ["adam", "adadelta"])
def test_max_norm_bounds_the_weights_of_each_class(
    max_norm: float, is_bounded: bool, optimizer: str, batch: list[NDArray[Any]]
) -> None:
    config = config_of(
        preset="kim", max_norm=max_norm, optimizer=optimizer, learning_rate=1.0, filters=8
    )
    model = compiled(config, "single")
    for _ in range(5):
        train_step(model, batch, SINGLE)
    kernel, _ = model.get_layer("classes").get_weights()
    norms = np.linalg.norm(kernel, axis=0)
    assert (norms.max() <= 0.5 + 1e-5) == is_bounded


def test_the_first_step_of_adadelta_is_zeilers(batch: list[NDArray[Any]]) -> None:
    """E[g²] and E[Δ²] start at 0: Δ = −√(0 + ε) / √((1 − ρ)·g² + ε) · g (Zeiler 2012)."""
    config = config_of(optimizer="adadelta")
    model = compiled(config, "single")
    kernel, _ = model.get_layer("classes").get_weights()
    values, lengths = batch
    features = values.sum(axis=1) / lengths[:, None]
    residual = np.asarray(model.predict_on_batch(batch)) - np.eye(3)[SINGLE]
    gradient = features.T @ residual / 5
    train_step(model, batch, SINGLE)
    wanted = kernel - np.sqrt(1e-6) / np.sqrt(0.05 * gradient**2 + 1e-6) * gradient
    np.testing.assert_allclose(model.get_layer("classes").get_weights()[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "auto"}, "task must be single or multilabel: got 'auto'"),
        ({"dtype": "int8"}, "dtype must be float16 or float32"),
        ({"num_classes": 1}, "num_classes must be at least 2: got 1"),
        ({"num_classes": 0, "task": "multilabel"}, "num_classes must be at least 1: got 0"),
        ({"num_layers": 3}, "3 layers of one width do not make a row of 4"),
        ({"num_tokens": -1}, "num_tokens must be at least 0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec(**{"dim": DIM, "num_classes": 3, "dtype": "float32", **fields})
