"""RaggedArray and the arithmetic of ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.ragged import RaggedArray, expand_ranges, splits_of_lengths

INT64_MAX = np.iinfo(np.int64).max


def _ragged(lengths: list[int], dim: int = 2) -> RaggedArray:
    values = np.arange(sum(lengths) * dim, dtype=np.float32).reshape(-1, dim)
    return RaggedArray(values, splits_of_lengths(lengths))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9))))
def test_ranges_expand_as_the_naive_way(ranges: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in ranges], np.int64)
    lengths = np.array([length for _, length in ranges], np.int64)
    naive = [position for start, length in ranges for position in range(start, start + length)]
    expanded = expand_ranges(starts, lengths)
    assert expanded.dtype == np.int64
    assert expanded.tolist() == naive


def test_ranges_far_out_do_not_overflow() -> None:
    start = 1 << 60
    assert expand_ranges(np.array([start]), np.array([2])).tolist() == [start, start + 1]


@given(st.lists(st.integers(0, 5)))
def test_matrices_come_back_as_they_were_packed(lengths: list[int]) -> None:
    matrices = [np.full((length, 3), number, np.float32) for number, length in enumerate(lengths)]
    ragged = RaggedArray.from_matrices(matrices, dim=3)
    assert (len(ragged), ragged.dim, ragged.lengths.tolist()) == (len(lengths), 3, lengths)
    for matrix, packed in zip(matrices, ragged, strict=True):
        np.testing.assert_array_equal(packed, matrix, strict=True)


@pytest.mark.parametrize("shapes", [[(2, 4)], [(0,)], [(0, 4), (0, 4)], [(2, 3, 1)]])
def test_matrices_of_another_width_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"matrices must be \(num_tokens, 3\): got"):
        RaggedArray.from_matrices([np.zeros(shape) for shape in shapes], dim=3)


def test_one_text_is_got_by_position_from_either_end() -> None:
    ragged = _ragged([2, 0, 1])
    assert ragged[0].tolist() == [[0, 1], [2, 3]]
    assert ragged[1].shape == (0, 2)
    assert ragged[-1].tolist() == [[4, 5]]
    assert np.shares_memory(ragged[0], ragged.values)


@pytest.mark.parametrize("position", [3, -4, INT64_MAX])
def test_position_outside_is_an_index_error(position: int) -> None:
    with pytest.raises(IndexError, match=rf"text {position} of 3"):
        _ragged([2, 0, 1])[position]


@pytest.mark.parametrize(
    ("values", "splits", "reason"),
    [
        (np.zeros(3), [0, 3], r"values must be \(T, dim\)"),
        (np.zeros((3, 1)), [], r"values must be \(T, dim\)"),
        (np.zeros((3, 1)), [[0, 3]], r"values must be \(T, dim\)"),
        (np.zeros((3, 1)), [1, 3], "run from 0 to 3: got 1 to 3"),
        (np.zeros((3, 1)), [0, 2], "run from 0 to 3: got 0 to 2"),
        (np.zeros((3, 1)), [0, 4], "run from 0 to 3: got 0 to 4"),
        (np.zeros((3, 1)), [0, 2, 1, 3], "must not decrease"),
        # Each difference is 2^62 once it has wrapped around: subtracting would let it pass.
        (np.zeros((0, 1)), [0, 1 << 62, -(1 << 63), -(1 << 62), 0], "must not decrease"),
    ],
)
def test_what_does_not_fit_is_refused(values: Any, splits: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RaggedArray(values, np.array(splits, np.int64))
