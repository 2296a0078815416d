"""Numbers at rest: what each storage dtype keeps of a number, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedcache.store.shards.codec import (
    STORAGE_DTYPES,
    VALUE_DTYPES,
    BadRowError,
    ReconstructionError,
    from_storage,
    join_scales,
    row_width,
    split_scales,
    to_storage,
)
from embedcache.view import STORAGE_DTYPES as DTYPES_OF_VIEWS

LARGEST_BFLOAT16 = 3.3895313892515355e38
"""0x7F7F: sign 0, exponent 254, seven ones: (2 - 2**-7) · 2**127."""


def _rows(*numbers: float) -> NDArray[np.float32]:
    return np.array([numbers], np.float32)


def _through(rows: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    return from_storage(to_storage(rows, dtype), dtype)


def test_views_may_have_just_the_dtypes_that_can_be_stored() -> None:
    assert set(DTYPES_OF_VIEWS) == set(STORAGE_DTYPES) == set(VALUE_DTYPES)


@pytest.mark.parametrize("dtype", sorted(STORAGE_DTYPES))
@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_rows_come_back_in_shape_and_value_dtype(dtype: str, num_rows: int) -> None:
    rows = np.random.default_rng(0).standard_normal((num_rows, 5)).astype(np.float32)
    stored = to_storage(rows, dtype)
    assert stored.shape == (num_rows, row_width(5, dtype))
    assert stored.dtype == STORAGE_DTYPES[dtype]
    back = from_storage(stored, dtype)
    assert (back.shape, back.dtype) == (rows.shape, VALUE_DTYPES[dtype])


@pytest.mark.parametrize(
    ("number", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (-0.0, 0x8000),
        (1.0 + 2**-8, 0x3F80),  # half way: to the even one below
        (1.0 + 3 * 2**-8, 0x3F82),  # half way: to the even one above
        (1.0 + 2**-8 + 2**-20, 0x3F81),
        (2.0**-133, 0x0001),
        (LARGEST_BFLOAT16, 0x7F7F),
    ],
)
def test_bfloat16_is_rounded_to_nearest_ties_to_even(number: float, bits: int) -> None:
    assert to_storage(_rows(number), "bfloat16").tolist() == [[bits]]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@settings(max_examples=500, derandomize=True)
def test_bfloat16_is_the_nearest_there_is(number: float) -> None:
    if abs(number) > LARGEST_BFLOAT16:
        return
    (back,) = _through(_rows(number), "bfloat16")[0].tolist()
    bits = int(to_storage(_rows(number), "bfloat16")[0, 0])
    for neighbour in (bits - 1, bits + 1):
        if 0 <= neighbour & 0x7FFF < 0x7F80 and neighbour >> 15 == bits >> 15:
            other = float(np.array([neighbour << 16], np.uint32).view(np.float32)[0])
            assert abs(back - number) <= abs(other - number)


def test_int8_keeps_the_largest_number_of_a_row_and_its_scale() -> None:
    rows = np.array([[1.27, -0.64, 0.0], [0.0, 0.0, 0.0], [-254.0, 2.0, 1.0]], np.float32)
    numbers, scales = split_scales(to_storage(rows, "int8"))
    assert numbers.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 1, 0]]
    np.testing.assert_allclose(scales, [0.01, 0.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(join_scales(numbers, scales), to_storage(rows, "int8"))
    np.testing.assert_array_equal(
        from_storage(to_storage(rows, "int8"), "int8"), numbers * scales[:, None].astype(np.float32)
    )


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
@settings(max_examples=500, derandomize=True)
def test_int8_is_off_by_half_a_step_at_most(numbers: list[float]) -> None:
    rows = _rows(*numbers)
    largest = float(np.abs(rows).max())
    with np.errstate(over="raise"):
        back = _through(rows, "int8").astype(np.float64)
    # 126 of 127: the scale itself is rounded, for numbers near the least normal one most.
    assert np.abs(back - rows).max() <= max(0.5 * largest / 126, 127 * 2.0**-126)


@pytest.mark.parametrize("dtype", sorted(STORAGE_DTYPES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_row(dtype: str, bad: float) -> None:
    rows = np.ones((4, 3), np.float32)
    rows[2, 1] = bad
    with pytest.raises(BadRowError, match="NaN or infinity") as caught:
        to_storage(rows, dtype)
    assert caught.value.row == 2


@pytest.mark.parametrize(("dtype", "number"), [("float16", 65520.0), ("bfloat16", 3.4e38)])
def test_what_is_too_large_is_refused_by_its_row(dtype: str, number: float) -> None:
    rows = np.ones((4, 3), np.float32)
    rows[3, 0] = -number
    with pytest.raises(BadRowError, match=f"too large for {dtype}; use --dtype float32") as caught:
        to_storage(rows, dtype)
    assert caught.value.row == 3


def test_error_of_storing_is_measured() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    stored = np.array([[3.5, 4.0], [0.0, 0.0]], np.float16)
    error = ReconstructionError()
    error.add(rows, stored, "float16")
    assert (error.rows, error.squared_error, error.squared_norm) == (2, 0.25, 25.0)
    assert error.max_error == 0.5 / 4
    error.add(rows, rows.astype(np.float16), "float16")
    assert (error.rows, error.squared_error, error.squared_norm) == (4, 0.25, 50.0)
    assert error.max_error == 0.5 / 4


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", 0, 0),
        ("float16", 1e-5, 2**-11),
        ("bfloat16", 1e-4, 2**-8),
        ("int8", 1e-3, 0.5 / 126),
    ],
)
def test_error_of_each_dtype_is_what_its_last_bit_says(dtype: str, low: float, high: float) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    error = ReconstructionError()
    error.add(rows, to_storage(rows, dtype), dtype)
    assert 200 <= error.rows <= 256
    assert low <= error.max_error <= high


def test_error_of_nothing_is_nothing() -> None:
    error = ReconstructionError()
    error.add(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float16), "float16")
    assert error == ReconstructionError()
