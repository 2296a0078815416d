"""docs/results.md: what was reached on Kim's (2014) data sets, beside what the paper has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import END_MARK

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
START_MARK = "<!-- results: written by `python -m benchmarks.paper` -->"
CORPORA = {"mr": "MR", "sst2": "SST-2", "trec": "TREC"}
KIM = {
    "rand": {"mr": 76.1, "sst2": 82.7, "trec": 91.2},
    "static": {"mr": 81.0, "sst2": 86.8, "trec": 92.8},
    "nonstatic": {"mr": 81.5, "sst2": 87.2, "trec": 93.6},
    "multichannel": {"mr": 81.1, "sst2": 88.1, "trec": 92.2},
}
"""Test accuracies in per cent: Kim (2014), table 2."""

Results = dict[str, dict[str, dict[str, Any]]]
"""Corpus → table → leaderboard, as JSON values."""


def render_page(text: str, results: Results) -> str:
    """The page with its tables renewed.

    Raises:
        ValueError: if the marks between which they stand are missing.
    """
    if START_MARK not in text or END_MARK not in text:
        raise ValueError("the marks are missing between which the tables stand")
    before, _, rest = text.partition(START_MARK)
    _, _, after = rest.partition(END_MARK)
    parts = [START_MARK, *_words_table(results), *_minilm_table(results), *_layers_table(results)]
    return before + "\n\n".join(parts) + f"\n\n{END_MARK}" + after


def _words_table(results: Results) -> list[str]:
    lines = _header("`builtin:en-words-128`")
    for embedding, published in KIM.items():
        cells = []
        for corpus in CORPORA:
            row = _find(results, corpus, "words", embedding=embedding)
            more = _find(results, corpus, "static", embedding=embedding)
            cells += [_score(more or row), f"{published[corpus]:.1f}"]
        lines.append(_line(f"`--embedding {embedding}`", cells))
    for baseline in ("linear", "majority"):
        cells = []
        for corpus in CORPORA:
            table = "static" if _rows(results, corpus, "static") else "words"
            cells += [_score(_find_baseline(results, corpus, table, baseline)), ""]
        lines.append(_line(_BASELINES[baseline], cells))
    return ["### Words: Kim's four models", "\n".join(lines)]


def _minilm_table(results: Results) -> list[str]:
    lines = _header("all-MiniLM-L6-v2")
    best, linear = [], []
    for corpus in CORPORA:
        row = _best(results, corpus, "minilm")
        layer = f" (layer {row['settings']['layer']})" if row else ""
        best += [_score(row) + layer, f"{KIM['static'][corpus]:.1f}"]
        linear += [_score(_find_baseline(results, corpus, "minilm", "linear")), ""]
    lines += [_line("`kim`, one layer, chosen on dev", best), _line(_BASELINES["linear"], linear)]
    return ["### A contextual encoder", "\n".join(lines)]


def _layers_table(results: Results) -> list[str]:
    rows: dict[str, dict[str, str]] = {}
    for corpus in CORPORA:
        for row in _rows(results, corpus, "layers"):
            if not row["baseline"]:
                rows.setdefault(row["settings"]["layer"], {})[corpus] = _percent(row["dev"])
    lines = [_line("`--layer`", list(CORPORA.values())), _line("---", ["---"] * len(CORPORA))]
    lines += [
        _line(f"`{layer}`", [cells.get(corpus, "") for corpus in CORPORA])
        for layer, cells in sorted(rows.items())
    ]
    return ["### How the layers were chosen: accuracy on dev", "\n".join(lines)]


def _header(what: str) -> list[str]:
    names = [name for corpus in CORPORA.values() for name in (corpus, "Kim")]
    return [_line(what, names), _line("---", ["---"] * len(names))]


def _line(first: str, cells: list[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def _rows(results: Results, corpus: str, table: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results.get(corpus, {}).get(table, {}).get("rows", [])
    return rows


def _find(results: Results, corpus: str, table: str, **settings: str) -> dict[str, Any] | None:
    for row in _rows(results, corpus, table):
        if not row["baseline"] and settings.items() <= row["settings"].items():
            return row
    return None


def _find_baseline(
    results: Results, corpus: str, table: str, baseline: str
) -> dict[str, Any] | None:
    return next((row for row in _rows(results, corpus, table) if row["baseline"] == baseline), None)


def _best(results: Results, corpus: str, table: str) -> dict[str, Any] | None:
    rows = _rows(results, corpus, table)
    return next((row for row in rows if not row["baseline"] and row["dev"]), None)


def _score(row: Mapping[str, Any] | None) -> str:
    """``86.2 ± 0.4``: mean and standard deviation over the seeds; of one seed it says so."""
    found = row and row["test"]
    if not found:
        return ""
    return _percent(found) + (" (one seed)" if found["deviation"] is None else "")


def _percent(estimate: Mapping[str, Any]) -> str:
    deviation = estimate["deviation"]
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * estimate['mean']:.1f}{spread}"


_BASELINES = {
    "linear": "logistic regression on the mean of the rows",
    "majority": "the most frequent class",
}
