"""evaluate: what is worth knowing of a model's probabilities on a set of texts. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.metrics import Scores, compute_scores, decide
from cnn.spec import MULTILABEL, SINGLE
from embedcache.errors import TrainingError

NUM_DRAWS = 2_000
"""Of the bootstrap. Efron and Tibshirani (1993), section 13.3: at least 1,000 for percentiles."""
NUM_BINS = 15
"""Of the calibration error: Guo et al. (2017), section 4."""

_BOOTSTRAP_STREAM = 0x626F6F74


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How well one class, or one label of a multilabel task, is found.

    Attributes:
        label: Its name.
        precision: TP / (TP + FP); 0 where it was never predicted.
        recall: TP / (TP + FN); 0 where no text has it.
        f1: 2·TP / (2·TP + FP + FN); 0 where it is neither some text's own nor predicted.
        support: Texts that have it.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is worth knowing of a model's probabilities on n texts.

    Attributes:
        task: ``"single"`` or ``"multilabel"``.
        num_texts: n.
        accuracy: Share of the texts whose class, or whose labels all, are predicted.
        accuracy_interval: 95 % interval of it, lowest and highest: the percentiles 2.5 and
            97.5 of 2,000 bootstrap samples of the texts.
        macro_f1: Mean of the classes' F1, over those that occur.
        micro_f1: F1 of all decisions together; None where it is the accuracy (single).
        loss: Mean cross-entropy, in nats, not weighted.
        auc: Area under the ROC curve, for a task of two classes that both occur; else None.
        ece: Expected calibration error (Guo et al. 2017), 15 bins, from 0 (calibrated) to 1.
        per_class: Scores of each class, in the order of the labels.
        confusion: Single: (C, C), texts of class i (row) that were predicted j (column).
            Multilabel: (C, 2, 2), of each label ``[[TN, FP], [FN, TP]]``.
    """

    task: str
    num_texts: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    micro_f1: float | None
    loss: float
    auc: float | None
    ece: float
    per_class: tuple[ClassScores, ...]
    confusion: list[Any]

    @property
    def scores(self) -> Scores:
        """The three that every epoch has too."""
        return Scores(self.accuracy, self.macro_f1, self.loss)

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        record = asdict(self)
        record["accuracy_interval"] = list(self.accuracy_interval)
        record["per_class"] = [asdict(scores) for scores in self.per_class]
        return record


def evaluate(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    label_names: Sequence[str],
    *,
    task: str = SINGLE,
    seed: int = 0,
) -> Evaluation:
    """Measure a model's probabilities against the texts' own labels.

    Args:
        probabilities: (n, C), n at least 1.
        labels: Class numbers, (n,); for multilabel (n, C) of 0 and 1.
        label_names: Of the C classes.
        task: ``"single"`` or ``"multilabel"``.
        seed: What the bootstrap draws depend on.

    Raises:
        TrainingError: if a probability is not a number.
        ValueError: if the shapes do not fit each other, or there is no text.
    """
    _check_shapes(probabilities, labels, label_names, task)
    _check_numbers(probabilities)
    is_multilabel = task == MULTILABEL
    predicted = decide(probabilities, task)
    is_right = (predicted == labels).all(axis=1) if is_multilabel else predicted == labels
    scores = compute_scores(probabilities, labels)
    counts = _count_multilabel(predicted, labels) if is_multilabel else None
    confusion = _confusion(predicted, labels, len(label_names)) if counts is None else counts
    tables = counts if counts is not None else _one_against_rest(confusion)
    return Evaluation(
        task=task,
        num_texts=len(labels),
        accuracy=scores.accuracy,
        accuracy_interval=bootstrap_interval(is_right, seed=seed),
        macro_f1=scores.macro_f1,
        micro_f1=_f1(tables.sum(axis=0)) if is_multilabel else None,
        loss=scores.loss,
        auc=_binary_auc(probabilities, labels, task),
        ece=_task_ece(probabilities, predicted, labels, task),
        per_class=tuple(
            _class_scores(name, table) for name, table in zip(label_names, tables, strict=True)
        ),
        confusion=confusion.tolist(),
    )


