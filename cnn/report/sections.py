"""The parts of a page that tell of one run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cnn.report.charts import Line, calibration_chart, line_chart
from cnn.report.figures import RunFigures, calibration_bins
from cnn.report.markup import Markup, element, fragment
from cnn.report.shown import (
    NOTHING,
    details,
    num_bytes,
    number,
    percent,
    record_table,
    scrolling,
    seconds,
    table,
)
from cnn.spec import MULTILABEL

_MAX_CLASSES = 30
"""Of a confusion matrix that is shown whole; of larger ones the pairs most often confused."""

_MAX_PAIRS = 40
_MAX_EPOCH_ROWS = 300
_SHADES = (0.0, 0.1, 0.3, 0.6, 0.85)


def curves_section(figures: RunFigures, name: str) -> Markup | None:
    """Loss and accuracy of train and dev over the epochs, of every fold."""
    if not figures.history:
        return None
    charts = [
        _curves(figures, f"{name}-loss", "Loss", "train_loss", "loss"),
        _curves(figures, f"{name}-accuracy", "Accuracy", "train_accuracy", "accuracy"),
    ]
    return fragment(
        element("h3", "Learning curves"),
        element("div", charts, class_="charts"),
        element(
            "p",
            "Train figures are measured while training, with dropout, each text before its own"
            " step. The dot is the epoch that was kept.",
            class_="soft",
        ),
        details("The numbers of every epoch", _epoch_table(figures.history)),
    )


def scores_section(figures: RunFigures) -> Markup | None:
    """The confusion matrix, and precision, recall and F1 of every class."""
    evaluation = figures.evaluation.get(figures.part or "")
    if not evaluation:
        return None
    confusion = evaluation.get("confusion") or []
    labels = [str(row["label"]) for row in evaluation.get("per_class", [])]
    parts: list[Markup] = []
    if figures.task != MULTILABEL and len(confusion) == len(labels) > 0:
        parts = [element("h3", "Confusion matrix"), _confusion(labels, confusion, figures.part)]
    return fragment(
        parts,
        element("h3", "Each label" if figures.task == MULTILABEL else "Each class"),
        _class_table(figures, evaluation),
    )


def calibration_section(figures: RunFigures, name: str) -> Markup | None:
    """How often predictions of each confidence were right."""
    predictions = figures.of_part
    if predictions is None or len(predictions) == 0:
        return None
    bins = calibration_bins(predictions, figures.task)
    rows = [
        (
            f"{100 * each.low:.0f} to {100 * each.high:.0f} %",
            each.count,
            percent(each.confidence),
            percent(each.accuracy),
        )
        for each in bins
        if each.count
    ]
    ece = (figures.evaluation.get(figures.part or "") or {}).get("ece")
    what = "Decisions" if figures.task == MULTILABEL else "Predictions"
    return fragment(
        element("h3", "Calibration"),
        element(
            "p",
            f"Of a calibrated model the bars end at the diagonal. Expected calibration error"
            f" (Guo et al. 2017, 15 bins): {percent(ece)}.",
        ),
        element(
            "div",
            calibration_chart(f"{name}-calibration", f"Calibration on {figures.part}", bins),
            class_="charts",
        ),
        details(
            "The numbers of every bin",
            table(
                f"{what} by their confidence",
                ("confidence", "predictions", "mean confidence", "right"),
                rows,
            ),
        ),
    )


def ledger_section(figures: RunFigures) -> Markup:
    """What the run cost, where its features came from, and its configuration."""
    parts: list[Markup] = []
    if figures.cost:
        parts.append(_cost(figures.cost))
    if figures.layer_weights:
        mix = figures.layer_weights
        rows = list(zip(mix["names"], map(percent, mix["weights"]), strict=True))
        caption = f"What each layer has of the mix; the whole times {number(mix['gamma'])}"
        parts += [element("h3", "Layers"), table(caption, ("layer", "share"), rows)]
    if figures.lineage:
        parts.append(
            details("Lineage", record_table("Where the features came from", figures.lineage))
        )
    parts.append(details("Configuration", record_table("Every option", figures.config)))
    return fragment(parts)


def _cost(cost: Mapping[str, Any]) -> Markup:
    features, run, loop = (cost.get(name) or {} for name in ("features", "run", "in_loop"))
    rows = [
        ("the features, once", _duration(features), _size(features), features.get("note")),
        ("this run", _duration(run), NOTHING, None),
        ("this run with the module in the loop", _duration(loop), NOTHING, loop.get("note")),
    ]
    ratio = loop.get("ratio")
    said = (
        "The last line is an estimate, from the rate at which the module built the features."
        if ratio is None
        else f"With the module in the loop this run would have taken {ratio:,.3g} times as long,"
        " by the rate at which the module built the features."
    )
    return fragment(
        element("h3", "Cost"),
        table(
            "What it cost",
            ("what", "time", "on disk", "note"),
            [(*row[:3], row[3] or "") for row in rows],
        ),
        element("p", said, class_="soft"),
        details("The whole ledger", record_table("Cost ledger of the run", cost)),
    )


def _duration(part: Mapping[str, Any]) -> str:
    spent = part.get("seconds")
    return NOTHING if spent is None else seconds(spent)


def _size(part: Mapping[str, Any]) -> str:
    size = part.get("bytes")
    return NOTHING if size is None else num_bytes(size)


def _curves(figures: RunFigures, name: str, title: str, train: str, dev: str) -> Markup:
    lines: list[Line] = []
    by_fold = itertools.groupby(figures.history, key=lambda epoch: epoch.get("fold"))
    for _, group in by_fold:
        epochs = list(group)
        of_train = [
            (float(epoch["epoch"]), epoch[train])
            for epoch in epochs
            if epoch.get(train) is not None
        ]
        if of_train:
            lines.append(Line("train", of_train, "train"))
        of_dev = [(float(epoch["epoch"]), epoch["dev"][dev]) for epoch in epochs]
        # The last epoch that was the best so far is the one that was kept.
        kept = [place for place, epoch in zip(of_dev, epochs, strict=True) if epoch["is_best"]]
        lines.append(Line("dev", of_dev, "dev", marks=kept[-1:]))
    format_y = percent if dev == "accuracy" else lambda value: f"{value:.4g}"
    return line_chart(name, title, lines, format_y=format_y)


def _epoch_table(history: Sequence[Mapping[str, Any]]) -> Markup:
    has_folds = history[0].get("fold") is not None
    rows = [
        (
            *((f"fold {epoch['fold'] + 1}, epoch {epoch['epoch']}",)
              if has_folds else (str(epoch["epoch"]),)),
            number(epoch["train_loss"]),
            percent(epoch.get("train_accuracy")),
            number(epoch["dev"]["loss"]),
            percent(epoch["dev"]["accuracy"]),
            number(epoch["dev"]["macro_f1"]),
            f"{epoch['seconds']:.2f}",
        )
        for epoch in history[:_MAX_EPOCH_ROWS]
    ]  # fmt: skip
    left_out = len(history) - len(rows)
    more = f"; the last {left_out:,} are in history.json only" if left_out else ""
    return table(
        f"Every epoch{more}",
        ("epoch", "train loss", "train accuracy", "dev loss", "dev accuracy", "dev macro-F1", "s"),
        rows,
    )


def _confusion(labels: Sequence[str], counts: Sequence[Sequence[int]], part: str | None) -> Markup:
    if len(labels) > _MAX_CLASSES:
        return _confused_pairs(labels, counts, part)
    head = [element("th", "own ↓ predicted →", scope="col")]
    head += [element("th", label, scope="col") for label in labels]
    body = []
    for row, label in enumerate(labels):
        total = sum(counts[row]) or 1
        cells = [
            element("td", count, class_=_cell_class(count / total, is_own=row == column))
            for column, count in enumerate(counts[row])
        ]
        body.append(element("tr", element("th", label, scope="row"), cells))
    caption = f"Texts of {part} by their own class (rows) and the predicted one (columns)"
    matrix = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        element("tbody", body),
        class_="confusion",
    )
    return scrolling(caption, matrix)


def _confused_pairs(
    labels: Sequence[str], counts: Sequence[Sequence[int]], part: str | None
) -> Markup:
    pairs = [
        (count, labels[own], labels[predicted], sum(counts[own]))
        for own, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and own != predicted
    ]
    pairs.sort(key=lambda pair: -pair[0])
    rows = [(own, predicted, count, total) for count, own, predicted, total in pairs[:_MAX_PAIRS]]
    return table(
        f"Of {len(labels)} classes the pairs most often confused on {part}",
        ("own class", "predicted", "texts", "of"),
        rows,
    )


def _cell_class(share: float, *, is_own: bool) -> str:
    shade = sum(share > bound for bound in _SHADES)
    return f"s{shade} own" if is_own else f"s{shade}"


def _class_table(figures: RunFigures, evaluation: Mapping[str, Any]) -> Markup:
    is_multilabel = figures.task == MULTILABEL
    header = ["label" if is_multilabel else "class", "texts", "precision", "recall", "F1"]
    rows: list[list[str | int]] = []
    for scores in evaluation.get("per_class", []):
        measured = [percent(scores[key]) for key in ("precision", "recall", "f1")]
        rows.append([str(scores["label"]), int(scores["support"]), *measured])
    tables = evaluation.get("confusion") or []
    if is_multilabel and len(tables) == len(rows):
        header += ["rightly given", "wrongly given", "missed"]
        for row, ((_, wrong), (missed, right)) in zip(rows, tables, strict=True):
            row += [right, wrong, missed]
    return table(f"Scores on {figures.part or NOTHING}", header, rows)
