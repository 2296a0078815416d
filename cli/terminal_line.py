"""One line on standard error that is drawn anew on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys
from types import TracebackType
from typing import Self, TextIO

BAR_WIDTH = 24


class TerminalLine:
    """Where progress goes; a context manager that leaves a terminal's line empty.

    Args:
        stream: Where to; None is standard error.

    Attributes:
        is_terminal: Whether the line can be drawn anew.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        # Python sets sys.stderr to None where the descriptor is closed: `2>&-`.
        self._stream = stream or sys.stderr or io.StringIO()
        self.is_terminal = self._stream.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wipe()

    def write(self, line: str) -> None:
        """Draw the line over the one before; a line of its own where there is no terminal."""
        if self.is_terminal:
            self._stream.write(f"\r{self._cut(line)}\x1b[K")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def wipe(self) -> None:
        """Empty the terminal's line; nothing elsewhere."""
        if self.is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _cut(self, line: str) -> str:
        """As much of the line as the terminal is wide: one that wraps is not drawn over."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            columns = 0
        # 0: it does not tell. A character in the last column makes some terminals wrap.
        return line if columns == 0 or len(line) < columns else line[: max(0, columns - 2)] + "…"


def draw_bar(done: float, *, width: int = BAR_WIDTH) -> str:
    """``0.25`` → ``[######..................]``."""
    filled = round(width * done)
    return "[" + "#" * filled + "." * (width - filled) + "]"


def format_clock(seconds: float) -> str:
    """``99`` → ``1:39``; ``5940`` → ``1:39:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
