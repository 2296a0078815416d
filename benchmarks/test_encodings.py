"""What B9 reckons with: differences over seeds, errors, what is left out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import b09_encodings, encoding_stores
from benchmarks.accuracy import Accuracies, compare_seeds
from benchmarks.encoding_stores import count_differing_rows, reconstruction_error
from benchmarks.machine import describe_machine
from benchmarks.measure import Series
from benchmarks.report import Report, Table, render_results
from benchmarks.scale import FULL

FLOAT32 = Accuracies("float32", (0.90, 0.92, 0.94))


def test_seeds_are_compared_with_the_same_seeds() -> None:
    found = compare_seeds(Accuracies("float16", (0.91, 0.92, 0.93)), FLOAT32)
    assert found.mean == pytest.approx(0.0)
    assert found.error == pytest.approx(0.01 / math.sqrt(3))
    assert FLOAT32.deviation == pytest.approx(0.02)
    assert found.noise == pytest.approx(0.02)


def test_noise_is_twice_the_standard_error_where_that_is_more() -> None:
    found = compare_seeds(Accuracies("float16", (0.84, 0.92, 1.00)), FLOAT32)
    assert found.noise == pytest.approx(2 * 0.06 / math.sqrt(3))


def test_one_seed_tells_nothing_of_noise() -> None:
    base = Accuracies("float32", (0.9,))
    assert math.isnan(compare_seeds(Accuracies("float16", (0.8,)), base).noise)
    assert b09_encodings.noise_target("a", Accuracies("float16", (0.8,)), base).is_reached is None


def test_other_numbers_of_seeds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        compare_seeds(Accuracies("float16", (0.9, 0.9)), FLOAT32)


@pytest.mark.parametrize(("loss", "is_reached"), [(0.019, True), (-0.019, True), (0.021, False)])
def test_accuracy_may_differ_by_no_more_than_noise(loss: float, is_reached: bool) -> None:
    found = Accuracies("float16", tuple(value - loss for value in FLOAT32.values))
    target = b09_encodings.noise_target("TREC", found, FLOAT32)
    assert target.is_reached is is_reached
    assert target.value == pytest.approx(100 * abs(loss))
    assert target.what == "TREC: accuracy of float16 against float32 ≤ seed noise, 2.00 points"


def test_errors_are_relative_to_all_numbers_and_to_the_row() -> None:
    exact = np.array([[3.0, 4.0], [0.0, 0.0], [0.1, 0.0]], np.float32)
    served = np.array([[3.0, 3.5], [0.0, 0.0], [0.075, 0.0]], np.float32)
    rms, largest = reconstruction_error(exact, served)
    assert rms == pytest.approx(math.sqrt((0.5**2 + 0.025**2) / (25 + 0.01)))
    assert largest == pytest.approx(0.25)


def test_numbers_that_were_kept_have_no_error() -> None:
    exact = np.array([[1.0, -2.0]], np.float32)
    assert reconstruction_error(exact, exact.astype(np.float16)) == (0.0, 0.0)


def test_rows_are_compared_by_their_bits() -> None:
    rows = np.array([[1.0, 0.0], [2.0, np.nan], [3.0, 1.0]], np.float16)
    other = rows.copy()
    assert count_differing_rows(rows, other) == 0
    other[0, 1] = -0.0
    other[2, 0] = np.nextafter(np.float16(3.0), np.float16(4.0))
    assert count_differing_rows(rows, other) == 2


def test_what_is_not_there_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("trec_files", "sst2_files"):
        monkeypatch.setattr(b09_encodings, name, dict)
    monkeypatch.setattr(b09_encodings, "find_minilm", lambda: None)
    monkeypatch.setattr(b09_encodings, "sst2_sources", lambda *_: ({"train": tmp_path}, "texts"))
    monkeypatch.setattr(encoding_stores, "installed_version", lambda _package: None)
    subjects, skipped = b09_encodings.find_subjects(FULL, tmp_path)
    assert [(subject.name, subject.num_seeds) for subject in subjects] == [("generated, words", 0)]
    assert [line.partition(":")[0] for line in skipped] == ["TREC", "SST-2", "zstd", "MiniLM"]
    assert encoding_stores.compressions() == ("none",)


def test_tables_are_shown_below_the_series(tmp_path: Path) -> None:
    series = [Series("a", "ours", [1.0])]
    table = Table(title="Bytes", header=("", "file"), rows=(("a", 1234.5), ("b", "–")))
    report = Report(
        number="B9", title="t", unit="texts/s", cache="warm", binds="b", series=series,
        tables=[table],
    )  # fmt: skip
    results = {"machine": describe_machine(tmp_path), "benchmarks": [report.to_record()]}
    shown = "\n\nBytes:\n\n|  | file |\n|---|---|\n| a | 1,230 |\n| b | – |\n\nBinds: b\n"
    assert shown in render_results(results)
