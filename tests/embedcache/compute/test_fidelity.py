"""Is what is stored what the module gives?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.compute.fidelity import (
    FIRST_SAMPLE,
    TEXTS_A_SAMPLE,
    Fidelity,
    FidelityReport,
)
from embedcache.errors import FidelityError
from embedcache.store.shards.codec import STORAGE_DTYPES, to_storage

PLACE = "corpus.txt:7"


def rows(*numbers: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([numbers], np.float32)


@settings(derandomize=True, deadline=None)
@given(
    numbers=st.lists(st.floats(-60_000, 60_000, width=32), min_size=1, max_size=20),
    dtype=st.sampled_from(sorted(STORAGE_DTYPES)),
)
def test_storing_alone_is_never_an_error(numbers: list[float], dtype: str) -> None:
    live = rows(*numbers)
    fidelity = Fidelity("m", dtype)
    fidelity.compare(to_storage(live, dtype), live, PLACE)
    assert fidelity.report.texts == 1


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-3), ("float16", 1e-3 + 2**-11)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_difference_up_to_the_tolerance_passes_and_a_larger_one_does_not(
    dtype: str, allowed: float, scale: float
) -> None:
    # The tolerance is a share of the largest number, of numbers below one that of one.
    allowed *= max(1.0, scale)
    stored = rows(scale, 0.0).astype(np.float16).astype(STORAGE_DTYPES[dtype])
    largest = float(stored[0, 0])
    Fidelity("m", dtype).compare(stored, rows(largest, 0.9 * allowed), PLACE)
    with pytest.raises(FidelityError, match=r"^corpus\.txt:7: in a batch m gives other") as caught:
        Fidelity("m", dtype).compare(stored, rows(largest, 1.1 * allowed), PLACE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_never_passes(bad: float) -> None:
    fidelity = Fidelity("m", "float32")
    with pytest.raises(FidelityError):
        fidelity.compare(rows(1.0, 2.0), rows(1.0, bad), PLACE)
    with pytest.raises(FidelityError):
        fidelity.compare_text(bad if bad > 0 else np.nan, PLACE)


def test_bag_of_words_must_combine_to_its_own_vector_where_it_has_one() -> None:
    fidelity = Fidelity("m", "float16")
    fidelity.compare_text(None, PLACE)
    fidelity.compare_text(0.0009, PLACE)
    with pytest.raises(FidelityError, match=r"^corpus\.txt:7: .*differ by 0\.0011\): .*sentence"):
        fidelity.compare_text(0.0011, PLACE)


def test_report_counts_texts_and_keeps_the_largest_difference() -> None:
    fidelity = Fidelity("m", "float32")
    assert fidelity.report == FidelityReport(0, 0.0)
    for difference in (0.0, 0.0005, 0.0002):
        fidelity.compare(rows(1.0, 0.0), rows(1.0, difference), PLACE)
    assert fidelity.report.texts == 3
    assert fidelity.report.max_difference == pytest.approx(0.0005)
    fidelity.compare(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), PLACE)
    assert fidelity.report.max_difference == pytest.approx(0.0005)


def test_first_buffer_is_sampled_more_than_those_after() -> None:
    fidelity = Fidelity("m", "float32")
    assert fidelity.sample_size(100) == FIRST_SAMPLE
    assert fidelity.sample_size(100) == 0
    assert fidelity.sample_size(TEXTS_A_SAMPLE) == 1
    assert fidelity.sample_size(3 * TEXTS_A_SAMPLE) == 3
