"""A training that is done → a run: its figures, its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn.cost import RunCost, cost_ledger
from cnn.evaluation import Evaluation, evaluate
from cnn.labelled import Parts
from cnn.lineage import platform_record, trace_lineage
from cnn.metrics import mean_scores
from cnn.planning import Plan
from cnn.predictions import NO_FOLD, PREDICTIONS_FILE, Predictions
from cnn.progress import EpochReport
from cnn.run import TABLE_FILE, Run
from cnn.saving import publish_run
from cnn.sessions import Outcome, Session
from cnn.spec import MULTILABEL

_DEV, _TEST = "dev", "test"


def keep_run(plan: Plan, session: Session) -> Run:
    """Publish the run of the training with the best dev scores."""
    from cnn.model import build_model, learned_mix

    best = session.outcomes[session.best_fold]
    table = plan.make_table(plan.cuts[session.best_fold].train)
    model = build_model(plan.config, plan.spec(table))
    model.set_weights(best.best.weights)
    predictions = collect_predictions(plan, session.outcomes)
    evaluations = _evaluate(plan, predictions)
    record = _make_record(plan, session, evaluations)
    details = _make_details(plan, session, record, evaluations)
    if plan.stream.num_layers > 1:
        details["layer_weights"] = learned_mix(model, plan.stream.layer_names)
    files: dict[str, Callable[[Path], object]] = {
        PREDICTIONS_FILE: lambda path: path.write_bytes(predictions.to_bytes())
    }
    if table is not None:
        details["token_table"] = {"file": TABLE_FILE, "digest": table.digest}
        files[TABLE_FILE] = table.save
    history = [report.to_record() for report in _history(session.outcomes)]
    return publish_run(
        plan.store, model, record=record, details=details, history=history, files=files
    )


def collect_predictions(plan: Plan, outcomes: Sequence[Outcome]) -> Predictions:
    """What the kept epoch of each training said of its dev and its test texts."""
    blocks = []
    for fold, (parts, outcome) in enumerate(zip(plan.cuts, outcomes, strict=True)):
        number = NO_FOLD if plan.config.folds is None else fold
        said = {_DEV: (parts.dev, outcome.best.dev_probabilities)}
        if parts.test is not None and outcome.test_probabilities is not None:
            said[_TEST] = (parts.test, outcome.test_probabilities)
        for part, (rows, probabilities) in said.items():
            blocks.append(
                (
                    np.full(len(rows), part, "<U4"),
                    np.full(len(rows), number, np.int32),
                    rows,
                    plan.dataset.keys[rows],
                    plan.labelled.targets[rows],
                    probabilities,
                )
            )
    return Predictions(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _evaluate(plan: Plan, predictions: Predictions) -> dict[str, Evaluation | None]:
    """Of both parts, the texts of all folds together; None where there are none."""
    found: dict[str, Evaluation | None] = {}
    for part in (_DEV, _TEST):
        chosen = predictions.of_part(part)
        found[part] = None
        if len(chosen):
            found[part] = evaluate(
                chosen.probabilities,
                chosen.labels,
                plan.dataset.label_names,
                task=plan.labelled.task,
                seed=plan.config.seed,
            )
    return found


def _make_record(
    plan: Plan, session: Session, evaluations: Mapping[str, Evaluation | None]
) -> dict[str, Any]:
    """What ``train --json`` prints."""
    outcomes, best = session.outcomes, session.outcomes[session.best_fold]
    history = _history(outcomes)
    seconds = session.seconds
    return {
        "run": session.about["run"],
        "dataset": plan.dataset.name,
        "version": plan.dataset.version,
        "view": plan.stream.view,
        "seed": plan.config.seed,
        "epochs": len(best.history),
        "best_epoch": best.best.report.epoch,
        "dev": _scores_record(outcomes, _DEV, evaluations[_DEV]),
        "test": _scores_record(outcomes, _TEST, evaluations[_TEST]),
        "folds": None if plan.config.folds is None else _fold_records(outcomes),
        "seconds": seconds,
        "seconds_per_epoch": sum(report.seconds for report in history) / len(history),
        "input_overhead": sum(report.wait_s for report in history)
        / sum(report.step_s for report in history),
        "leaks": [leak.to_record() for leak in plan.leaks],
    }


def _scores_record(
    outcomes: Sequence[Outcome], part: str, evaluation: Evaluation | None
) -> dict[str, Any] | None:
    """Scores, means over the folds, and what is measured on the texts of all folds together."""
    if evaluation is None:
        return None
    scores = [
        outcome.best.report.dev if part == _DEV else outcome.test
        for outcome in outcomes
        if part == _DEV or outcome.test is not None
    ]
    record = {
        **mean_scores([score for score in scores if score is not None]).to_record(),
        "accuracy_interval": list(evaluation.accuracy_interval),
        "auc": evaluation.auc,
        "ece": evaluation.ece,
    }
    if evaluation.task == MULTILABEL:
        record["micro_f1"] = evaluation.micro_f1
    return record


def _make_details(
    plan: Plan,
    session: Session,
    record: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation | None],
) -> dict[str, Any]:
    """The rest of ``run.json``."""
    about, history = session.about, _history(session.outcomes)
    cost = RunCost(
        seconds=record["seconds"],
        steps=sum(report.steps for report in history),
        texts=sum(map(_count_texts, plan.cuts, session.outcomes)),
    )
    times = {"started_at": about["started_at"], "finished_at": time.time()}
    module = {"run": about["run"], **times, "code": about["code"]}
    store, version = plan.store, plan.dataset.version
    return {
        "config": plan.config.to_record(),
        "seed": plan.config.seed,
        "task": plan.labelled.task,
        "dataset": {"name": plan.dataset.name, "version": version},
        "view": plan.stream.view,
        "labels": list(plan.dataset.label_names),
        "tags": about["tags"],
        "metrics": {part: record[part] for part in (_DEV, _TEST, "folds")},
        "evaluation": {
            part: None if found is None else found.to_record()
            for part, found in evaluations.items()
        },
        "leaks": record["leaks"],
        "cost": cost_ledger(store, version=version, view=plan.stream.view, run=cost),
        "lineage": trace_lineage(store, plan.dataset, plan.stream.view, run=module),
        "code": about["code"],
        "versions": about["versions"],
        "platform": platform_record(),
        **times,
    }


def _count_texts(parts: Parts, outcome: Outcome) -> int:
    """Texts that went through the model: see `RunCost`."""
    an_epoch = len(parts.train) + len(parts.dev)
    return len(outcome.history) * an_epoch + (0 if parts.test is None else len(parts.test))


def _fold_records(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [
        {
            "fold": fold,
            "epochs": len(outcome.history),
            "best_epoch": outcome.best.report.epoch,
            "dev": outcome.best.report.dev.to_record(),
            "test": None if outcome.test is None else outcome.test.to_record(),
        }
        for fold, outcome in enumerate(outcomes)
    ]


def _history(outcomes: Sequence[Outcome]) -> list[EpochReport]:
    return [report for outcome in outcomes for report in outcome.history]
