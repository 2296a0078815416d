"""What a run has on disk: all of it, or what a run of an older version has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.evaluation import NUM_BINS
from cnn.metrics import EPSILON, decide
from cnn.predictions import PREDICTIONS_FILE, Predictions
from cnn.report.charts import Bin
from cnn.run import HISTORY_FILE, Run
from cnn.spec import MULTILABEL, SINGLE
from embedcache.errors import TrainingError

PARTS = ("test", "dev")
"""The part that a page tells of is the first of these that a run has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What a page tells of a run; empty or None where the run does not have it.

    Attributes:
        name: The run's.
        record: What ``train --json`` printed.
        config: Its configuration.
        labels: The labels that it tells apart.
        task: ``"single"`` or ``"multilabel"``.
        history: Each epoch's figures.
        evaluation: The records of its evaluations, by part.
        cost: Its cost ledger.
        lineage: Where its features came from.
        layer_weights: How it mixes layers.
        predictions: Of its dev and test texts.
        problems: What could not be read, a line each.
    """

    name: str
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    task: str
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    cost: Mapping[str, Any]
    lineage: Mapping[str, Any]
    layer_weights: Mapping[str, Any] | None
    predictions: Predictions | None
    problems: tuple[str, ...]

    @property
    def part(self) -> str | None:
        """The part whose texts tell how good it is: test, or else dev; None if neither is kept."""
        if self.predictions is not None:
            there = set(self.predictions.part.tolist())
            return next((part for part in PARTS if part in there), None)
        return next((part for part in PARTS if self.evaluation.get(part)), None)

    @property
    def of_part(self) -> Predictions | None:
        """What it said of that part's texts."""
        if self.predictions is None or self.part is None:
            return None
        return self.predictions.of_part(self.part)


def gather_figures(run: Run) -> RunFigures:
    """Read what a run has; what is damaged is told as a problem, not raised."""
    problems: list[str] = []
    details = run.details
    history: Sequence[Mapping[str, Any]] = ()
    try:
        history = _checked_history(run)
    except TrainingError as error:
        problems.append(str(error))
    predictions = None
    # Runs of version 0.1 have none.
    if (run.path / PREDICTIONS_FILE).exists():
        try:
            predictions = _checked_predictions(run)
        except TrainingError as error:
            problems.append(str(error))
    return RunFigures(
        name=run.name,
        record=run.record,
        config=run.config,
        labels=run.labels,
        task=details.get("task") or SINGLE,
        history=history,
        evaluation=details.get("evaluation") or {},
        cost=details.get("cost") or {},
        lineage=details.get("lineage") or {},
        layer_weights=run.layer_weights,
        predictions=predictions,
        problems=tuple(problems),
    )


def text_losses(predictions: Predictions) -> NDArray[np.float64]:
    """Cross-entropy of each text, (n,), in nats; for multilabel of each decision, (n, C)."""
    probabilities = predictions.probabilities.astype(np.float64)
    if predictions.labels.ndim == 2:
        own = np.where(predictions.labels > 0, probabilities, 1.0 - probabilities)
    else:
        own = probabilities[np.arange(len(probabilities)), predictions.labels]
    losses: NDArray[np.float64] = -np.log(np.clip(own, EPSILON, 1.0))
    return losses


def calibration_bins(predictions: Predictions, task: str) -> list[Bin]:
    """The bins that the calibration error is made of: Guo et al. (2017), section 4.

    A prediction is the most probable class, or for multilabel each label's yes or no.
    """
    predicted = decide(predictions.probabilities, task)
    probabilities = predictions.probabilities.astype(np.float64)
    if task == MULTILABEL:
        confidences = np.where(predicted > 0, probabilities, 1.0 - probabilities).ravel()
        is_right = (predicted == predictions.labels).ravel()
    else:
        confidences = probabilities.max(axis=1)
        is_right = predicted == predictions.labels
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    places = np.searchsorted(edges[1:-1], confidences, side="left")
    counts = np.bincount(places, minlength=NUM_BINS)
    sums = np.bincount(places, weights=confidences, minlength=NUM_BINS)
    rights = np.bincount(places, weights=is_right, minlength=NUM_BINS)
    return [
        Bin(
            low=float(edges[place]),
            high=float(edges[place + 1]),
            count=int(count),
            confidence=float(sums[place] / count) if count else None,
            accuracy=float(rights[place] / count) if count else None,
        )
        for place, count in enumerate(counts.tolist())
    ]


def _checked_history(run: Run) -> Sequence[Mapping[str, Any]]:
    history = run.history
    needed = {"epoch", "train_loss", "dev", "is_best", "seconds"}
    if not isinstance(history, list) or not all(
        isinstance(epoch, dict) and needed <= set(epoch) for epoch in history
    ):
        raise TrainingError(
            f"{run.path / HISTORY_FILE}: does not hold the figures of epochs; train again with"
            " `embedcache train`"
        )
    return history


def _checked_predictions(run: Run) -> Predictions:
    predictions = run.load_predictions()
    labels, probabilities = predictions.labels, predictions.probabilities
    wanted = (len(predictions), len(run.labels))
    if probabilities.shape != wanted or labels.shape not in (wanted, wanted[:1]):
        raise TrainingError(
            f"{run.path / PREDICTIONS_FILE}: holds predictions of shape {probabilities.shape}"
            f" where {wanted} are expected; train again with `embedcache train`"
        )
    return predictions
