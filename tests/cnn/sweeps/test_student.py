"""The interval of a few seeds, against the published table."""

from __future__ import annotations

import math

import pytest

from cnn.sweeps.student import estimate, t_cumulative, t_quantile

# Quantiles of Student's t, Abramowitz and Stegun, table 26.10, to its three decimals.
TABLE = {
    (0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 3): 3.182, (0.975, 4): 2.776,
    (0.975, 9): 2.262, (0.975, 10): 2.228, (0.975, 30): 2.042, (0.975, 120): 1.980,
    (0.95, 5): 2.015, (0.995, 8): 3.355,
}  # fmt: skip


@pytest.mark.parametrize(("probability", "degrees"), TABLE)
def test_quantiles_are_those_of_the_table(probability: float, degrees: int) -> None:
    found = t_quantile(probability, degrees)
    assert found == pytest.approx(TABLE[probability, degrees], abs=5.1e-4)
    assert t_cumulative(found, degrees) == pytest.approx(probability, abs=1e-12)


def test_interval_of_three_scores() -> None:
    found = estimate([0.80, 0.82, 0.84])
    assert found.mean == pytest.approx(0.82)
    assert found.deviation == pytest.approx(0.02)
    assert found.interval is not None
    half = 4.302652729911275 * 0.02 / math.sqrt(3)
    assert found.interval == pytest.approx((0.82 - half, 0.82 + half))
    assert found.count == 3


def test_one_score_has_no_interval() -> None:
    found = estimate([0.8])
    assert (found.mean, found.deviation, found.interval, found.count) == (0.8, None, None, 1)
    assert found.to_record()["interval"] is None


def test_equal_scores_have_an_interval_of_no_width() -> None:
    assert estimate([0.5, 0.5, 0.5]).interval == (0.5, 0.5)
