"""B2's finer figure: an epoch's steps on a stream's batches and on batches in memory, in turn.

A machine's speed swings by some per cent from one second to the next, which is more than what
is to be told. So each batch is trained on twice, as it is fetched and as it lies in memory, the
one or the other first, and the times of all steps are added up. In blocks of twelve steps the
mean of 15 rounds had a standard error of 0.6 to 0.75 %, in single ones of 0.2 to 0.4 %.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.experiment_loops import Experiment, Step
from benchmarks.measure import Series
from cnn.feed import BatchFeed
from embedcache import FeatureStream


@dataclass(slots=True)
class PairedOverheads:
    """What fetching batches adds to an epoch's steps.

    Attributes:
        series: A round each: seconds with fetching ÷ seconds of the steps alone - 1.
        num_ahead: Rounds in which a thread began to fetch, so that it ran beside both.
    """

    series: Series = field(default_factory=lambda: Series("input overhead", "ours"))
    num_ahead: int = 0


def measure_paired(
    experiment: Experiment, stream: FeatureStream, held: Sequence[Step], *, rounds: int
) -> PairedOverheads:
    """Train for epochs, each batch twice: as `cnn.train` fetches it, and as it lies in memory.

    Args:
        experiment: What is trained.
        stream: What batches are fetched from.
        held: The batches of its epoch 0.
        rounds: Epochs.
    """
    found = PairedOverheads()
    # As in `measure`: a collection that looks through all of TensorFlow is in no step then.
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        experiment.renew()
        with BatchFeed(stream.epoch(0)) as feed:
            fetched = (Step(batch.values, batch.lengths, batch.labels) for batch in feed)
            seconds = _train_in_turn(experiment, fetched, held, first=number % 2)
            found.num_ahead += feed.is_ahead
        found.series.values.append(seconds[0] / seconds[1] - 1)
    gc.unfreeze()
    return found


def _train_in_turn(
    experiment: Experiment, fetched: Iterator[Step], held: Sequence[Step], *, first: int
) -> list[float]:
    """Seconds of the steps with fetching, and of the steps alone; ``first`` of them 0 or 1."""
    seconds = [0.0, 0.0]
    for step in held:
        for kind in (first, 1 - first):
            began = time.perf_counter()
            experiment.train_once(next(fetched) if kind == 0 else step)
            seconds[kind] += time.perf_counter() - began
        first = 1 - first
    return seconds
