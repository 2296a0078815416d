"""`train`: a dataset's features → a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embedcache
from cnn.backend import backend_versions
from cnn.config import ResolvedConfig, TrainConfig
from cnn.fitting import EpochReport, Fitted, fit_model, predict_stream, rank_scores
from cnn.labelled import (
    Parts,
    attach_labels,
    check_folds,
    choose_all,
    choose_parts,
    parts_of_fold,
)
from cnn.metrics import Scores, compute_scores, mean_scores
from cnn.run import Run
from cnn.saving import check_writable, new_run_name, publish_run
from cnn.splits import stratified_folds
from embedcache.errors import TrainingError
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore
from embedcache.stream.stream import FeatureStream


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One training: without folds the only one."""

    fitted: Fitted
    test: Scores | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is trained on what: all that is needed before Keras is loaded.

    Attributes:
        store: The store.
        dataset: With one label a document.
        config: With a batch size that the data allows.
        cuts: The parts of each training: one, or one a fold.
        stream: All documents of the parts; says the view, dim and dtype.
    """

    store: FeatureStore
    dataset: Dataset
    config: ResolvedConfig
    cuts: Sequence[Parts]
    stream: FeatureStream


def train(
    store: FeatureStore,
    dataset: str | Dataset | None = None,
    config: TrainConfig | None = None,
    *,
    view: str | None = None,
    labels: Sequence[str] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> Run:
    """Train a classifier on the features that a store holds, and keep it as a run.

    Train is the split ``train``, or all documents if there are no splits; dev the split
    ``dev``, ``val``, ``valid`` or ``validation``, or else a stratified share of train; test
    the split ``test``, if there is one. The epoch with the best dev accuracy is kept.

    With ``config.folds`` the dataset's splits are not looked at: each fold of all
    documents is once the test, and dev a share of the rest. The run's dev and test scores
    are the means over the folds; its model, ``epochs`` and ``best_epoch`` are those of the
    fold with the best dev scores, so that test scores choose nothing.

    The same seed, data, versions and machine give the same run: every draw comes from
    ``config.seed``, and no global seed is read or set. On a GPU some of the backend's own
    kernels add in no fixed order; on TensorFlow
    ``tf.config.experimental.enable_op_determinism()`` before training stops that.

    Args:
        store: An open store.
        dataset: Name, ``NAME@VERSION``, or a loaded dataset; None is the newest.
        config: What to train and how; None: `TrainConfig`'s defaults.
        view: Fingerprint or its beginning; None: the view the dataset was last built under.
        labels: One label a document, in corpus order, instead of the dataset's own.
        on_epoch: Called after each epoch; what it raises ends the training, and no run is
            kept.

    Raises:
        UnknownNameError: if there is no such dataset or view.
        KeyNotFoundError: if the view lacks some of the texts.
        TrainingError: if the labels, the splits or the configuration do not fit the data,
            or a loss is not a finite number; the message says what to do.
        StoreError: if the run cannot be written; `StoreReadOnlyError` before it starts.
    """
    started = time.perf_counter()
    loaded = dataset if isinstance(dataset, Dataset) else store.load_dataset(dataset)
    if labels is not None:
        loaded = attach_labels(loaded, labels)
    plan = _make_plan(store, loaded, config or TrainConfig(), view)
    if plan.config.folds is None:
        outcomes = [_train_cut(plan, plan.cuts[0], fold=None, on_epoch=on_epoch)]
    else:
        outcomes = [
            _train_cut(plan, cut, fold=fold, on_epoch=on_epoch)
            for fold, cut in enumerate(plan.cuts)
        ]
    return _keep(plan, outcomes, seconds=time.perf_counter() - started)


def _make_plan(
    store: FeatureStore, dataset: Dataset, config: TrainConfig, view: str | None
) -> _Plan:
    """Check everything that can be checked before the first step."""
    resolved = config.resolved()
    if resolved.folds is None:
        labelled, parts = choose_parts(dataset, resolved)
        cuts = [parts]
    else:
        labelled = choose_all(dataset)
        cuts = _cut_folds(labelled, resolved, resolved.folds)
    num_train = min(len(cut.train) for cut in cuts)
    if config.batch_size is not None and config.batch_size > num_train:
        raise TrainingError(
            f"batch size {config.batch_size} is larger than the {num_train} training documents"
            f" of dataset {dataset.name!r}; give a smaller one (--batch-size {min(num_train, 32)})"
        )
    resolved = replace(resolved, batch_size=min(resolved.batch_size, num_train))
    used = np.unique(np.concatenate([rows for cut in cuts for rows in cut.all_parts()]))
    stream = FeatureStream(store, labelled, view=view, rows=used, shuffle=False)
    check_writable(store)
    return _Plan(store, labelled, resolved, cuts, stream)


def _cut_folds(dataset: Dataset, config: ResolvedConfig, num_folds: int) -> list[Parts]:
    check_folds(dataset, num_folds)
    codes = dataset.first_labels(dataset.rows_of_split(None))
    folds = stratified_folds(codes, num_folds, seed=config.seed)
    return [parts_of_fold(dataset, folds, number, config) for number in range(num_folds)]


def _train_cut(
    plan: _Plan,
    parts: Parts,
    *,
    fold: int | None,
    on_epoch: Callable[[EpochReport], None] | None,
) -> _Outcome:
    """Fit a new model to one cut and score it on the cut's test part."""
    from cnn.model import compile_model

    model = _build(plan)
    compile_model(model, plan.config)
    fitted = fit_model(
        model,
        _open_stream(plan, parts.train, shuffle=True),
        _open_stream(plan, parts.dev),
        plan.config,
        fold=fold,
        on_epoch=on_epoch,
    )
    if parts.test is None:
        return _Outcome(fitted, None)
    test = _open_stream(plan, parts.test)
    return _Outcome(fitted, compute_scores(predict_stream(model, test), test.labels))


