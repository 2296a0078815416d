"""Runs side by side, and whether their difference may be chance."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cnn import Run, TrainConfig, load_run, train
from cnn.comparing import compare_runs, mcnemar_p_value, paired_interval

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
LINEAR = TrainConfig(preset="linear", epochs=1, batch_size=40)


def exact_p_value(only_first: int, only_second: int) -> float:
    """By summing every outcome that is not more probable than the one seen."""
    draws = only_first + only_second
    chances = [math.comb(draws, k) / 2**draws for k in range(draws + 1)]
    return math.fsum(chance for chance in chances if chance <= chances[only_first] * (1 + 1e-9))


def test_mcnemars_p_value_is_the_exact_binomial_one() -> None:
    for only_first, only_second in itertools.product(range(13), repeat=2):
        wanted = exact_p_value(only_first, only_second)
        assert mcnemar_p_value(only_first, only_second) == pytest.approx(wanted, abs=1e-12)
    assert mcnemar_p_value(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar_p_value(0, 0) == 1.0


def test_mcnemars_p_value_of_many_texts_is_finite() -> None:
    # The normal approximation without correction: z = 2 gives 0.0455.
    assert mcnemar_p_value(49_500, 50_500) == pytest.approx(0.00157, abs=1e-4)
    assert 0.0 <= mcnemar_p_value(0, 100_000) < 1e-300


def test_the_paired_interval_is_that_of_drawing_texts() -> None:
    outcomes = np.repeat([1, -1, 0], [30, 15, 155])
    generator = np.random.default_rng(1)
    drawn = outcomes[generator.integers(200, size=(20_000, 200))].mean(axis=1)
    wanted = np.percentile(drawn, [2.5, 97.5])
    np.testing.assert_allclose(paired_interval(30, 15, 200), wanted, atol=0.011)
    assert paired_interval(0, 0, 200) == (0.0, 0.0)
    low, high = paired_interval(15, 30, 200)
    assert low < -0.075 < high


def test_two_runs_are_paired_on_the_same_test_texts(shared: SmallStore, two_run: Run) -> None:
    other = train(shared.store, "two", LINEAR)
    comparison = compare_runs([two_run, load_run(shared.store, other.name)])
    paired = comparison.paired
    assert paired is not None
    assert comparison.note is None
    assert paired.texts == 40
    assert paired.accuracies == (
        two_run.record["test"]["accuracy"],
        other.record["test"]["accuracy"],
    )
    assert paired.difference == pytest.approx(paired.accuracies[0] - paired.accuracies[1])
    assert (paired.only_first - paired.only_second) / 40 == pytest.approx(paired.difference)
    assert paired.interval[0] <= paired.difference <= paired.interval[1]
    assert comparison.differences["preset"] == ["kim", "linear"]
    assert "seed" not in comparison.differences
    assert [record["run"] for record in comparison.runs] == [two_run.name, other.name]


def test_a_run_is_no_better_than_itself(two_run: Run) -> None:
    paired = compare_runs([two_run, two_run]).paired
    assert paired is not None
    assert (paired.difference, paired.p_value, paired.interval) == (0.0, 1.0, (0.0, 0.0))


def test_folds_are_paired_whatever_their_order(shared: SmallStore) -> None:
    runs = [
        train(shared.store, "four", replace(LINEAR, folds=2, epochs=1, seed=seed))
        for seed in (1, 2)
    ]
    paired = compare_runs(runs).paired
    assert paired is not None
    assert paired.texts == 180
    for run, accuracy in zip(runs, paired.accuracies, strict=True):
        assert accuracy == pytest.approx(run.evaluation["test"]["accuracy"])


def test_what_cannot_be_paired_says_why(shared: SmallStore, two_run: Run, four_run: Run) -> None:
    notes = [
        compare_runs([two_run, four_run]).note,
        compare_runs([two_run] * 3).note,
    ]
    assert "has no test texts" in str(notes[0])
    assert "for two runs" in str(notes[1])
    labels = ["bad" if place % 3 else "good" for place in range(200)]
    other = train(shared.store, "two", LINEAR, labels=labels)
    assert "other labels" in str(compare_runs([two_run, other]).note)
    folds = train(shared.store, "two", replace(LINEAR, folds=2))
    assert "not the same" in str(compare_runs([two_run, folds]).note)
