"""Class weights, the losses that apply them, and the accuracy of a step.

`balanced_class_weights` needs NumPy only; Keras is imported when a loss is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import import_keras
from cnn.metrics import THRESHOLD
from cnn.spec import MULTILABEL


def balanced_class_weights(labels: NDArray[Any], num_classes: int) -> NDArray[np.float32]:
    """Weights under which every class counts the same, however rare it is.

    One label a text: n / (C · n_c), after King and Zeng (2001), as scikit-learn's
    ``class_weight="balanced"``: the mean weight of a text is 1, so the loss keeps its scale.

    Multilabel: the weight of a label's positives, (n − n_c) / n_c, under which they weigh as
    much together as its negatives: the ratio of what the formula above gives the two. Where
    every text has the label, as if one had not; else it would not be learned at all.

    A class that no text has gets 1.

    Args:
        labels: Of the n training texts: class numbers, (n,), or for multilabel (n, C) of
            0 and 1.
        num_classes: C.

    Returns:
        (C,) float32.
    """
    num_texts = len(labels)
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_classes)
        weights = num_texts / (num_classes * np.maximum(counts, 1))
    else:
        counts = labels.sum(axis=0, dtype=np.int64)
        weights = np.maximum(num_texts - counts, 1) / np.maximum(counts, 1)
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def make_loss(task: str, class_weights: NDArray[Any] | None) -> Callable[[Any, Any], Any]:
    """The loss of each text of a batch; Keras takes the mean of them.

    With p the probabilities and y the labels of a text:

    - single: −w_y · ln p_y, y a class number;
    - multilabel: −1/C · Σ_c [w_c · y_c · ln p_c + (1 − y_c) · ln(1 − p_c)], y of 0 and 1.

    Args:
        task: ``"single"`` or ``"multilabel"``.
        class_weights: w, (C,); None: all 1.
    """
    keras = import_keras()
    ops = keras.ops
    weights = None if class_weights is None else np.asarray(class_weights, np.float32)

    def cross_entropy(labels: Any, probabilities: Any) -> Any:
        losses = ops.sparse_categorical_crossentropy(labels, probabilities)
        if weights is None:
            return losses
        return losses * ops.take(ops.convert_to_tensor(weights), ops.cast(labels, "int32"), axis=0)

    def binary_cross_entropy(labels: Any, probabilities: Any) -> Any:
        labels = ops.cast(labels, probabilities.dtype)
        losses = ops.binary_crossentropy(labels, probabilities)
        if weights is not None:
            # Labels are 0 or 1: this is w_c for a positive and 1 for a negative.
            losses = losses * (1.0 + ops.convert_to_tensor(weights - 1.0) * labels)
        return ops.mean(losses, axis=-1)

    return binary_cross_entropy if task == MULTILABEL else cross_entropy


def make_accuracy(task: str) -> Any:
    """A Keras metric ``accuracy``: share of the texts whose class, or whose labels all, are right.

    The same as `cnn.metrics.Scores.accuracy` says of probabilities.
    """
    keras = import_keras()
    ops = keras.ops

    def is_class_right(labels: Any, probabilities: Any) -> Any:
        predicted = ops.argmax(probabilities, axis=-1)
        return ops.cast(ops.equal(ops.cast(labels, predicted.dtype), predicted), "float32")

    def is_exact_match(labels: Any, probabilities: Any) -> Any:
        predicted = probabilities >= THRESHOLD
        return ops.cast(ops.all(ops.equal(ops.cast(labels, "bool"), predicted), axis=-1), "float32")

    function = is_exact_match if task == MULTILABEL else is_class_right
    return keras.metrics.MeanMetricWrapper(function, name="accuracy")
