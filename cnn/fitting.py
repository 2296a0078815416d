"""The training loop: one model, one training stream, one dev part."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import compiles_each_shape
from cnn.config import ResolvedConfig
from cnn.feed import BatchFeed, widen_batch
from cnn.metrics import Scores, compute_scores
from cnn.progress import EpochReport, OnEpoch, OnStep, StepReport
from cnn.spec import model_inputs
from embedcache.errors import DivergedError
from embedcache.stream.stream import Batch, FeatureStream


@dataclass(frozen=True, slots=True)
class FitParts:
    """What a model is fitted to.

    Attributes:
        train: Shuffled batches.
        dev: Batches in corpus order, at least one.
        dev_labels: Classes of the dev texts in that order, (n,) int32, or (n, C) uint8.
    """

    train: FeatureStream
    dev: FeatureStream
    dev_labels: NDArray[Any]


@dataclass(slots=True)
class EpochSums:
    """What the steps of an epoch have added up to so far: all of it goes into a checkpoint.

    Attributes:
        steps: Steps that are done.
        num_texts: Texts in them.
        loss: Sum of the texts' losses.
        accuracy: How many were right.
        seconds: Since the epoch began.
        step_s: Of these, in steps.
        wait_s: Of these, waiting for batches.
    """

    steps: int = 0
    num_texts: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch so far.

    Attributes:
        report: Its report.
        weights: The model's weights after it, as ``get_weights`` gives them.
        dev_probabilities: What it said of the dev texts, (n, C) float32.
    """

    report: EpochReport
    weights: list[NDArray[Any]]
    dev_probabilities: NDArray[np.float32]


@dataclass(slots=True)
class FitState:
    """How far the fitting of one model is, but for the variables of model and optimizer.

    Attributes:
        history: The reports of the epochs that are done.
        best: The best of them; None before the first.
        sums: Of the epoch that is going on.
    """

    history: list[EpochReport] = field(default_factory=list)
    best: Best | None = None
    sums: EpochSums = field(default_factory=EpochSums)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called while a model is fitted.

    Attributes:
        fold: Number of the fold, for the reports.
        on_epoch: After each epoch.
        on_step: After each step.
        keep: After each of both, between two steps, when everything that goes into a
            checkpoint fits together. Takes the state, and why: ``"step"``, ``"epoch"``, or
            ``"interrupt"`` where one of the others raised KeyboardInterrupt.
    """

    fold: int | None = None
    on_epoch: OnEpoch | None = None
    on_step: OnStep | None = None
    keep: Callable[[FitState, str], None] | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fitting ended with: its epochs' reports, not empty, and the best of them."""

    history: tuple[EpochReport, ...]
    best: Best


def fit_model(
    model: Any,
    parts: FitParts,
    config: ResolvedConfig,
    *,
    state: FitState | None = None,
    hooks: Hooks | None = None,
) -> Fitted:
    """Train until the dev accuracy has not grown for ``config.patience`` epochs.

    The best epoch is the one of the highest dev accuracy, of equal ones the one of the
    lowest dev loss, and then the first; the model ends with its weights.

    Args:
        model: Compiled; see `cnn.model`.
        parts: What it is fitted to.
        config: How long to train.
        state: Where to go on; the variables of the model and of its optimizer are then
            what they were there. Changed as the fitting goes on.
        hooks: What to call.

    Raises:
        DivergedError: if a loss is not a finite number.
    """
    state, hooks = state or FitState(), hooks or Hooks()
    while not _is_done(state, config):
        report, probabilities = _run_epoch(model, parts, config, state=state, hooks=hooks)
        state.history.append(report)
        state.sums = EpochSums()
        if report.is_best:
            state.best = Best(report, model.get_weights(), probabilities)
        _tell(hooks, state, hooks.on_epoch, report)
        _keep(hooks, state, "epoch")
    if state.best is None:
        raise ValueError("the configuration allows no epoch")
    model.set_weights(state.best.weights)
    return Fitted(tuple(state.history), state.best)


def rank_scores(scores: Scores) -> tuple[float, float]:
    """What the best epoch, and the best fold, has the most of."""
    return scores.accuracy, -scores.loss


def predict_stream(model: Any, stream: FeatureStream) -> NDArray[np.float32]:
    """The probabilities of a stream's texts in its own order: (n, C) float32.

    The stream must not be shuffled.
    """
    with BatchFeed(_epoch_batches(stream, 0)) as feed:
        return np.concatenate([predict_batch(model, batch) for batch in feed])


