"""Prefetcher: the next batches are read while a step computes, where that gains anything."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

DEPTH = 2
"""Batches read ahead. One is enough to hide a read that takes as long as every other; the
second smooths the long ones."""
MIN_SHARE = 0.04
"""From which share of the consumer's time on reading is left to the thread. Below, there is less
to gain than it costs: where a step computes on every core, the thread takes turns with it for
Python's lock and for the cores. On two of them an epoch of ``kim`` on SST-2, of which reading was
2 %, took 3 % longer than its steps with the thread, and 2 % without: what was read just before a
step is still in the caches then. By now reading is 1.3 % of it, and adds 1.7 % (B2)."""
_WINDOW = 8
"""Batches whose reading is timed before it is decided: again and again, as a disk may turn slow."""


class Prefetcher(Generic[Item]):
    """Hands over what an iterator gives, a stream's batches, which a thread runs ahead of.

    The first batches are read when they are asked for. Once reading takes a noticeable share of
    the time, as from a disk or over a network, a thread reads all that follow.

    A context manager and, inside it, an iterator; for one consumer thread. Leaving it, for
    whatever reason and however many batches are left, stops the thread and waits until it
    has ended: that takes one batch's reading at most. What the iterator raises is raised
    to the consumer in its place among the batches.

    Args:
        batches: The iterator; from ``__enter__`` on it belongs to the feed.
        depth: Batches to read ahead, at least 1.
        min_share: Share of the consumer's time from which on a thread reads; 0: from the first
            batch on.
        clock: Seconds.
    """

    def __init__(
        self,
        batches: Iterator[Item],
        *,
        depth: int = DEPTH,
        min_share: float = MIN_SHARE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._batches = batches
        self._depth = depth
        self._min_share = min_share
        self._clock = clock
        self._window = _Window()
        self._ready: deque[Item] = deque()
        self._is_stopped = False  # by the consumer
        self._is_ended = False  # by the iterator
        self._error: BaseException | None = None
        # Guards the four above; both threads wait on it, so that nobody has to poll.
        self._changed = threading.Condition()
        # A daemon: a second Ctrl-C while the feed closes must not leave a process that hangs.
        self._thread = threading.Thread(target=self._run, name="batch-feed", daemon=True)
        self._is_ahead = False
        self._waited_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds that the consumer has waited for batches."""
        return self._waited_s

    @property
    def is_ahead(self) -> bool:
        """Whether a thread reads."""
        return self._is_ahead

    def __enter__(self) -> Prefetcher[Item]:
        if self._min_share <= 0:
            self._run_ahead()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_stopped = True
            self._ready.clear()
            self._changed.notify_all()
        if self._is_ahead:
            self._thread.join()

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        was_ahead, started = self._is_ahead, self._clock()
        try:
            batch = self._take() if was_ahead else next(self._batches)
        finally:
            ended = self._clock()
            self._waited_s += ended - started
        if not was_ahead:
            self._weigh(started, ended)
        return batch

    def _take(self) -> Item:
        """The next batch that the thread has read."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_ended)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _weigh(self, started: float, ended: float) -> None:
        """Begin the thread if reading takes too large a share of the time."""
        window = self._window
        window.add(started, ended)
        if window.num_batches == _WINDOW:
            self._window = _Window(ended)
            if window.reading_s >= self._min_share * (ended - window.began):
                self._run_ahead()

    def _run_ahead(self) -> None:
        self._is_ahead = True
        self._thread.start()

    def _run(self) -> None:
        """What the thread does."""
        error: BaseException | None = None
        try:
            for batch in self._batches:
                if not self._offer(batch):
                    break
        except BaseException as raised:
            error = raised
        with self._changed:
            self._error = error
            self._is_ended = True
            self._changed.notify_all()

    def _offer(self, batch: Item) -> bool:
        """Wait for a place for a batch; False if the consumer has gone instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or len(self._ready) < self._depth)
            if not self._is_stopped:
                self._ready.append(batch)
                self._changed.notify_all()
            return not self._is_stopped


class _Window:
    """How long some batches took to be read.

    Args:
        began: When the first of them could be asked for; None: the first batch begins it and
            does not count: an epoch is planned before it.

    Attributes:
        num_batches: Batches that count.
        reading_s: Seconds that reading them took.
    """

    __slots__ = ("_began", "num_batches", "reading_s")

    def __init__(self, began: float | None = None) -> None:
        self._began = began
        self.num_batches = 0
        self.reading_s = 0.0

    @property
    def began(self) -> float:
        """When it began."""
        return self._began or 0.0

    def add(self, started: float, ended: float) -> None:
        """One more batch, read from ``started`` to ``ended``."""
        if self._began is None:
            self._began = ended
            return
        self.num_batches += 1
        self.reading_s += ended - started
