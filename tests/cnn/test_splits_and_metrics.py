"""Cutting into parts, and scoring: NumPy only."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnn.metrics import EPSILON, Scores, compute_macro_f1, compute_scores, mean_scores
from cnn.splits import stratified_folds, stratified_split

LABELS = np.random.default_rng(3).permutation(np.repeat([0, 1, 2, 3], [500, 60, 2, 1])).astype("i4")


def test_every_class_with_two_members_is_in_both_parts() -> None:
    stay, aside = stratified_split(LABELS, 0.1, seed=0)
    assert np.bincount(LABELS[stay], minlength=4).tolist() == [450, 54, 1, 1]
    assert np.bincount(LABELS[aside], minlength=4).tolist() == [50, 6, 1, 0]


def test_parts_are_disjoint_ascending_and_together_all() -> None:
    stay, aside = stratified_split(LABELS, 0.3, seed=0)
    assert np.all(np.diff(stay) > 0)
    assert np.all(np.diff(aside) > 0)
    assert sorted([*stay, *aside]) == list(range(len(LABELS)))


def test_a_large_fraction_leaves_a_member_of_each_class() -> None:
    stay, _ = stratified_split(LABELS, 0.999, seed=0)
    assert set(LABELS[stay].tolist()) == {0, 1, 2, 3}


def test_only_the_seed_changes_a_split() -> None:
    first = stratified_split(LABELS, 0.1, seed=0)[1]
    assert np.array_equal(first, stratified_split(LABELS, 0.1, seed=0)[1])
    assert not np.array_equal(first, stratified_split(LABELS, 0.1, seed=1)[1])


@pytest.mark.parametrize("num_folds", [2, 3, 10])
def test_folds_and_their_classes_differ_by_one_at_most(num_folds: int) -> None:
    folds = stratified_folds(LABELS, num_folds, seed=0)
    assert np.ptp(np.bincount(folds, minlength=num_folds)) <= 1
    for label in range(4):
        (members,) = np.nonzero(LABELS - label == 0)
        assert np.ptp(np.bincount(folds[members], minlength=num_folds)) <= 1


def test_only_the_seed_changes_folds() -> None:
    first = stratified_folds(LABELS, 5, seed=0)
    assert np.array_equal(first, stratified_folds(LABELS, 5, seed=0))
    assert not np.array_equal(first, stratified_folds(LABELS, 5, seed=1))


def test_scores_of_a_case_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 1, 2], np.int32)
    probabilities = np.array(
        [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0]], np.float32
    )
    scores = compute_scores(probabilities, labels)
    assert scores.accuracy == 0.5
    # F1: class 0 2·1/(2+0+1), class 1 2·1/(2+2+0), class 2 none of its own found.
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # The last text's own class has probability 0: the loss is that of EPSILON, not infinite.
    wanted = -(math.log(0.5) + math.log(0.25) + math.log(0.5) + math.log(EPSILON)) / 4
    assert scores.loss == pytest.approx(wanted)


def test_a_class_that_occurs_nowhere_has_no_part_in_macro_f1() -> None:
    assert compute_macro_f1(np.array([0, 3]), np.array([0, 3])) == 1.0


def test_a_probability_that_is_nan_gives_a_loss_that_is_nan() -> None:
    scores = compute_scores(np.full((2, 2), np.nan, np.float32), np.zeros(2, np.int32))
    assert math.isnan(scores.loss)


def test_mean_scores() -> None:
    assert mean_scores([Scores(1.0, 0.5, 0.0), Scores(0.0, 0.0, 2.0)]) == Scores(0.5, 0.25, 1.0)
