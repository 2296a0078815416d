"""Prefetcher: order, errors, and a thread that always ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from embedcache.stream import Batch, Prefetcher


def make_batch(number: int, length: int = 8) -> Batch:
    values = np.full((2, length, 3), number, np.float16)
    lengths = np.full(2, length, np.int32)
    return Batch(values, lengths, np.full(2, number, np.int32), np.zeros((2, 16), np.uint8))


def count_batches(taken: list[int], *, size: int = 1000) -> Iterator[Batch]:
    for number in range(size):
        taken.append(number)
        yield make_batch(number)


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-feed"]


@pytest.mark.parametrize("min_share", [0.0, 0.02, math.inf])
def test_batches_come_whole_and_in_order(min_share: float) -> None:
    taken: list[int] = []
    with Prefetcher(count_batches(taken, size=50), min_share=min_share) as feed:
        assert [int(batch.labels[0]) for batch in feed] == list(range(50))
        with pytest.raises(StopIteration):
            next(feed)
    assert not feed_threads()


def test_no_batches_are_no_batches() -> None:
    with Prefetcher(iter(())) as feed:
        assert list(feed) == []


def test_it_reads_ahead_but_no_further_than_its_depth() -> None:
    taken: list[int] = []
    with Prefetcher(count_batches(taken), depth=3, min_share=0) as feed:
        next(feed)
        deadline = time.monotonic() + 5
        while len(taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        # One handed over, three that wait, and one in the thread's hand.
        assert taken == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_the_thread_ends_when_the_consumer_raises(error: type[BaseException]) -> None:
    taken: list[int] = []

    def consume() -> None:
        with Prefetcher(count_batches(taken), min_share=0) as feed:
            next(feed)
            raise error

    with pytest.raises(error):
        consume()
    assert not feed_threads()
    assert len(taken) < 10


def test_the_thread_ends_when_nothing_is_taken() -> None:
    with Prefetcher(count_batches([]), min_share=0):
        pass
    assert not feed_threads()


@pytest.mark.parametrize("min_share", [0.0, math.inf])
def test_what_the_iterator_raises_comes_after_the_batches_before_it(min_share: float) -> None:
    def broken() -> Iterator[Batch]:
        yield make_batch(0)
        raise OSError("disk on fire")

    with Prefetcher(broken(), min_share=min_share) as feed:
        assert int(next(feed).labels[0]) == 0
        with pytest.raises(OSError, match="disk on fire"):
            next(feed)
    assert not feed_threads()


@pytest.mark.parametrize("min_share", [0.0, math.inf])
def test_the_time_that_the_consumer_waits_is_measured(min_share: float) -> None:
    def slow() -> Iterator[Batch]:
        for number in range(3):
            time.sleep(0.03)
            yield make_batch(number)

    with Prefetcher(slow(), min_share=min_share) as feed:
        list(feed)
    assert 0.06 < feed.waited_s < 3


def test_time_that_the_consumer_spends_elsewhere_is_not_waiting() -> None:
    with Prefetcher(count_batches([], size=3), depth=3, min_share=0) as feed:
        for _ in feed:
            time.sleep(0.05)
    assert feed.waited_s < 0.1


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def read_batches(clock: Clock, seconds: Iterator[float]) -> Iterator[Batch]:
    for number, took in enumerate(seconds):
        clock.now += took
        yield make_batch(number)


def consume(clock: Clock, seconds: list[float]) -> list[bool]:
    """After each batch, whose step takes a second, whether a thread reads."""
    with Prefetcher(read_batches(clock, iter(seconds)), clock=clock) as feed:
        ahead = []
        for number, batch in enumerate(feed):
            assert int(batch.labels[0]) == number
            ahead.append(feed.is_ahead)
            assert bool(feed_threads()) <= feed.is_ahead
            if not feed.is_ahead:
                clock.now += 1.0
    assert len(ahead) == len(seconds)
    return ahead


def test_cheap_reading_needs_no_thread() -> None:
    assert not any(consume(Clock(), [0.01] * 50))


def test_dear_reading_is_left_to_a_thread() -> None:
    ahead = consume(Clock(), [0.06] * 50)
    assert ahead == [False] * 8 + [True] * 42


def test_the_planning_of_an_epoch_does_not_count() -> None:
    assert not any(consume(Clock(), [60.0] + [0.01] * 49))


def test_a_disk_that_turns_slow_is_noticed() -> None:
    ahead = consume(Clock(), [0.001] * 20 + [0.5] * 30)
    assert not any(ahead[:20])
    assert all(ahead[-20:])
