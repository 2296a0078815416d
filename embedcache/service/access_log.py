"""AccessLog: a line of JSON for each request, on standard error. Nothing of a text is in it."""

from __future__ import annotations

import os
import threading
from typing import Any

import orjson

_MAX_WAITING = 16384
"""Of lines that nobody takes off the other end; the rest are counted and dropped."""

_FLUSH_S = 0.1


class AccessLog:
    """Lines that a thread of its own writes, so that a slow reader holds up no request.

    Args:
        descriptor: The file to write to; standard error.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._dropped = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Have a line written: JSON values under names."""
        line = orjson.dumps(record)
        with self._lock:
            if len(self._lines) >= _MAX_WAITING:
                self._dropped += 1
                return
            self._lines.append(line)
            is_first = len(self._lines) == 1
        if is_first:
            self._start()
            self._wake.set()

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Write what waits, for so long at most."""
        self._is_closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: a reader that takes nothing must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._is_closed.is_set():
            self._wake.wait()
            self._wake.clear()
            # What comes within this time is written in one go: a system call, and a turn of
            # the interpreter's lock, for many lines.
            self._is_closed.wait(_FLUSH_S)
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(orjson.dumps({"event": "log_lines_dropped", "lines": dropped}))
        left = memoryview(b"".join(line + b"\n" for line in lines))
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            # Nobody reads any more; the service goes on, as its metrics do.
            return
