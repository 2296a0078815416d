"""Progress of a build on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from cli.terminal_line import TerminalLine, draw_bar, format_clock

if TYPE_CHECKING:
    from embedcache.precompute import BuildProgress

_TERMINAL_INTERVAL_S = 0.1
_PLAIN_INTERVAL_S = 10.0


class ProgressBar:
    """Shows how far a build is, with its rate and the time that remains; a context manager.

    Args:
        stream: Where to; None is standard error.
        interval_s: Seconds between two updates; None: a tenth on a terminal, ten elsewhere.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float | None = None) -> None:
        self._line = TerminalLine(stream or sys.stderr)
        default_s = _TERMINAL_INTERVAL_S if self._line.is_terminal else _PLAIN_INTERVAL_S
        self._interval_s = default_s if interval_s is None else interval_s
        self._started = self._shown = time.monotonic()
        self._is_blocked = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.wipe()

    def show(self, progress: BuildProgress) -> None:
        """Show this, unless something was shown a moment ago.

        That it begins to wait for other builders is always shown: nothing may come for long.
        """
        now = time.monotonic()
        begins_to_wait = progress.is_blocked and not self._is_blocked
        self._is_blocked = progress.is_blocked
        if now - self._shown < self._interval_s and not begins_to_wait:
            return
        self._shown = now
        is_drawn = self._line.is_terminal
        self._line.write(progress_line(progress, seconds=now - self._started, bar=is_drawn))


def progress_line(progress: BuildProgress, *, seconds: float, bar: bool) -> str:
    """``[######……] 25 % · 12,000 texts · 800 new · 4,000 texts/s · 0:09 left``."""
    # What was read but waits to be computed, here or by another builder, is not done.
    unfinished = progress.waiting + progress.elsewhere
    rate = (progress.texts - unfinished) / max(seconds, 1e-9)
    parts = [f"{progress.texts:,} texts", f"{progress.misses:,} new", f"{rate:,.0f} texts/s"]
    if progress.is_blocked:
        parts.append(f"waiting for other builders, which are at {progress.elsewhere:,}")
    if progress.bytes_total:
        finished = 1 - unfinished / max(1, progress.texts)
        done = min(1.0, progress.bytes_read / progress.bytes_total) * finished
        drawn = f"{draw_bar(done)} " if bar else ""
        parts.insert(0, f"{drawn}{100 * done:3.0f} %")
        if done > 0:
            parts.append(f"{format_clock(seconds * (1 - done) / done)} left")
    return " · ".join(parts)
