"""How good probabilities are. NumPy only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-7
"""The least probability that a loss is taken of; what Keras's losses use."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How good a model is on n texts.

    Attributes:
        accuracy: Share of the texts whose most probable class is theirs.
        macro_f1: Mean of the classes' F1 scores.
        loss: Mean cross-entropy, in nats.
    """

    accuracy: float
    macro_f1: float
    loss: float

    def to_record(self) -> dict[str, float]:
        """The fields as JSON values."""
        return asdict(self)


def compute_scores(probabilities: NDArray[Any], labels: NDArray[np.int32]) -> Scores:
    """Score probabilities (n, C) against class numbers (n,); n at least 1."""
    predicted = probabilities.argmax(axis=1)
    return Scores(
        accuracy=compute_accuracy(predicted, labels),
        macro_f1=compute_macro_f1(predicted, labels),
        loss=compute_loss(probabilities, labels),
    )


def mean_scores(scores: list[Scores]) -> Scores:
    """The mean of each score; of at least one."""
    return Scores(
        accuracy=float(np.mean([score.accuracy for score in scores])),
        macro_f1=float(np.mean([score.macro_f1 for score in scores])),
        loss=float(np.mean([score.loss for score in scores])),
    )


def compute_accuracy(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of equal elements of two (n,) arrays of class numbers."""
    return float(np.mean(predicted == labels))


def compute_macro_f1(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean over the classes of 2·TP / (2·TP + FP + FN).

    Over the classes that are some text's own or predicted one, as scikit-learn's
    ``f1_score(average="macro")`` does: a class that occurs in neither has no F1.
    """
    num_classes = int(max(predicted.max(), labels.max())) + 1
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    total = np.bincount(labels, minlength=num_classes)
    total += np.bincount(predicted, minlength=num_classes)
    return float(np.mean(2.0 * hits[total > 0] / total[total > 0]))


def compute_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of −ln p of each text's own class; NaN if a probability is NaN."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.clip(own, EPSILON, 1.0))))
