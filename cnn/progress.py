"""What a training tells while it goes on: each step, each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cnn.metrics import Scores


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a training is after a step.

    Attributes:
        fold: Number of the fold, from 0 on; None without cross-validation.
        epoch: Number of the epoch, from 1 on.
        epochs: How many there will be at most.
        step: Steps of the epoch that are done, from 1 on.
        steps: How many the epoch has.
        loss: Mean cross-entropy of the epoch's texts so far, with dropout.
        accuracy: Share of the epoch's texts so far whose label was right, with dropout.
        seconds: Since the epoch began, earlier sessions of a resumed training included.
    """

    fold: int | None
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave.

    Attributes:
        fold: Number of the fold, from 0 on; None without cross-validation.
        epoch: Number of the epoch, from 1 on.
        epochs: How many there will be at most.
        steps: Batches trained on.
        train_loss: Mean cross-entropy of the steps, with dropout, weighted by their size.
        train_accuracy: Share of the texts whose label was right, with dropout, each before
            its own step.
        dev: Scores on the dev part after the epoch.
        is_best: Whether no epoch before it was as good.
        seconds: Wall-clock time, dev part included.
        step_s: Seconds of it in training steps.
        wait_s: Seconds of it that the loop waited for training batches.
    """

    fold: int | None
    epoch: int
    epochs: int
    steps: int
    train_loss: float
    train_accuracy: float
    dev: Scores
    is_best: bool
    seconds: float
    step_s: float
    wait_s: float

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EpochReport:
        """The report of `to_record`'s values."""
        return cls(**{**record, "dev": Scores(**record["dev"])})


OnEpoch = Callable[[EpochReport], None]
OnStep = Callable[[StepReport], None]
