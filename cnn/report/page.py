"""Runs → the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import embedcache
from cnn.report.comparison import differences_table, figures_table
from cnn.report.error_section import errors_section
from cnn.report.errors import Reading, WorstError, read_errors, worst_errors
from cnn.report.figures import RunFigures, gather_figures
from cnn.report.markup import Markup, element, fragment
from cnn.report.sections import (
    calibration_section,
    curves_section,
    ledger_section,
    scores_section,
)
from cnn.report.shown import field_value
from cnn.report.style import STYLE
from cnn.report.texts import FoundTexts, find_texts, sources_of_record
from cnn.run import Run
from embedcache.corpus import CorpusOptions, Source
from embedcache.errors import EmbedCacheError, UnknownNameError
from embedcache.store.store import FeatureStore

MAX_PAGE_BYTES = 1_000_000
"""A page that can be mailed. Fewer errors are shown until it is no larger."""

MAX_DETAILED = 20
"""Runs that have a section of their own; the others are compared only."""

ERRORS = 20
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Report:
    """A page, and what is on it.

    Attributes:
        html: The page.
        runs: Names of the runs on it.
        num_errors: Texts shown as worst errors.
        num_texts: Those of them whose text was found.
        problems: What could not be read, a line each.
    """

    html: str
    runs: tuple[str, ...]
    num_errors: int
    num_texts: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Detailed:
    """A run with its worst errors, as far as their texts were found."""

    figures: RunFigures
    errors: Sequence[WorstError]
    texts: Mapping[bytes, str]
    readings: Mapping[bytes, Reading]
    problems: tuple[str, ...]


def make_report(
    store: FeatureStore,
    runs: Sequence[Run],
    *,
    texts: Sequence[Source] = (),
    options: CorpusOptions | None = None,
    num_errors: int = ERRORS,
) -> Report:
    """One self-contained HTML page on runs: no script, no other file, below 1 MB.

    Args:
        store: The store of the runs.
        runs: One or more.
        texts: Files with the texts of the corpora; the files that these were built from are
            read where they are still there.
        options: How to read them.
        num_errors: Worst errors of each run, at most.

    Raises:
        ValueError: if there are no runs.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    # Given twice, a run is on the page once.
    runs = list({run.name: run for run in runs}.values())
    figures = [gather_figures(run) for run in runs]
    shown = [
        _detail(store, run, each, texts=texts, options=options, num_errors=num_errors)
        for run, each in zip(runs[:MAX_DETAILED], figures, strict=False)
    ]
    most = num_errors
    html = _page(figures, shown, most)
    while len(html.encode()) > MAX_PAGE_BYTES and most > 0:
        most //= 2
        html = _page(figures, shown, most)
    return Report(
        html=html,
        runs=tuple(each.name for each in figures),
        num_errors=sum(len(each.errors[:most]) for each in shown),
        num_texts=sum(error.key in each.texts for each in shown for error in each.errors[:most]),
        problems=tuple(dict.fromkeys(line for each in shown for line in each.problems)),
    )


def _detail(
    store: FeatureStore,
    run: Run,
    figures: RunFigures,
    *,
    texts: Sequence[Source],
    options: CorpusOptions | None,
    num_errors: int,
) -> _Detailed:
    errors = worst_errors(figures, num_errors)
    found = _find_texts(store, figures, errors, texts=texts, options=options)
    readings: Mapping[bytes, Reading] = {}
    problems = [*figures.problems]
    if len(found.texts) < len(errors):
        problems += found.problems
    try:
        readings = read_errors(run, errors, found.texts)
    except EmbedCacheError as error:
        # Its view was deleted, or its model is damaged: the rest can be told all the same.
        problems.append(str(error))
    return _Detailed(figures, errors, found.texts, readings, tuple(problems))


def _find_texts(
    store: FeatureStore,
    figures: RunFigures,
    errors: Sequence[WorstError],
    *,
    texts: Sequence[Source],
    options: CorpusOptions | None,
) -> FoundTexts:
    keys = [error.key for error in errors]
    given = find_texts(keys, texts, options)
    left = [key for key in keys if key not in given.texts]
    try:
        version = f"{figures.record['dataset']}@{figures.record['version']}"
        record = store.catalog.find_dataset(version)
    except UnknownNameError as error:
        return FoundTexts(given.texts, (*given.problems, str(error)))
    own = find_texts(left, sources_of_record(record), options)
    return FoundTexts({**given.texts, **own.texts}, (*given.problems, *own.problems))


def _page(figures: Sequence[RunFigures], shown: Sequence[_Detailed], num_errors: int) -> str:
    anchors = {each.figures.name: f"run-{place}" for place, each in enumerate(shown, 1)}
    only = figures[0].name if len(figures) == 1 else f"{len(figures)} runs"
    title = f"embedcache: {only}"
    body = fragment(
        element(
            "header",
            element("h1", title),
            element(
                "p",
                f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by embedcache"
                f" {embedcache.__version__}.",
                class_="soft",
            ),
        ),
        element(
            "main",
            figures_table(figures, anchors),
            differences_table(figures, anchors),
            [_run_section(each, anchors[each.figures.name], num_errors) for each in shown],
            _left_out(len(figures) - len(shown)),
        ),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def _run_section(detailed: _Detailed, anchor: str, num_errors: int) -> Markup:
    figures = detailed.figures
    record = figures.record
    told = [f"dataset {record.get('dataset')}", f"preset {figures.config.get('preset')}"]
    told += [f"seed {record.get('seed')}", f"view {str(record.get('view'))[:12]}"]
    if record.get("folds"):
        told.append(f"{len(record['folds'])} folds")
    told.append(f"labels {field_value('', list(figures.labels))}")
    errors = detailed.errors[:num_errors]
    return element(
        "section",
        element("h2", figures.name, id=anchor),
        element("p", " · ".join(told)),
        [element("p", f"Left out: {problem}", class_="soft") for problem in detailed.problems],
        _old_run_note(figures),
        curves_section(figures, anchor),
        scores_section(figures),
        calibration_section(figures, anchor),
        errors_section(figures, errors, detailed.texts, detailed.readings),
        ledger_section(figures),
        aria_labelledby=anchor,
    )


def _old_run_note(figures: RunFigures) -> Markup | None:
    if figures.evaluation and figures.predictions is not None:
        return None
    return element(
        "p",
        "This run keeps no predictions or evaluation, as an older version made it or they are"
        " damaged: what needs them is left out. Train again to have it.",
    )


def _left_out(count: int) -> Markup | None:
    if count <= 0:
        return None
    return element("p", f"{count} more runs are compared above only.", class_="soft")
