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

from benchmarks import feature_peers
from benchmarks.machine import describe_machine
from benchmarks.measure import Contender, WrongAnswerError, compare_outputs, measure
from benchmarks.report import END_MARK, START_MARK, Report, render_results, replace_results
from benchmarks.run import MODULES, README
from benchmarks.scale import TINY
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


def _contender(name: str, role: str, digest: str) -> Contender:
    return Contender(
        name=name, role=role, run=lambda _number: 1.0, inspect=lambda: {"output": digest}
    )
