"""Progress of a training on standard error: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from cli.common import percent
from cli.terminal_line import TerminalLine, draw_bar, format_clock

if TYPE_CHECKING:
    from cnn.progress import EpochReport, StepReport

_INTERVAL_S = 0.1
_BAR_WIDTH = 10


class TrainingProgress:
    """Shows how far a training is; a context manager, whose methods `cnn.train` calls.

    On a terminal one line that is drawn anew: epoch, a bar over its steps, loss and accuracy
    so far, the best dev accuracy, steps a second, and the time that remains if no epoch is
    spared by early stopping. Elsewhere one plain line an epoch.

    Args:
        stream: Where to; None is standard error.
        folds: How many trainings there will be; None: one.
        interval_s: Seconds between two updates on a terminal.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        folds: int | None = None,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._line = TerminalLine(stream)
        self._folds = folds or 1
        self._interval_s = interval_s
        self._shown = -float("inf")
        self._epoch_seconds: list[float] = []
        self._best: EpochReport | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.wipe()

    def on_step(self, report: StepReport) -> None:
        """Show a step, unless something was shown a moment ago; nothing off a terminal."""
        if not self._line.is_terminal:
            return
        now = time.monotonic()
        if now - self._shown < self._interval_s and report.step < report.steps:
            return
        self._shown = now
        best = self._best if self._best and self._best.fold == report.fold else None
        remaining_s = remaining_seconds(report, self._epoch_seconds, folds=self._folds)
        self._line.write(step_line(report, best=best, folds=self._folds, remaining_s=remaining_s))

    def on_epoch(self, report: EpochReport) -> None:
        """Show a finished epoch."""
        self._epoch_seconds.append(report.seconds)
        if report.is_best:
            self._best = report
        if not self._line.is_terminal:
            self._line.write(epoch_line(report))


def step_line(
    report: StepReport, *, best: EpochReport | None, folds: int, remaining_s: float
) -> str:
    """``epoch 3/25 [####……] · loss 0.43 · accuracy 81.2 % · at most 2:14 left · …``.

    What matters less comes last: a narrow terminal cuts it.
    """
    fold = "" if report.fold is None else f"fold {report.fold + 1}/{max(folds, report.fold + 1)} "
    bar = draw_bar(report.step / report.steps, width=_BAR_WIDTH)
    parts = [
        f"{fold}epoch {report.epoch:{len(str(report.epochs))}}/{report.epochs} {bar}",
        f"loss {report.loss:.4f}",
        f"accuracy {percent(report.accuracy)}",
        f"at most {format_clock(remaining_s)} left",
    ]
    if report.seconds > 0:
        parts.append(f"{report.step / report.seconds:,.1f} steps/s")
    if best is not None:
        parts.append(f"best dev {percent(best.dev.accuracy)}")
    return " · ".join(parts)


def epoch_line(report: EpochReport) -> str:
    """``epoch  3: loss 0.4312, dev loss 0.4404, dev accuracy 79.6 %, 6.1 s  *``."""
    fold = "" if report.fold is None else f"fold {report.fold + 1}, "
    best = "  *" if report.is_best else ""
    return (
        f"{fold}epoch {report.epoch:2}: loss {report.train_loss:.4f},"
        f" dev loss {report.dev.loss:.4f}, dev accuracy {percent(report.dev.accuracy)},"
        f" {report.seconds:.1f} s{best}"
    )


def remaining_seconds(report: StepReport, epoch_seconds: list[float], *, folds: int) -> float:
    """Seconds until the whole training ends, if every fold takes all of its epochs.

    Args:
        report: Where it is.
        epoch_seconds: What each epoch that has ended took, dev part included. Without any,
            an epoch is its steps at the present rate.
        folds: How many trainings there are.
    """
    by_rate = report.seconds / report.step * report.steps
    # The first epoch is left out of the mean if others are there: it compiles the step.
    known = epoch_seconds[1:] or epoch_seconds
    whole_s = sum(known) / len(known) if known else by_rate
    epochs_left = report.epochs - report.epoch
    folds_left = 0 if report.fold is None else max(0, folds - report.fold - 1)
    rest_s = whole_s * (1 - report.step / report.steps)
    return rest_s + whole_s * (epochs_left + folds_left * report.epochs)