def bootstrap_interval(
    is_right: NDArray[np.bool_], *, seed: int, num_draws: int = NUM_DRAWS
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of an accuracy.

    Efron and Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.

    Args:
        is_right: Whether each of n texts was predicted right, (n,), n at least 1.
        seed: What the draws depend on.
        num_draws: Samples of n texts, drawn with replacement.
    """
    num_texts = len(is_right)
    generator = np.random.default_rng((_BOOTSTRAP_STREAM, seed))
    # How many of n texts drawn with replacement were right is binomial: no need to draw texts.
    drawn = generator.binomial(num_texts, is_right.mean(), num_draws) / num_texts
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def compute_auc(scores: NDArray[Any], is_positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: how often a positive has a higher score than a negative.

    By ranks, ties count a half: Hanley and McNeil (1982).

    Args:
        scores: (n,), finite.
        is_positive: (n,).

    Returns:
        From 0 to 1; None without a positive or without a negative.
    """
    num_positive = int(np.count_nonzero(is_positive))
    num_negative = len(scores) - num_positive
    if not num_positive or not num_negative:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[places]
    total = float(ranks[is_positive].sum())
    return (total - num_positive * (num_positive + 1) / 2.0) / (num_positive * num_negative)


def compute_ece(
    confidences: NDArray[Any], is_right: NDArray[np.bool_], *, num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error: Σ_m |B_m| / n · |accuracy(B_m) − confidence(B_m)|.

    Guo et al. (2017), "On Calibration of Modern Neural Networks", equation 3; bin m of M
    holds the confidences in ((m − 1) / M, m / M].

    Args:
        confidences: Probability of each prediction, (n,), in [0, 1].
        is_right: Whether it was right, (n,).
        num_bins: M.
    """
    confidences = np.asarray(confidences, np.float64)
    edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(edges, confidences, side="left")
    gaps = np.bincount(bins, weights=is_right - confidences, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidences))


def _check_shapes(
    probabilities: NDArray[Any], labels: NDArray[Any], label_names: Sequence[str], task: str
) -> None:
    wanted = (len(labels), len(label_names))
    labels_shape = wanted if task == MULTILABEL else wanted[:1]
    if len(labels) == 0 or probabilities.shape != wanted or labels.shape != labels_shape:
        raise ValueError(
            f"{task} probabilities of shape {probabilities.shape} and labels of shape"
            f" {labels.shape} do not fit {len(label_names)} classes"
        )


def _check_numbers(probabilities: NDArray[Any]) -> None:
    is_bad = ~np.isfinite(probabilities).all(axis=1)
    if is_bad.any():
        raise TrainingError(
            f"the model gives no number as a probability for {int(is_bad.sum())} of {len(is_bad)}"
            f" texts, the first at place {int(is_bad.argmax()) + 1}; look for extreme values among"
            " the features with `embedcache get TEXT`"
        )


def _confusion(
    predicted: NDArray[Any], labels: NDArray[Any], num_classes: int
) -> NDArray[np.int64]:
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _one_against_rest(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each class ``[[TN, FP], [FN, TP]]``: (C, C) → (C, 2, 2)."""
    hits = np.diagonal(confusion)
    missed = confusion.sum(axis=1) - hits
    wrong = confusion.sum(axis=0) - hits
    rest = confusion.sum() - hits - missed - wrong
    return np.stack([rest, wrong, missed, hits], axis=1).reshape(-1, 2, 2)


def _count_multilabel(predicted: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Of each label ``[[TN, FP], [FN, TP]]``: two (n, C) → (C, 2, 2)."""
    has, found = labels.astype(np.bool_), predicted.astype(np.bool_)
    cells = [~has & ~found, ~has & found, has & ~found, has & found]
    return np.stack([cell.sum(axis=0) for cell in cells], axis=1).reshape(-1, 2, 2)


def _class_scores(label: str, table: NDArray[np.int64]) -> ClassScores:
    (_, wrong), (missed, hits) = table.tolist()
    return ClassScores(
        label=label,
        precision=hits / max(hits + wrong, 1),
        recall=hits / max(hits + missed, 1),
        f1=_f1(table),
        support=hits + missed,
    )


def _f1(table: NDArray[np.int64]) -> float:
    (_, wrong), (missed, hits) = table.tolist()
    return float(2 * hits / max(2 * hits + wrong + missed, 1))


def _binary_auc(probabilities: NDArray[Any], labels: NDArray[Any], task: str) -> float | None:
    if task == MULTILABEL or probabilities.shape[1] != 2:
        return None
    return compute_auc(probabilities[:, 1], labels == 1)


def _task_ece(
    probabilities: NDArray[Any], predicted: NDArray[Any], labels: NDArray[Any], task: str
) -> float:
    """Of the predicted class; for multilabel of all n · C decisions."""
    if task == MULTILABEL:
        confidences = np.where(predicted > 0, probabilities, 1.0 - probabilities)
        return compute_ece(confidences.ravel(), (predicted == labels).ravel())
    return compute_ece(probabilities.max(axis=1), predicted == labels)
