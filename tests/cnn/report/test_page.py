"""The page of real runs: whole, safe, small, and right in what it shows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from cnn import Run, TrainConfig, load_run, train
from cnn.predictions import Predictions
from cnn.report import page as page_file
from cnn.report.charts import Bin
from cnn.report.errors import worst_errors
from cnn.report.figures import RunFigures, calibration_bins, gather_figures, text_losses
from cnn.report.page import MAX_PAGE_BYTES, make_report
from embedcache.corpus import Source
from embedcache.keys import key_of_text, keys_of_texts

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

Helpdesk = Any
Checker = Callable[[str], Any]
HOSTILE = '</p></article><script>alert("1")</script><img src=x onerror=y> \x1b[31m \u202e & &lt;'


def figures_of(
    probabilities: Any, labels: Any, *, task: str = "single", names: str = "ab", **fields: Any
) -> RunFigures:
    """A run that said this of its test texts ``text 0``, ``text 1``, …."""
    count = len(probabilities)
    plain = {
        "name": "20260101-000000-x-kim-0000",
        "record": {"run": "20260101-000000-x-kim-0000", "dataset": "d", "version": "v", "view": "w",
                   "seed": 0, "dev": None, "test": None, "folds": None},
        "config": {"preset": "kim"},
        "labels": tuple(names),
        "task": task,
        "history": (),
        "evaluation": {},
        "cost": {},
        "lineage": {},
        "layer_weights": None,
        "problems": (),
    }  # fmt: skip
    predictions = Predictions(
        np.full(count, "test"),
        np.full(count, -1, np.int32),
        np.arange(count),
        keys_of_texts([f"text {number}" for number in range(count)]),
        np.array(labels),
        np.array(probabilities, np.float32),
    )
    return RunFigures(**{**plain, "predictions": predictions, **fields})


def renamed(store: embedcache.FeatureStore, run: Run, name: str) -> Run:
    """The same run under another name."""
    return Run(store, run.path, record={**run.record, "run": name}, details=run.details)


def test_page_of_a_run_is_whole_and_tells_its_figures(
    helpdesk: Helpdesk, require_whole_page: Checker
) -> None:
    report = make_report(helpdesk.store, [helpdesk.run])
    page = require_whole_page(report.html)
    record = helpdesk.run.record
    for part in ("dev", "test"):
        assert f"{100 * record[part]['accuracy']:.1f} %" in page.words
    for heading in ("Learning curves", "Confusion matrix", "Each class", "Calibration",
                    "Worst errors", "Cost", "Lineage", "Configuration"):  # fmt: skip
        assert heading in page.words
    assert page.elements["svg"] == 3
    assert report.runs == (helpdesk.run.name,)
    assert report.problems == ()


def test_worst_errors_have_their_texts_and_the_words_that_misled(
    helpdesk: Helpdesk, require_whole_page: Checker
) -> None:
    report = make_report(helpdesk.store, [helpdesk.run], num_errors=5)
    page = require_whole_page(report.html)
    assert report.num_errors == report.num_texts == page.elements["article"] == 5
    predictions = helpdesk.run.predict(helpdesk.texts)
    shown = [text for text in helpdesk.texts if text in page.words]
    wrong = [
        text for text, prediction in zip(helpdesk.texts, predictions, strict=True)
        if f"__label__{prediction.label} {text}" not in
        (helpdesk.folder / "test.txt").read_text(encoding="utf-8").splitlines()
    ]  # fmt: skip
    assert len(shown) == 5
    assert set(shown) <= set(wrong)
    assert page.elements["mark"] > 10
    assert page.words.count("Words that decided") == 5


def test_words_are_shaded_for_the_wrong_label_and_against_it(
    helpdesk: Helpdesk,
) -> None:
    from cnn.explaining import explain_texts
    from cnn.report.errors import read_errors

    errors = worst_errors(gather_figures(helpdesk.run), 5)
    texts = {key_of_text(text): text for text in helpdesk.texts}
    readings = read_errors(helpdesk.run, errors, texts)
    for error in errors:
        (explanation,) = explain_texts(
            helpdesk.run, [texts[error.key]], labels=[(error.toward, error.against)]
        )
        toward, against = explanation.labels
        lead = (toward.logit - toward.bias) - (against.logit - against.bias)
        reading = readings[error.key]
        # A token that stands for no characters has no piece; these have none.
        assert sum(value for _, value in reading.pieces) == pytest.approx(lead, abs=1e-6)
        assert "".join(piece for piece, _ in reading.pieces) == texts[error.key]
        assert all(window.words in texts[error.key] for window in reading.windows)


def test_compared_runs_stand_side_by_side_with_what_differs(
    helpdesk: Helpdesk, require_whole_page: Checker
) -> None:
    config = TrainConfig(preset="basic", epochs=1, seed=4)
    other = train(helpdesk.store, "helpdesk", config)
    page = require_whole_page(make_report(helpdesk.store, [helpdesk.run, other]).html)
    assert "What differs" in page.words
    for name in ("preset", "seed", "kernel sizes"):
        assert name in page.words
    assert page.targets.count("run-1") >= 2
    assert page.elements["section"] == 2


def test_equal_runs_differ_in_nothing(helpdesk: Helpdesk) -> None:
    html = make_report(
        helpdesk.store, [helpdesk.run, renamed(helpdesk.store, helpdesk.run, "b")]
    ).html
    assert "Nothing: dataset, view, seed and every option are the same" in html


def test_run_with_folds_shows_every_fold(helpdesk: Helpdesk, require_whole_page: Checker) -> None:
    config = TrainConfig(preset="linear", epochs=2, folds=3)
    run = train(helpdesk.store, "helpdesk", config)
    report = make_report(helpdesk.store, [run])
    page = require_whole_page(report.html)
    assert len(re.findall(r'<polyline [^>]*class="dev"', report.html)) == 2 * 3
    assert "fold 3, epoch 2" in page.words
    assert "tested in fold" in page.words
    assert report.num_texts == report.num_errors > 0


def test_multilabel_run_shows_each_label(tmp_path: Path, require_whole_page: Checker) -> None:
    rows = []
    for number in range(60):
        words = ["fine" if number % 2 else "cold", "film" if number % 3 else "bore"]
        labels = [f"__label__{word}" for word in words if word in ("fine", "film")]
        rows.append(" ".join([*(labels or ["__label__none"]), *words, f"number {number}"]))
    for name, part in {"train": rows[:40], "test": rows[40:]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    with embedcache.open_store(tmp_path / "store") as store:
        parts = {name: str(tmp_path / f"{name}.txt") for name in ("train", "test")}
        embedcache.build(store, parts, dataset="m")
        config = TrainConfig(filters=4, kernel_sizes=(1,), epochs=1, batch_size=16)
        run = train(store, "m", config)
        assert run.task == "multilabel"
        report = make_report(store, [run])
    page = require_whole_page(report.html)
    assert "Each label" in page.words
    assert "wrongly given" in page.words
    assert "Confusion matrix" not in page.words
    assert report.num_errors > 0
    assert page.elements["mark"] > 0


def old_copy(helpdesk: Helpdesk, folder: Path) -> Path:
    """A copy of the store whose run is as version 0.1 made it."""
    shutil.copytree(helpdesk.store.path, folder)
    run = folder / "runs" / helpdesk.run.name
    (run / "predictions.npz").unlink()
    details = json.loads((run / "run.json").read_text())
    for name in ("evaluation", "cost", "lineage", "task", "tags", "leaks"):
        details.pop(name, None)
    (run / "run.json").write_text(json.dumps(details))
    history = json.loads((run / "history.json").read_text())
    for epoch in history:
        epoch.pop("train_accuracy", None)
    (run / "history.json").write_text(json.dumps(history))
    return folder


def test_run_of_an_older_version_gets_a_page_with_what_there_is(
    helpdesk: Helpdesk, tmp_path: Path, require_whole_page: Checker
) -> None:
    with embedcache.open_store(old_copy(helpdesk, tmp_path / "store")) as store:
        report = make_report(store, [load_run(store, helpdesk.run.name)])
    page = require_whole_page(report.html)
    assert "Learning curves" in page.words
    assert "Train again to have it" in page.words
    assert "Worst errors" not in page.words
    assert report.problems == ()


@pytest.mark.parametrize("file", ["predictions.npz", "history.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[[1]]"])
def test_damaged_file_of_a_run_is_told_on_a_page_with_the_rest(
    helpdesk: Helpdesk, tmp_path: Path, require_whole_page: Checker, file: str, content: bytes
) -> None:
    shutil.copytree(helpdesk.store.path, tmp_path / "store")
    (tmp_path / "store" / "runs" / helpdesk.run.name / file).write_bytes(content)
    with embedcache.open_store(tmp_path / "store") as store:
        report = make_report(store, [load_run(store, helpdesk.run.name)])
    page = require_whole_page(report.html)
    (problem,) = report.problems
    assert file in problem
    assert problem in page.words


def test_texts_that_are_gone_are_told_by_key_and_number_and_how_to_give_them(
    helpdesk: Helpdesk, tmp_path: Path, require_whole_page: Checker
) -> None:
    moved = tmp_path / "moved.txt"
    (helpdesk.folder / "test.txt").rename(moved)
    try:
        report = make_report(helpdesk.store, [helpdesk.run])
        page = require_whole_page(report.html)
        assert report.num_errors > report.num_texts == 0
        error = worst_errors(gather_figures(helpdesk.run), 1)[0]
        assert error.key.hex() in page.words
        assert f"document {error.number} of the corpus" in page.words
        assert "--texts PATH" in page.words
        assert any("test.txt" in problem for problem in report.problems)
        given = make_report(helpdesk.store, [helpdesk.run], texts=[Source(str(moved), None)])
        assert given.num_texts == given.num_errors > 0
        assert given.problems == ()
    finally:
        moved.rename(helpdesk.folder / "test.txt")


def test_texts_without_features_are_shown_plain_and_nothing_is_embedded(
    helpdesk: Helpdesk, tmp_path: Path, require_whole_page: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(helpdesk.store.path, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "index")
    import embedcache.precompute

    def embed(*_arguments: Any) -> None:
        raise AssertionError("a report needs no module")

    monkeypatch.setattr(embedcache.precompute, "embed", embed)
    with embedcache.open_store(tmp_path / "store") as store:
        view = helpdesk.run.record["view"]
        for record in store.catalog.shards(view):
            store.catalog.retire_shards([record.digest])
        report = make_report(store, [load_run(store, helpdesk.run.name)])
    page = require_whole_page(report.html)
    assert report.num_texts > 0
    assert page.elements.get("mark", 0) == 0


def test_run_whose_view_and_dataset_are_gone_gets_a_page_with_the_rest(
    helpdesk: Helpdesk, require_whole_page: Checker
) -> None:
    record = {**helpdesk.run.record, "view": "f" * 32, "dataset": "gone", "version": "0" * 32}
    run = Run(helpdesk.store, helpdesk.run.path, record=record, details=helpdesk.run.details)
    given = [Source(str(helpdesk.folder / "test.txt"), None)]
    for texts in ([], given):
        report = make_report(helpdesk.store, [run], texts=texts)
        page = require_whole_page(report.html)
        assert page.elements.get("mark", 0) == 0
        assert page.elements["article"] == report.num_errors > 0
        assert report.num_texts == (report.num_errors if texts else 0)
        words = "no view" if texts else "no dataset"
        assert any(words in problem for problem in report.problems)


def test_hostile_texts_and_labels_are_shown_and_do_nothing(
    tmp_path: Path, require_whole_page: Checker
) -> None:
    label = '<b>"x"&'
    rows = [
        {"text": f"{HOSTILE} {number}", "label": label if number % 2 else "plain",
         "split": "train" if number < 30 else "test"}
        for number in range(40)
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    with embedcache.open_store(tmp_path / "store") as store:
        embedcache.build(store, str(path), dataset="<i>")
        config = TrainConfig(preset="basic", epochs=1, batch_size=8)
        report = make_report(store, [train(store, "<i>", config)])
    page = require_whole_page(report.html)
    assert report.num_texts > 0
    assert HOSTILE.replace("\x1b", "\ufffd") in page.words
    assert label in page.words
    assert "dataset <i>" in page.words


def test_page_stays_small_by_showing_fewer_errors(
    helpdesk: Helpdesk, require_whole_page: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_report(helpdesk.store, [helpdesk.run])
    monkeypatch.setattr(page_file, "MAX_PAGE_BYTES", len(whole.html) - 3000)
    fewer = make_report(helpdesk.store, [helpdesk.run])
    assert 0 < fewer.num_errors < whole.num_errors
    assert len(fewer.html.encode()) <= len(whole.html) - 3000


def test_page_of_many_runs_with_long_texts_stays_below_its_bound(
    tmp_path: Path, require_whole_page: Checker
) -> None:
    words = ["a", "long", "story", "of", "many", "words", "that", "nobody", "wants", "to", "read"]
    rows = [f"__label__{'ab'[number % 2]} {number} {' '.join(words * 20)}" for number in range(80)]
    for name, part in {"train": rows[:40], "test": rows[40:]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    with embedcache.open_store(tmp_path / "store") as store:
        parts = {name: str(tmp_path / f"{name}.txt") for name in ("train", "test")}
        embedcache.build(store, parts, dataset="long")
        config = TrainConfig(filters=4, kernel_sizes=(3,), epochs=1)
        run = train(store, "long", config)
        runs = [renamed(store, run, f"run {number}") for number in range(25)]
        report = make_report(store, runs)
    page = require_whole_page(report.html)
    assert len(report.html.encode()) <= MAX_PAGE_BYTES
    assert page.elements["section"] == page_file.MAX_DETAILED
    assert "5 more runs are compared above only" in page.words


def test_run_that_is_given_twice_is_on_the_page_once(
    helpdesk: Helpdesk, require_whole_page: Checker
) -> None:
    report = make_report(helpdesk.store, [helpdesk.run, helpdesk.run])
    assert require_whole_page(report.html).elements["section"] == 1
    assert report.runs == (helpdesk.run.name,)


def test_report_of_no_runs_is_refused(helpdesk: Helpdesk) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        make_report(helpdesk.store, [])


def test_worst_errors_are_the_wrong_ones_of_highest_loss_each_once() -> None:
    figures = figures_of(
        [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.99, 0.01], [0.45, 0.55]], [0, 0, 1, 1, 1]
    )
    found = worst_errors(figures, 9)
    assert [error.number for error in found] == [4, 2, 3]
    assert [(error.toward, error.against) for error in found] == [
        ("a", "b"), ("b", "a"), ("a", "b"),
    ]  # fmt: skip
    assert found[0].loss == pytest.approx(-np.log(0.01), abs=1e-5)
    assert found[0].key == key_of_text("text 3")
    assert worst_errors(figures, 1) == found[:1]
    predictions = figures.predictions
    assert predictions is not None
    doubled = predictions.take(np.array([3, 3, 1]))
    assert len(worst_errors(replace(figures, predictions=doubled), 9)) == 2


def test_worst_error_of_a_multilabel_text_is_its_worst_wrong_decision() -> None:
    figures = figures_of(
        # The right decision on c has a higher loss than the wrong ones.
        [[0.3, 0.9, 0.49, 0.2], [0.1, 0.1, 0.1, 0.9]],
        [[1, 0, 0, 0], [0, 0, 0, 1]],
        task="multilabel", names="abcd",
    )  # fmt: skip
    (error,) = worst_errors(figures, 9)
    assert (error.own, error.predicted, error.toward, error.against) == (("a",), ("b",), "b", None)
    assert error.loss == pytest.approx(-np.log(0.1), abs=1e-5)


def test_run_that_was_never_wrong_says_so(require_whole_page: Checker) -> None:
    from cnn.report.error_section import errors_section

    figures = figures_of([[0.9, 0.1]], [0])
    section = errors_section(figures, worst_errors(figures, 5), {}, {})
    assert section is not None
    assert "No text of test was labelled wrong" in section


def test_losses_are_the_cross_entropy() -> None:
    figures = figures_of([[0.9, 0.1], [0.0, 1.0]], [0, 0])
    assert figures.predictions is not None
    losses = text_losses(figures.predictions)
    assert losses == pytest.approx([-np.log(0.9), -np.log(1e-7)], rel=1e-5)


def test_calibration_bins_add_up_to_the_calibration_error(helpdesk: Helpdesk) -> None:
    figures = gather_figures(helpdesk.run)
    predictions = figures.of_part
    assert predictions is not None
    bins = calibration_bins(predictions, figures.task)
    total = sum(each.count for each in bins)
    assert total == len(predictions)
    error = sum(
        each.count / total * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    )
    assert error == pytest.approx(helpdesk.run.evaluation["test"]["ece"], abs=1e-6)


def test_bins_hold_their_upper_bound() -> None:
    figures = figures_of([[0.875, 0.125], [1.0, 0.0], [0.5, 0.5]], [0, 1, 0])
    assert figures.predictions is not None
    bins = {round(each.high, 3): each for each in calibration_bins(figures.predictions, "single")
            if each.count}  # fmt: skip
    assert {high: each.count for high, each in bins.items()} == {0.933: 1, 1.0: 1, 0.533: 1}
    assert bins[1.0] == Bin(14 / 15, 1.0, 1, 1.0, 0.0)


def test_many_classes_are_shown_as_the_pairs_most_often_confused(
    require_whole_page: Checker,
) -> None:
    from cnn.report.sections import scores_section

    count = 50
    confusion = np.eye(count, dtype=int)
    confusion[3, 7] = 9
    scores = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1}
    evaluation = {
        "confusion": confusion.tolist(),
        "per_class": [{"label": f"class {each}", **scores} for each in range(count)],
    }
    figures = figures_of([[0.9, 0.1]], [0], evaluation={"test": evaluation})
    section = scores_section(figures)
    assert section is not None
    assert "the pairs most often confused" in section
    assert re.search(r"class 3</th><td>class 7</td><td>9</td><td>10</td>", section)


def test_run_says_how_it_mixes_layers() -> None:
    from cnn.report.sections import ledger_section

    mix = {"names": ["layer_1", "layer_2"], "weights": [0.25, 0.75], "gamma": 1.5}
    section = ledger_section(figures_of([[0.9, 0.1]], [0], layer_weights=mix))
    assert "layer_2</th><td>75.0 %" in section
    assert "the whole times 1.5000" in section
