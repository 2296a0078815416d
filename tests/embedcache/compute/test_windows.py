"""Windows over long texts: each token once, with as much context as there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.compute.windows import check_lengths, plan_windows
from embedcache.errors import EncodingError
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED

fixed = settings(derandomize=True, deadline=None, max_examples=300)
some_lengths = st.lists(st.integers(0, 120), max_size=12)
limits = st.integers(1, 40)
overlaps = st.integers(0, 60)


@fixed
@given(lengths=some_lengths, limit=limits, overlap=overlaps)
def test_stitched_windows_keep_each_token_once_far_from_inner_edges(
    lengths: list[int], limit: int, overlap: int
) -> None:
    windows = plan_windows(np.array(lengths, np.int64), limit=limit, overlap=overlap, stitch=True)
    shared = min(overlap, limit // 2)
    for text, length in enumerate(lengths):
        (own,) = np.nonzero(windows.texts == text)
        kept = []
        for window in own.tolist():
            start, stop = int(windows.starts[window]), int(windows.stops[window])
            first, last = int(windows.keep_starts[window]), int(windows.keep_stops[window])
            assert 0 <= start <= first <= last <= stop <= length
            assert stop - start == min(limit, length), "every window is as long as it may be"
            assert start == 0 or first - start >= shared // 2
            assert stop == length or stop - last >= shared // 2
            kept += range(first, last)
        assert kept == [*range(length)]
        stride = limit - shared
        assert len(own) == 1 + max(0, -(-(length - limit) // stride)), "no more than are needed"
        assert windows.flags[text] == (FLAG_WINDOWED if length > limit else 0)
    assert len(windows) == len(windows.texts)
    assert (np.diff(windows.texts) >= 0).all()


@fixed
@given(lengths=some_lengths, limit=limits, overlap=overlaps)
def test_text_that_is_cut_keeps_its_beginning(lengths: list[int], limit: int, overlap: int) -> None:
    given_lengths = np.array(lengths, np.int64)
    windows = plan_windows(given_lengths, limit=limit, overlap=overlap, stitch=False)
    kept = np.minimum(given_lengths, limit)
    assert windows.texts.tolist() == [*range(len(lengths))]
    for starts, stops in (
        (windows.starts, windows.stops),
        (windows.keep_starts, windows.keep_stops),
    ):
        assert starts.tolist() == [0] * len(lengths)
        assert stops.tolist() == kept.tolist()
    assert windows.flags.tolist() == np.where(given_lengths > limit, FLAG_TRUNCATED, 0).tolist()


def test_token_of_an_overlap_is_kept_where_it_is_farther_from_the_edge() -> None:
    windows = plan_windows(np.array([10]), limit=6, overlap=2, stitch=True)
    assert [*zip(windows.starts.tolist(), windows.stops.tolist(), strict=True)] == [(0, 6), (4, 10)]
    kept = [*zip(windows.keep_starts.tolist(), windows.keep_stops.tolist(), strict=True)]
    assert kept == [(0, 5), (5, 10)]


def test_text_that_is_too_long_is_refused_with_its_place_only_where_the_view_says_so() -> None:
    lengths = np.array([3, 4, 9, 5])
    places = "corpus.txt:{}".format
    with pytest.raises(EncodingError, match=r"^corpus\.txt:1: 4 tokens, the limit is 3; raise"):
        check_lengths(lengths, 3, "error", places)
    check_lengths(lengths, 9, "error", places)
    for overflow in ("truncate", "window"):
        check_lengths(lengths, 3, overflow, places)
