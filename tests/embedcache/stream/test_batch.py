"""Batches, and the few lengths that they are padded on to."""

from __future__ import annotations

import numpy as np
import pytest

from embedcache.stream.batch import Batch, ladder_length, padded_length, padded_lengths, widen_batch


def make_batch(number: int, length: int = 8) -> Batch:
    values = np.full((2, length, 3), number, np.float16)
    lengths = np.full(2, length, np.int32)
    return Batch(values, lengths, np.full(2, number, np.int32), np.zeros((2, 16), np.uint8))


@pytest.mark.parametrize(
    ("length", "wide"),
    [(8, 8), (16, 16), (24, 24), (32, 32), (40, 48), (56, 64), (72, 96), (512, 512)],
)
def test_ladder_lengths_are_few_multiples_of_8(length: int, wide: int) -> None:
    assert ladder_length(length) == wide


def test_a_widened_batch_has_the_same_texts_and_zeros() -> None:
    wide = widen_batch(make_batch(7, length=40))
    assert wide.values.shape == (2, 48, 3)
    assert wide.values.dtype == np.float16
    assert np.all(wide.values[:, :40] == 7)
    assert np.all(wide.values[:, 40:] == 0)
    assert wide.lengths.tolist() == [40, 40]


def test_a_batch_that_is_on_the_ladder_is_not_copied() -> None:
    batch = make_batch(7, length=48)
    assert widen_batch(batch) is batch


def test_a_widened_batch_keeps_all_that_is_known_of_its_texts() -> None:
    numbers = np.arange(80, dtype=np.int32).reshape(2, 40)
    rows = np.array([5, 3])
    batch = Batch(*_arrays(make_batch(7, length=40)), token_numbers=numbers, rows=rows)
    wide = widen_batch(batch)
    assert wide.token_numbers is not None
    assert wide.token_numbers.dtype == np.int32
    np.testing.assert_array_equal(wide.token_numbers[:, :40], numbers)
    assert not wide.token_numbers[:, 40:].any()
    assert wide.rows is rows
    assert wide.keys is batch.keys


def _arrays(batch: Batch) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    return batch.values, batch.lengths, batch.labels, batch.keys


def test_padded_lengths_are_those_of_each_alone() -> None:
    lengths = np.arange(100)
    assert padded_lengths(lengths).tolist() == [padded_length(length) for length in range(100)]
