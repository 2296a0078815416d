"""The training loop: one model, one training stream, one dev stream."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import compiles_each_shape
from cnn.config import ResolvedConfig
from cnn.feed import BatchFeed, widen_batch
from cnn.metrics import Scores, compute_scores
from embedcache.errors import TrainingError
from embedcache.stream.stream import Batch, FeatureStream


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave.

    Attributes:
        fold: Number of the fold, from 0 on; None without cross-validation.
        epoch: Number of the epoch, from 1 on.
        epochs: How many there will be at most.
        steps: Batches trained on.
        train_loss: Mean cross-entropy of the steps, with dropout, weighted by their size.
        dev: Scores on the dev part after the epoch.
        is_best: Whether no epoch before it was as good.
        seconds: Wall-clock time, dev part included.
        step_s: Seconds of it in training steps.
        wait_s: Seconds of it that the loop waited for training batches.
    """

    fold: int | None
    epoch: int
    epochs: int
    steps: int
    train_loss: float
    dev: Scores
    is_best: bool
    seconds: float
    step_s: float
    wait_s: float

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a training ended with.

    Attributes:
        weights: The model's weights after the best epoch, as ``get_weights`` gives them.
        history: Each epoch's report; not empty.
        best: The report of the best epoch.
    """

    weights: list[NDArray[Any]]
    history: tuple[EpochReport, ...]
    best: EpochReport


def fit_model(
    model: Any,
    train: FeatureStream,
    dev: FeatureStream,
    config: ResolvedConfig,
    *,
    fold: int | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> Fitted:
    """Train until the dev accuracy has not grown for ``config.patience`` epochs.

    The best epoch is the one of the highest dev accuracy, of equal ones the one of the
    lowest dev loss, and then the first; the model ends with its weights.

    Args:
        model: Compiled; see `cnn.model`.
        train: Shuffled batches.
        dev: Batches in corpus order, at least one.
        config: How long to train.
        fold: Number of the fold, for the reports.
        on_epoch: Called after each epoch.

    Raises:
        TrainingError: if a loss is not a finite number.
    """
    history: list[EpochReport] = []
    best: EpochReport | None = None
    weights: list[NDArray[Any]] = []
    for number in range(config.epochs):
        report = _run_epoch(model, train, dev, config, number=number, fold=fold, best=best)
        history.append(report)
        if best is None or report.is_best:
            best, weights = report, model.get_weights()
        if on_epoch is not None:
            on_epoch(report)
        if report.epoch - best.epoch >= config.patience:
            break
    model.set_weights(weights)
    return Fitted(weights, tuple(history), best or history[-1])


def rank_scores(scores: Scores) -> tuple[float, float]:
    """What the best epoch, and the best fold, has the most of."""
    return scores.accuracy, -scores.loss


def predict_stream(model: Any, stream: FeatureStream) -> NDArray[np.float32]:
    """The probabilities of a stream's texts in its own order: (n, C) float32.

    The stream must not be shuffled.
    """
    with BatchFeed(_epoch_batches(stream, 0)) as feed:
        return np.concatenate([predict_batch(model, batch.values, batch.lengths) for batch in feed])


def predict_batch(
    model: Any, values: NDArray[Any], lengths: NDArray[np.int32]
) -> NDArray[np.float32]:
    """The probabilities of a padded batch: (B, L, dim) and (B,) → (B, C) float32."""
    probabilities: NDArray[np.float32] = np.asarray(model.predict_on_batch([values, lengths]))
    return probabilities


def _run_epoch(
    model: Any,
    train: FeatureStream,
    dev: FeatureStream,
    config: ResolvedConfig,
    *,
    number: int,
    fold: int | None,
    best: EpochReport | None,
) -> EpochReport:
    started = time.perf_counter()
    losses: list[float] = []
    sizes: list[int] = []
    step_s = 0.0
    with BatchFeed(_epoch_batches(train, number)) as feed:
        for batch in feed:
            step_started = time.perf_counter()
            losses.append(_train_step(model, batch))
            sizes.append(len(batch))
            step_s += time.perf_counter() - step_started
            if not math.isfinite(losses[-1]):
                place = f"step {len(losses)} of {train.num_batches} of epoch {number + 1}"
                raise _not_finite(losses[-1], place, config)
        wait_s = feed.waited_s
    scores = compute_scores(predict_stream(model, dev), dev.labels)
    if not math.isfinite(scores.loss):
        raise _not_finite(scores.loss, f"the dev part after epoch {number + 1}", config)
    return EpochReport(
        fold=fold,
        epoch=number + 1,
        epochs=config.epochs,
        steps=len(losses),
        train_loss=float(np.average(losses, weights=sizes)),
        dev=scores,
        is_best=best is None or rank_scores(scores) > rank_scores(best.dev),
        seconds=time.perf_counter() - started,
        step_s=step_s,
        wait_s=wait_s,
    )


def _train_step(model: Any, batch: Batch) -> float:
    """One step; the loss of this batch."""
    # Up to Keras 3.12 at least the loss is otherwise a running mean. Costs 0.16 ms.
    model.reset_metrics()
    loss = model.train_on_batch([batch.values, batch.lengths], batch.labels)
    return float(np.ravel(loss)[0])


def _epoch_batches(stream: FeatureStream, number: int) -> Iterator[Batch]:
    batches = stream.epoch(number)
    return map(widen_batch, batches) if compiles_each_shape() else batches


def _not_finite(loss: float, place: str, config: ResolvedConfig) -> TrainingError:
    rate = config.learning_rate
    return TrainingError(
        f"the loss became {loss} at {place}; train with a learning rate below {rate:g}"
        f" (--lr {min(rate / 10, 1e-3):g}), and if that does not help look for extreme values among"
        " the features with `embedcache get TEXT`"
    )