def predict_batch(model: Any, batch: Batch) -> NDArray[np.float32]:
    """The probabilities of a padded batch: (B, C) float32."""
    inputs = model_inputs(model, batch)
    probabilities: NDArray[np.float32] = np.asarray(model.predict_on_batch(inputs))
    return probabilities


def _is_done(state: FitState, config: ResolvedConfig) -> bool:
    epochs = len(state.history)
    if state.best is not None and epochs - state.best.report.epoch >= config.patience:
        return True
    return epochs >= config.epochs


def _run_epoch(
    model: Any, parts: FitParts, config: ResolvedConfig, *, state: FitState, hooks: Hooks
) -> tuple[EpochReport, NDArray[np.float32]]:
    """The next epoch, or what is left of it; its report, and what it says of the dev texts."""
    sums, best, number = state.sums, state.best, len(state.history)
    started = time.perf_counter() - sums.seconds
    _run_steps(model, parts.train, config, state=state, hooks=hooks)
    probabilities = predict_stream(model, parts.dev)
    scores = compute_scores(probabilities, parts.dev_labels)
    if not math.isfinite(scores.loss):
        raise _not_finite(scores.loss, f"the dev part after epoch {number + 1}", config)
    report = EpochReport(
        fold=hooks.fold,
        epoch=number + 1,
        epochs=config.epochs,
        steps=sums.steps,
        train_loss=sums.loss / sums.num_texts,
        train_accuracy=sums.accuracy / sums.num_texts,
        dev=scores,
        is_best=best is None or rank_scores(scores) > rank_scores(best.report.dev),
        seconds=time.perf_counter() - started,
        step_s=sums.step_s,
        wait_s=sums.wait_s,
    )
    return report, probabilities


def _run_steps(
    model: Any, train: FeatureStream, config: ResolvedConfig, *, state: FitState, hooks: Hooks
) -> None:
    """The steps of an epoch from ``state.sums.steps`` on."""
    # Late: it brings Keras.
    from cnn.model import train_step

    sums, number = state.sums, len(state.history)
    num_steps = train.count_batches(number)
    started, waited_s = time.perf_counter() - sums.seconds, sums.wait_s
    with BatchFeed(_epoch_batches(train, number, first_step=sums.steps)) as feed:
        for batch in feed:
            step_started = time.perf_counter()
            loss, accuracy = train_step(model, model_inputs(model, batch), batch.labels)
            if not math.isfinite(loss):
                place = f"step {sums.steps + 1} of {num_steps} of epoch {number + 1}"
                raise _not_finite(loss, place, config)
            sums.steps += 1
            sums.num_texts += len(batch)
            sums.loss += loss * len(batch)
            sums.accuracy += accuracy * len(batch)
            sums.wait_s = waited_s + feed.waited_s
            now = time.perf_counter()
            sums.step_s += now - step_started
            sums.seconds = now - started
            report = StepReport(
                fold=hooks.fold,
                epoch=number + 1,
                epochs=config.epochs,
                step=sums.steps,
                steps=num_steps,
                loss=sums.loss / sums.num_texts,
                accuracy=sums.accuracy / sums.num_texts,
                seconds=sums.seconds,
            )
            _tell(hooks, state, hooks.on_step, report)
            _keep(hooks, state, "step")
        # The last wait is the one in which the feed finds that there is no more.
        sums.wait_s = waited_s + feed.waited_s


def _tell(hooks: Hooks, state: FitState, call: Callable[[Any], None] | None, report: Any) -> None:
    if call is None:
        return
    try:
        call(report)
    except KeyboardInterrupt:
        _keep(hooks, state, "interrupt")
        raise


def _keep(hooks: Hooks, state: FitState, why: str) -> None:
    if hooks.keep is not None:
        hooks.keep(state, why)


def _epoch_batches(stream: FeatureStream, number: int, *, first_step: int = 0) -> Iterator[Batch]:
    batches = stream.epoch(number, first_step=first_step)
    return map(widen_batch, batches) if compiles_each_shape() else batches


def _not_finite(loss: float, place: str, config: ResolvedConfig) -> DivergedError:
    rate = config.learning_rate
    return DivergedError(
        f"the loss became {loss} at {place}; train with a learning rate below {rate:g}"
        f" (--lr {min(rate / 10, 1e-3):g}), and if that does not help look for extreme values among"
        " the features with `embedcache get TEXT`"
    )
