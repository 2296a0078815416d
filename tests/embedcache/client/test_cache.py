"""FeatureCache: bounded, and the least recently used goes first."""

from __future__ import annotations

import pytest

from embedcache.client.cache import ENTRY_BYTES, FeatureCache


def test_what_is_kept_is_found() -> None:
    cache = FeatureCache(10_000)
    cache.keep([(b"a", b"1"), (b"b", b"")])
    assert cache.find([b"b", b"c", b"a"]) == [b"", None, b"1"]
    assert b"a" in cache
    assert b"c" not in cache


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(3 * (ENTRY_BYTES + 10))
    for name in (b"a", b"b", b"c"):
        cache.keep([(name, bytes(10))])
    cache.find([b"a"])
    assert b"b" in cache  # which does not count as used
    cache.keep([(b"d", bytes(10))])
    assert [name in cache for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


@pytest.mark.parametrize("max_bytes", [0, 1, 5_000, 1 << 20])
def test_no_more_is_kept_than_may_be(max_bytes: int) -> None:
    cache = FeatureCache(max_bytes)
    for number in range(100):
        cache.keep([(b"%d" % number, bytes(number)), (b"%d" % (number // 2), bytes(7))])
        assert cache.num_bytes <= max_bytes
    assert len(cache) <= max_bytes // ENTRY_BYTES
    assert (len(cache) == 100) == (max_bytes == 1 << 20)
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_what_is_larger_than_all_of_it_is_not_kept() -> None:
    cache = FeatureCache(1000)
    cache.keep([(b"a", bytes(10)), (b"large", bytes(2000))])
    assert b"large" not in cache
    assert cache.num_bytes <= 1000
