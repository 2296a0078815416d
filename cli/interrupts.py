"""Ctrl-C and SIGTERM between two steps of a training, so that nothing has to be done again."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StepInterrupts:
    """Holds a signal back until `check` is called; a context manager.

    The first call of `check` says that there will be more: until then, and at a second signal,
    KeyboardInterrupt is raised at once. Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self._is_checked = False
        self._is_waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StepInterrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        self._is_checked = True
        if self._is_waiting:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if not self._is_checked or self._is_waiting:
            raise KeyboardInterrupt
        self._is_waiting = True
