"""The parts of a page that put runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnn.report.figures import RunFigures
from cnn.report.markup import Child, Markup, element, fragment
from cnn.report.shown import NOTHING, field_value, number, percent, seconds, table


def figures_table(runs: Sequence[RunFigures], anchors: Mapping[str, str]) -> Markup:
    """The figures of runs, a row each.

    Args:
        runs: The runs.
        anchors: Of the runs that the page tells more of: the id of their section.
    """
    rows = [(_linked(run.name, anchors), *_scores(run), *_effort(run)) for run in runs]
    return table(
        "Figures. The interval is the 95 % bootstrap interval of the test accuracy; what comes"
        " after it is of test, or of dev where there is no test",
        (
            "run", "dataset", "dev accuracy", "test accuracy", "interval", "macro-F1", "loss",
            "AUC", "calibration error", "best epoch", "time", "waited for input",
        ),
        rows,
    )  # fmt: skip


def differences_table(runs: Sequence[RunFigures], anchors: Mapping[str, str]) -> Markup | None:
    """What the configurations, datasets and views of runs differ in; None if in nothing."""
    if len(runs) < 2:
        return None
    fields = [_fields(run) for run in runs]
    names = list(dict.fromkeys(name for each in fields for name in each))
    differing = [
        name for name in names if len({str(each.get(name, NOTHING)) for each in fields}) > 1
    ]
    if not differing:
        return fragment(
            element("h3", "What differs"),
            element("p", "Nothing: dataset, view, seed and every option are the same."),
        )
    rows = [
        (
            _linked(run.name, anchors),
            *(field_value(name, each[name]) if name in each else NOTHING for name in differing),
        )
        for run, each in zip(runs, fields, strict=True)
    ]
    same = len(names) - len(differing)
    header = ("run", *(name.replace("_", " ") for name in differing))
    return fragment(
        element("h3", "What differs"),
        table(f"The options that differ; {same} others are the same", header, rows),
    )


def _linked(name: str, anchors: Mapping[str, str]) -> Markup:
    if name in anchors:
        return element("a", name, href=f"#{anchors[name]}")
    return fragment(name)


def _scores(run: RunFigures) -> tuple[Child, ...]:
    dev, test = run.record.get("dev") or {}, run.record.get("test") or {}
    tested = run.evaluation.get("test") or {}
    measured = tested or run.evaluation.get("dev") or {}
    interval = tested.get("accuracy_interval")
    shown = NOTHING if not interval else " to ".join(map(percent, interval))
    best = test or dev
    return (
        str(run.record.get("dataset", NOTHING)),
        percent(dev.get("accuracy")),
        percent(test.get("accuracy")),
        shown,
        number(best.get("macro_f1")),
        number(best.get("loss")),
        number(measured.get("auc")),
        percent(measured.get("ece")),
    )


def _effort(run: RunFigures) -> tuple[Child, ...]:
    record = run.record
    spent = record.get("seconds")
    return (
        f"{record.get('best_epoch', NOTHING)} of {record.get('epochs', NOTHING)}",
        NOTHING if spent is None else seconds(spent),
        percent(record.get("input_overhead")),
    )


def _fields(run: RunFigures) -> dict[str, Any]:
    own = {name: run.record.get(name) for name in ("dataset", "version", "view")}
    # Fingerprints are told apart by their beginnings.
    return {key: str(value)[:16] for key, value in own.items()} | dict(run.config)
