"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from cli.progress import ProgressBar, progress_line
from embedcache.precompute import BuildProgress

CommandLine = Any
Processes = Any


def _progress(
    texts: int = 12_000,
    *,
    misses: int = 800,
    waiting: int = 0,
    bytes_read: int = 25,
    total: int | None = 100,
    elsewhere: int = 0,
    is_blocked: bool = False,
) -> BuildProgress:
    return BuildProgress(texts, misses, waiting, bytes_read, total, elsewhere, is_blocked)


@pytest.mark.parametrize(
    ("progress", "seconds", "line"),
    [
        (_progress(), 3.0, " 25 % · 12,000 texts · 800 new · 4,000 texts/s · 0:09 left"),
        (_progress(bytes_read=0), 3.0, "  0 % · 12,000 texts · 800 new · 4,000 texts/s"),
        (_progress(total=None), 3.0, "12,000 texts · 800 new · 4,000 texts/s"),
        (_progress(total=0), 3.0, "12,000 texts · 800 new · 4,000 texts/s"),
        (_progress(bytes_read=100), 3.0,
         "100 % · 12,000 texts · 800 new · 4,000 texts/s · 0:00 left"),
        # A file that grows while it is read.
        (_progress(bytes_read=150), 3.0,
         "100 % · 12,000 texts · 800 new · 4,000 texts/s · 0:00 left"),
        # Read, but waiting for the module: not done.
        (_progress(waiting=6000, bytes_read=50), 3.0,
         " 25 % · 12,000 texts · 800 new · 2,000 texts/s · 0:09 left"),
        # The same of what another builder is computing.
        (_progress(waiting=2000, elsewhere=4000, bytes_read=50), 3.0,
         " 25 % · 12,000 texts · 800 new · 2,000 texts/s · 0:09 left"),
        (_progress(elsewhere=6000, bytes_read=100, is_blocked=True), 3.0,
         " 50 % · 12,000 texts · 800 new · 2,000 texts/s · waiting for other builders, which are"
         " at 6,000 · 0:03 left"),
        (_progress(bytes_read=1), 60.0,
         "  1 % · 12,000 texts · 800 new · 200 texts/s · 1:39:00 left"),
    ],
)  # fmt: skip
def test_line_tells_share_counts_rate_and_what_remains(
    progress: BuildProgress, seconds: float, line: str
) -> None:
    assert progress_line(progress, seconds=seconds, bar=False) == line


def test_line_needs_no_time_to_have_passed() -> None:
    assert progress_line(_progress(texts=0, total=None), seconds=0.0, bar=False).startswith("0 te")


@pytest.mark.parametrize(("done", "drawn"), [(0, 0), (25, 6), (50, 12), (99, 24), (100, 24)])
def test_bar_is_filled_by_the_share_that_is_read(done: int, drawn: int) -> None:
    line = progress_line(_progress(bytes_read=done), seconds=1.0, bar=True)
    assert line.startswith(f"[{'#' * drawn}{'.' * (24 - drawn)}] {done:3} % · ")


def test_bar_is_left_out_where_the_size_is_not_known() -> None:
    line = progress_line(_progress(total=None), seconds=1.0, bar=True)
    assert line.startswith("12,000 texts")


def test_plain_lines_are_written_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with ProgressBar(stream, interval_s=0.0) as bar:
        bar.show(_progress(1_000))
        bar.show(_progress(2_000, bytes_read=50))
    lines = stream.getvalue().splitlines(keepends=True)
    assert [line.split(" · ")[:2] for line in lines] == [
        [" 25 %", "1,000 texts"], [" 50 %", "2,000 texts"],
    ]  # fmt: skip
    assert all(line.endswith("\n") for line in lines)
    assert not set("\r\x1b[") & set(stream.getvalue())


def test_nothing_is_shown_twice_in_one_interval() -> None:
    stream = io.StringIO()
    with ProgressBar(stream, interval_s=3600.0) as bar:
        for _ in range(10):
            bar.show(_progress())
    assert stream.getvalue() == ""


def test_beginning_to_wait_for_other_builders_is_always_shown() -> None:
    stream = io.StringIO()
    with ProgressBar(stream, interval_s=3600.0) as bar:
        for is_blocked in (False, True, True, False, True):
            bar.show(_progress(elsewhere=7, is_blocked=is_blocked))
    assert stream.getvalue().count("waiting for other builders, which are at 7") == 2


class Terminal:
    """A pseudo-terminal: the stream that a program writes to, and what it was sent."""

    def __init__(self) -> None:
        self._reading, writing = pty.openpty()
        self.stream: TextIO = os.fdopen(writing, "w", encoding="utf-8")

    def seen(self) -> str:
        """What was written since the last call; something was."""
        self.stream.flush()
        pieces: list[bytes] = []
        # What was written at once may be read in pieces.
        while select.select([self._reading], [], [], 0.1)[0]:
            pieces.append(os.read(self._reading, 1 << 16))
        return b"".join(pieces).decode()

    def close(self) -> None:
        """Hang up."""
        self.stream.close()
        os.close(self._reading)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_terminal_gets_a_bar_that_is_drawn_anew_and_wiped(terminal: Terminal) -> None:
    with ProgressBar(terminal.stream, interval_s=0.0) as bar:
        bar.show(_progress())
        first = terminal.seen()
        bar.show(_progress(bytes_read=50))
        second = terminal.seen()
    for seen, share in ((first, " 25 %"), (second, " 50 %")):
        assert seen.startswith("\r[###")
        assert share in seen
        assert seen.endswith("\x1b[K")
        assert "\n" not in seen
    assert terminal.seen() == "\r\x1b[K"


def test_bar_is_wiped_before_an_error_is_told(terminal: Terminal) -> None:
    def fail() -> None:
        with ProgressBar(terminal.stream, interval_s=0.0) as bar:
            bar.show(_progress())
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert terminal.seen().endswith("\r\x1b[K")


def test_build_on_a_terminal_leaves_it_clean(
    ec: CommandLine, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    terminal: Terminal,
) -> None:  # fmt: skip
    monkeypatch.setattr("cli.progress._TERMINAL_INTERVAL_S", 0.0)
    monkeypatch.setattr("cli.build.ProgressBar", ProgressBar, raising=False)
    monkeypatch.setattr("cli.progress.sys", _SystemWith(terminal.stream))
    corpus = tmp_path / "a.txt"
    corpus.write_text("one\n" * 10_000, encoding="utf-8")
    ec.ok(copied, "build", corpus)
    seen = terminal.seen()
    # A batch is 4,096 documents; and once more when what was left is computed.
    assert seen.count("\r[") == 4
    assert "100 %" in seen
    assert seen.endswith("\r\x1b[K")


class _SystemWith:
    """What `cli.progress` uses of ``sys``."""

    def __init__(self, stderr: TextIO) -> None:
        self.stderr = stderr
