"""`train`: a dataset's features → a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import embedcache
from cnn.backend import backend_versions
from cnn.checkpoints import CheckpointFile, find_unfinished, load_snapshot
from cnn.config import TrainConfig
from cnn.fitting import FitParts, Hooks, fit_model, predict_stream
from cnn.fresh import FreshModels, without_tracing_warnings
from cnn.keeping import keep_run
from cnn.labelled import attach_labels
from cnn.lineage import code_version
from cnn.metrics import compute_scores
from cnn.planning import Plan, make_plan
from cnn.progress import OnEpoch, OnStep
from cnn.resuming import (
    Request,
    check_code,
    check_versions,
    labels_record,
    resumed_request,
)
from cnn.run import Run
from cnn.saving import check_run_name, new_run_name
from cnn.sessions import Outcome, Session
from embedcache.errors import DivergedError
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore

CHECKPOINT_EVERY_S = 30.0
"""So much work a kill costs at most. Writing kim's checkpoint takes 20 ms on features 128 wide
(2.5 MB) and 50 ms on 768 (15 MB)."""


@dataclass(frozen=True, slots=True)
class _Callbacks:
    on_epoch: OnEpoch | None
    on_step: OnStep | None


def train(
    store: FeatureStore,
    dataset: str | Dataset | None = None,
    config: TrainConfig | None = None,
    *,
    view: str | None = None,
    labels: Sequence[str] | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    resume: str | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    checkpoint_every_s: float | None = CHECKPOINT_EVERY_S,
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

    While it goes on, a checkpoint in the store keeps what a kill would lose: ``resume`` goes
    on from there to the very run that it would have been. It is gone when the run is kept, or
    when a loss was no number.

    Args:
        store: An open store.
        dataset: Name, ``NAME@VERSION``, or a loaded dataset; None is the newest.
        config: What to train and how; None: `TrainConfig`'s defaults.
        view: Fingerprint or its beginning; None: the view the dataset was last built under.
        labels: One label a document, in corpus order, instead of the dataset's own.
        on_epoch: Called after each epoch; what it raises ends the training, and no run is
            kept.
        on_step: Called after each step; the same. After a KeyboardInterrupt that either of
            them raises, not a step has to be done again.
        resume: Go on with the unfinished training whose name is this or begins so; ``last``
            is the newest. What else is given must be what it was.
        name: The run's name; None: made of the time, the dataset and the preset.
        tags: What the caller wants to find with the run: ``run.json`` keeps it.
        checkpoint_every_s: Seconds between two checkpoints within an epoch; there is one after
            each epoch too, unless it were more than a twentieth of the work. None: there are
            none, and nothing to resume.

    Raises:
        UnknownNameError: if there is no such dataset, view or unfinished training.
        KeyNotFoundError: if the view lacks some of the texts.
        TrainingError: if the labels, the splits or the configuration do not fit the data, or
            not what is resumed; `DivergedError` if a loss is not a finite number. The message
            says what to do.
        StoreError: if the run cannot be written; `StoreReadOnlyError` before it starts.
    """
    started = time.perf_counter()
    request = Request(dataset, config, view, labels, name, tags)
    callbacks = _Callbacks(on_epoch, on_step)
    every_s = CHECKPOINT_EVERY_S if checkpoint_every_s is None else checkpoint_every_s
    with ExitStack() as stack:
        if resume is not None:
            run = find_unfinished(store, resume).run
            file = stack.enter_context(CheckpointFile(store, run, every_s=every_s))
            plan, session = _take_up(store, run, request)
            session.file = file
        else:
            plan, session = _begin(store, request)
            if checkpoint_every_s is not None:
                file = CheckpointFile(store, session.about["run"], every_s=every_s)
                session.file = stack.enter_context(file)
        session.started = started
        stack.enter_context(without_tracing_warnings())
        return _train_all(plan, session, callbacks)


def _begin(store: FeatureStore, request: Request) -> tuple[Plan, Session]:
    """A training from its first step."""
    dataset = request.load_dataset(store)
    given, arrays = labels_record(request.labels)
    if request.labels is not None:
        dataset = attach_labels(dataset, request.labels)
    config = request.config or TrainConfig()
    plan = make_plan(store, dataset, config, view=request.view)
    name = request.name
    if name is None:
        name = new_run_name(dataset.name, config.preset)
    check_run_name(store, name)
    about = {
        "run": name,
        "started_at": time.time(),
        "dataset": {"name": dataset.name, "version": dataset.version, "asked": request.asked},
        "view": plan.stream.view,
        "config": asdict(config),
        "labels": given,
        "shuffle": "auto",
        "tags": dict(request.tags or {}),
        "code": code_version(),
    }
    return plan, Session(about, given_labels=arrays)


def _take_up(store: FeatureStore, run: str, request: Request) -> tuple[Plan, Session]:
    """An unfinished training where its checkpoint is."""
    snapshot = load_snapshot(store, run)
    session = Session.from_snapshot(snapshot)
    request = resumed_request(store, snapshot, request)
    dataset = request.load_dataset(store)
    if request.labels is not None:
        dataset = attach_labels(dataset, request.labels)
    check_code(run, snapshot.about["code"], code_version())
    plan = make_plan(store, dataset, request.config or TrainConfig(), view=request.view)
    return plan, session


def _train_all(plan: Plan, session: Session, callbacks: _Callbacks) -> Run:
    versions = {"embedcache": embedcache.__version__, **backend_versions()}
    if not session.is_new:
        check_versions(session.about["run"], session.about["versions"], versions)
    session.about = {**session.about, "versions": versions}
    file = session.file
    if file is not None and session.is_new:
        file.write(session.to_snapshot())
    models = FreshModels(plan.config)
    try:
        for fold in range(len(session.outcomes), len(plan.cuts)):
            session.add_outcome(_train_cut(plan, session, fold, callbacks, models=models))
            session.keep_outcomes()
    except DivergedError:
        if file is not None:
            file.discard()
        raise
    run = keep_run(plan, session)
    if file is not None:
        file.discard()
    return run


def _train_cut(
    plan: Plan, session: Session, fold: int, callbacks: _Callbacks, *, models: FreshModels
) -> Outcome:
    """Fit a new model to one cut and score it on the cut's test part."""
    parts = plan.cuts[fold]
    table = plan.make_table(parts.train)
    model = models.make(plan.spec(table), plan.class_weights(parts.train))
    train = plan.open_stream(parts.train, shuffle=session.about["shuffle"], table=table)
    # What memory was free has decided it: the next session must not decide otherwise.
    session.about = {**session.about, "shuffle": train.config.shuffle}
    dev = plan.open_stream(parts.dev, table=table)
    fitted = fit_model(
        model,
        FitParts(train, dev, plan.labelled.targets[parts.dev]),
        plan.config,
        state=session.restore(model, train),
        hooks=Hooks(
            fold=None if plan.config.folds is None else fold,
            on_epoch=callbacks.on_epoch,
            on_step=callbacks.on_step,
            keep=lambda state, why: session.keep(model, train, state, why),
        ),
    )
    if parts.test is None:
        return Outcome(fitted.history, fitted.best, None, None)
    probabilities = predict_stream(model, plan.open_stream(parts.test, table=table))
    scores = compute_scores(probabilities, plan.labelled.targets[parts.test])
    return Outcome(fitted.history, fitted.best, probabilities, scores)