def _build(plan: _Plan) -> Any:
    """An untrained model for the plan's data."""
    # Late: it brings Keras, and what is wrong with the data should show before.
    from cnn.model import build_model

    stream = plan.stream
    num_classes = len(plan.dataset.label_names)
    return build_model(
        plan.config, stream.dim, num_classes, stream.dtype, num_layers=stream.num_layers
    )


def _open_stream(plan: _Plan, rows: NDArray[np.int64], *, shuffle: bool = False) -> FeatureStream:
    return FeatureStream(
        plan.store,
        plan.dataset,
        view=plan.stream.view,
        rows=rows,
        batch_size=plan.config.batch_size,
        shuffle=shuffle,
        seed=plan.config.seed,
    )


def _keep(plan: _Plan, outcomes: Sequence[_Outcome], *, seconds: float) -> Run:
    """Publish the run of the outcome with the best dev scores."""
    best = max(outcomes, key=lambda outcome: rank_scores(outcome.fitted.best.dev))
    model = _build(plan)
    model.set_weights(best.fitted.weights)
    history = [report for outcome in outcomes for report in outcome.fitted.history]
    record = _make_record(plan, outcomes, best, history, seconds=seconds)
    details = {
        "config": plan.config.to_record(),
        "seed": plan.config.seed,
        "dataset": {"name": plan.dataset.name, "version": plan.dataset.version},
        "view": plan.stream.view,
        "labels": list(plan.dataset.label_names),
        "metrics": {part: record[part] for part in ("dev", "test", "folds")},
        "versions": {"embedcache": embedcache.__version__, **backend_versions()},
    }
    if plan.stream.num_layers > 1:
        from cnn.model import learned_mix

        details["layer_weights"] = learned_mix(model, plan.stream.layer_names)
    return publish_run(
        plan.store,
        model,
        record=record,
        details=details,
        history=[report.to_record() for report in history],
    )


def _make_record(
    plan: _Plan,
    outcomes: Sequence[_Outcome],
    best: _Outcome,
    history: Sequence[EpochReport],
    *,
    seconds: float,
) -> dict[str, Any]:
    """What ``train --json`` prints."""
    dev = mean_scores([outcome.fitted.best.dev for outcome in outcomes])
    tests = [outcome.test for outcome in outcomes if outcome.test is not None]
    step_s = sum(report.step_s for report in history)
    return {
        "run": new_run_name(plan.dataset.name, plan.config.preset),
        "dataset": plan.dataset.name,
        "version": plan.dataset.version,
        "view": plan.stream.view,
        "seed": plan.config.seed,
        "epochs": len(best.fitted.history),
        "best_epoch": best.fitted.best.epoch,
        "dev": dev.to_record(),
        "test": mean_scores(tests).to_record() if tests else None,
        "folds": None if plan.config.folds is None else _fold_records(outcomes),
        "seconds": seconds,
        "seconds_per_epoch": sum(report.seconds for report in history) / len(history),
        "input_overhead": sum(report.wait_s for report in history) / step_s,
    }


def _fold_records(outcomes: Sequence[_Outcome]) -> list[dict[str, Any]]:
    return [
        {
            "fold": fold,
            "epochs": len(outcome.fitted.history),
            "best_epoch": outcome.fitted.best.epoch,
            "dev": outcome.fitted.best.dev.to_record(),
            "test": None if outcome.test is None else outcome.test.to_record(),
        }
        for fold, outcome in enumerate(outcomes)
    ]
