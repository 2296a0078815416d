"""Prefetcher: the next batches are read while a step computes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

DEPTH = 2
"""Batches read ahead. One is enough to hide a read that takes as long as every other; the
second smooths the long ones."""


class Prefetcher(Generic[Item]):
    """Hands over what an iterator gives, a stream's batches, which a thread runs ahead of.

    A context manager and, inside it, an iterator; for one consumer thread. Leaving it, for
    whatever reason and however many batches are left, stops the thread and waits until it
    has ended: that takes one batch's reading at most. What the iterator raises is raised
    to the consumer in its place among the batches.

    Args:
        batches: The iterator; from ``__enter__`` on it belongs to the feed's thread.
        depth: Batches to read ahead, at least 1.
    """

    def __init__(self, batches: Iterator[Item], *, depth: int = DEPTH) -> None:
        self._batches = batches
        self._depth = depth
        self._ready: deque[Item] = deque()
        self._is_stopped = False  # by the consumer
        self._is_ended = False  # by the iterator
        self._error: BaseException | None = None
        # Guards the four above; both threads wait on it, so that nobody has to poll.
        self._changed = threading.Condition()
        # A daemon: a second Ctrl-C while the feed closes must not leave a process that hangs.
        self._thread = threading.Thread(target=self._run, name="batch-feed", daemon=True)
        self._waited_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds that the consumer has waited for batches."""
        return self._waited_s

    def __enter__(self) -> Prefetcher[Item]:
        self._thread.start()
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
        self._thread.join()

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        started = time.perf_counter()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._is_ended)
                if self._ready:
                    self._changed.notify_all()
                    return self._ready.popleft()
        finally:
            self._waited_s += time.perf_counter() - started
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _run(self) -> None:
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
