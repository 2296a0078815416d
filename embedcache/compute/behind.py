"""One step behind: what a batch leaves to do is done while the next one computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class OneBehind:
    """Runs one task at a time in a thread of its own; a context manager.

    Leaving it waits for the task that is running. An error of a task is raised at the next
    call of `submit`, or on leaving; not if the block is left by an error of its own, which
    comes first. Ctrl-C goes to the main thread only: a task is never torn.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="embedcache-behind")
        self._running: Future[None] | None = None

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(wait=True)
        if kind is None:
            self._wait()

    def submit(self, task: Callable[[], None]) -> None:
        """Start a task once the one before it has ended."""
        self._wait()
        self._running = self._executor.submit(task)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()
