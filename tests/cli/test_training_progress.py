"""Progress of a training: a live line on a terminal, a plain line an epoch elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from dataclasses import replace
from typing import TextIO

import pytest

from cli.training_progress import (
    TrainingProgress,
    epoch_line,
    remaining_seconds,
    step_line,
)
from cnn.metrics import Scores
from cnn.progress import EpochReport, StepReport

STEP = StepReport(
    fold=None, epoch=3, epochs=25, step=50, steps=200, loss=0.43121, accuracy=0.8124, seconds=2.5
)
EPOCH = EpochReport(
    fold=None, epoch=3, epochs=25, steps=200, train_loss=0.41, train_accuracy=0.82,
    dev=Scores(accuracy=0.796, macro_f1=0.79, loss=0.4404), is_best=True, seconds=12.0,
    step_s=9.0, wait_s=0.1,
)  # fmt: skip


class Terminal:
    """A pseudo-terminal of some width: the stream that is written to, and what it was sent."""

    def __init__(self) -> None:
        self._reading, self._writing = pty.openpty()
        self.stream: TextIO = os.fdopen(self._writing, "w", encoding="utf-8")

    def resize(self, columns: int) -> None:
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._writing, termios.TIOCSWINSZ, size)

    def seen(self) -> str:
        self.stream.flush()
        pieces: list[bytes] = []
        while select.select([self._reading], [], [], 0.1)[0]:
            pieces.append(os.read(self._reading, 1 << 16))
        return b"".join(pieces).decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._reading)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_step_line_tells_epoch_loss_accuracy_time_left_and_rate() -> None:
    assert step_line(STEP, best=None, folds=1, remaining_s=134.0) == (
        "epoch  3/25 [##........] · loss 0.4312 · accuracy 81.2 % · at most 2:14 left"
        " · 20.0 steps/s"
    )


def test_step_line_of_a_cross_validation_tells_the_fold_and_the_best_dev_score() -> None:
    step, best = replace(STEP, fold=1), replace(EPOCH, fold=1)
    line = step_line(step, best=best, folds=10, remaining_s=3999.0)
    assert line.startswith("fold 2/10 epoch  3/25 [")
    assert "at most 1:06:39 left" in line
    assert line.endswith("best dev 79.6 %")


def test_step_line_needs_no_time_to_have_passed() -> None:
    line = step_line(replace(STEP, seconds=0.0), best=None, folds=1, remaining_s=0.0)
    assert line.endswith("at most 0:00 left")


@pytest.mark.parametrize(
    ("report", "epoch_seconds", "folds", "seconds"),
    [
        # A quarter of an epoch in 2.5 s: ten an epoch, 22 and three quarters of them left.
        (STEP, [], 1, 227.5),
        (STEP, [12.0], 1, 273.0),
        # The first epoch compiles: the later ones tell.
        (STEP, [60.0, 12.0], 1, 273.0),
        (replace(STEP, epoch=25, step=200), [12.0], 1, 0.0),
        (replace(STEP, fold=0, epoch=25, step=200), [12.0], 3, 600.0),
        (replace(STEP, fold=2, epoch=25, step=200), [12.0], 3, 0.0),
    ],
)
def test_remaining_time_is_that_of_all_epochs_and_folds(
    report: StepReport, epoch_seconds: list[float], folds: int, seconds: float
) -> None:
    assert remaining_seconds(report, epoch_seconds, folds=folds) == pytest.approx(seconds)


def test_epoch_line_tells_losses_accuracy_and_whether_it_is_the_best() -> None:
    assert epoch_line(EPOCH) == (
        "epoch  3: loss 0.4100, dev loss 0.4404, dev accuracy 79.6 %, 12.0 s  *"
    )
    assert epoch_line(replace(EPOCH, fold=4, is_best=False)) == (
        "fold 5, epoch  3: loss 0.4100, dev loss 0.4404, dev accuracy 79.6 %, 12.0 s"
    )


def test_elsewhere_there_is_one_plain_line_an_epoch() -> None:
    stream = io.StringIO()
    with TrainingProgress(stream, interval_s=0.0) as progress:
        for step in range(1, 201):
            progress.on_step(replace(STEP, step=step))
        progress.on_epoch(EPOCH)
        progress.on_epoch(replace(EPOCH, epoch=4, is_best=False))
    assert stream.getvalue() == (
        f"{epoch_line(EPOCH)}\n{epoch_line(replace(EPOCH, epoch=4, is_best=False))}\n"
    )


def test_terminal_has_one_line_that_is_drawn_anew_and_wiped(terminal: Terminal) -> None:
    with TrainingProgress(terminal.stream, interval_s=0.0) as progress:
        progress.on_step(STEP)
        first = terminal.seen()
        progress.on_epoch(EPOCH)
        progress.on_step(replace(STEP, epoch=4))
        second = terminal.seen()
    assert first.startswith("\repoch  3/25 [##")
    assert "best dev" not in first
    assert "best dev 79.6 %" in second
    for seen in (first, second):
        assert seen.endswith("\x1b[K")
        assert "\n" not in seen
    assert terminal.seen() == "\r\x1b[K"


def test_best_score_of_another_fold_is_not_shown(terminal: Terminal) -> None:
    with TrainingProgress(terminal.stream, folds=2, interval_s=0.0) as progress:
        progress.on_epoch(replace(EPOCH, fold=0))
        progress.on_step(replace(STEP, fold=1))
        assert "best dev" not in terminal.seen()


def test_line_is_not_drawn_twice_in_one_interval_but_at_the_end_of_an_epoch(
    terminal: Terminal,
) -> None:
    with TrainingProgress(terminal.stream, interval_s=3600.0) as progress:
        for step in range(1, 201):
            progress.on_step(replace(STEP, step=step))
        assert terminal.seen().count("\r") == 2


def test_line_never_wraps_on_a_narrow_terminal(terminal: Terminal) -> None:
    terminal.resize(40)
    with TrainingProgress(terminal.stream, interval_s=0.0) as progress:
        progress.on_step(STEP)
        shown = terminal.seen().removeprefix("\r").removesuffix("\x1b[K")
    assert shown.startswith("epoch  3/25 [##........] · loss 0.4312")
    assert len(shown) == 39
    assert shown.endswith("…")


def test_line_is_wiped_before_an_error_is_told(terminal: Terminal) -> None:
    def fail() -> None:
        with TrainingProgress(terminal.stream, interval_s=0.0) as progress:
            progress.on_step(STEP)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert terminal.seen().endswith("\r\x1b[K")
