"""The mean of rows, compared with sums in Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedcache.ragged import RaggedArray
from embedcache.service.pooling import mean_rows

DIM = 3
_LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=6)


def _ragged(lengths: list[int], dtype: type, seed: int = 0) -> RaggedArray:
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(0, 1, (length, DIM)).astype(dtype) for length in lengths]
    values = np.concatenate([np.zeros((0, DIM), dtype), *matrices])
    return RaggedArray(values, np.cumsum([0, *lengths]))


@given(lengths=_LENGTHS, dtype=st.sampled_from([np.float16, np.float32]))
def test_means_are_those_of_the_rows_wherever_empty_texts_stand(
    lengths: list[int], dtype: type
) -> None:
    features = _ragged(lengths, dtype)
    means = mean_rows(features, normalize=False)
    assert means.dtype == np.float32
    assert means.shape == (len(lengths), DIM)
    for mean, matrix in zip(means, features, strict=True):
        columns = matrix.astype(np.float64).T.tolist()
        expected = [math.fsum(column) / max(1, len(column)) for column in columns]
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-12)


@given(lengths=_LENGTHS)
def test_a_texts_mean_does_not_depend_on_its_neighbours(lengths: list[int]) -> None:
    features = _ragged(lengths, np.float32)
    together = mean_rows(features, normalize=True)
    for place, matrix in enumerate(features):
        alone = RaggedArray(matrix, np.array([0, len(matrix)]))
        np.testing.assert_allclose(
            mean_rows(alone, normalize=True)[0], together[place], rtol=1e-6, atol=1e-12
        )


@given(lengths=_LENGTHS)
def test_normalised_means_have_length_one_but_for_texts_without_rows(lengths: list[int]) -> None:
    means = mean_rows(_ragged(lengths, np.float32), normalize=True)
    norms = np.linalg.norm(means.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, [1.0 if length else 0.0 for length in lengths], rtol=1e-6)


def test_rows_that_cancel_out_give_zeros_and_no_warning() -> None:
    rows = np.array([[1, -2, 3], [-1, 2, -3]], np.float32)
    means = mean_rows(RaggedArray(rows, np.array([0, 2])), normalize=True)
    np.testing.assert_array_equal(means, np.zeros((1, 3), np.float32), strict=True)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_largest_numbers_do_not_overflow(normalize: bool) -> None:
    largest = np.finfo(np.float32).max
    rows = np.full((512, 2), largest, np.float32)
    means = mean_rows(RaggedArray(rows, np.array([0, 512])), normalize=normalize)
    expected = np.sqrt(0.5) if normalize else largest
    np.testing.assert_allclose(means, np.full((1, 2), expected), rtol=1e-6)


@given(values=arrays(np.float32, (2, DIM), elements=st.floats(-1e3, 1e3, width=32)))
def test_two_equal_texts_have_bit_equal_means(values: np.ndarray) -> None:
    doubled = RaggedArray(np.concatenate([values, values]), np.array([0, 2, 4]))
    means = mean_rows(doubled, normalize=True)
    np.testing.assert_array_equal(means[0], means[1])
