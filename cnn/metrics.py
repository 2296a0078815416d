"""How good probabilities are, in the three figures that every epoch has. NumPy only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.spec import MULTILABEL, SINGLE

EPSILON = 1e-7
"""The least probability that a loss is taken of; what Keras's losses use."""
THRESHOLD = 0.5
"""The probability from which on a multilabel model gives a text a label."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How good a model is on n texts.

    Attributes:
        accuracy: Share of the texts whose most probable class is theirs; for multilabel, of
            the texts whose labels are exactly those predicted.
        macro_f1: Mean of the classes' F1 scores.
        loss: Mean cross-entropy, in nats; for multilabel of each label's yes or no.
    """

    accuracy: float
    macro_f1: float
    loss: float

    def to_record(self) -> dict[str, float]:
        """The fields as JSON values."""
        return asdict(self)


def compute_scores(probabilities: NDArray[Any], labels: NDArray[Any]) -> Scores:
    """Score probabilities (n, C), n at least 1.

    Args:
        probabilities: (n, C).
        labels: Class numbers, (n,); for multilabel (n, C) of 0 and 1.
    """
    if labels.ndim == 2:
        predicted = decide(probabilities, MULTILABEL)
        return Scores(
            accuracy=float((predicted == labels).all(axis=1).mean()),
            macro_f1=_macro_f1(
                (predicted * labels).sum(axis=0, dtype=np.int64),
                predicted.sum(axis=0, dtype=np.int64) + labels.sum(axis=0, dtype=np.int64),
            ),
            loss=compute_binary_loss(probabilities, labels),
        )
    predicted = decide(probabilities, SINGLE)
    return Scores(
        accuracy=compute_accuracy(predicted, labels),
        macro_f1=compute_macro_f1(predicted, labels),
        loss=compute_loss(probabilities, labels),
    )


def decide(probabilities: NDArray[Any], task: str) -> NDArray[Any]:
    """What probabilities (n, C) predict.

    Returns:
        The most probable class, (n,) int64; for multilabel (n, C) uint8, 1 for each label
        whose probability is at least one half.
    """
    if task == MULTILABEL:
        return (probabilities >= THRESHOLD).astype(np.uint8)
    classes: NDArray[np.int64] = probabilities.argmax(axis=1)
    return classes


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
    return _macro_f1(hits, total)


def compute_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of −ln p of each text's own class; NaN if a probability is NaN."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.clip(own, EPSILON, 1.0))))


def compute_binary_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean over texts and labels of −ln p, of the label's absence −ln(1 − p); both (n, C)."""
    of_present = probabilities.astype(np.float64)
    own = np.where(labels > 0, of_present, 1.0 - of_present)
    return float(-np.mean(np.log(np.clip(own, EPSILON, 1.0))))


def _macro_f1(hits: NDArray[np.int64], total: NDArray[np.int64]) -> float:
    """Of each class its TP and 2·TP + FP + FN; a class that occurs nowhere has no part."""
    occurs = total > 0
    return float(np.mean(2.0 * hits[occurs] / total[occurs])) if occurs.any() else 0.0
