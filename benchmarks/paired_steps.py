"""B2's finer figure: an epoch's steps on a stream's batches and on batches in memory, in turn.

A machine's speed swings by some per cent from one second to the next, which is more than what
is to be told. So an epoch is cut into blocks, each a fraction of a second: the stream's batches
are fetched and trained on, then the same batches where they lie in memory, or the other way
round, and the times of all blocks are added up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from benchmarks.experiment_loops import Experiment, Step
from benchmarks.measure import Series
from cnn.feed import BatchFeed
from embedcache import FeatureStream

BLOCK_STEPS = 12
"""About an eighth of a second."""


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
    # As in `measure`: a collection that looks through all of TensorFlow is in no block then.
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        experiment.renew()
        with BatchFeed(stream.epoch(0)) as feed:
            fetched = (Step(batch.values, batch.lengths, batch.labels) for batch in feed)
            seconds = _train_in_turn(experiment, fetched, held, is_fetched_first=number % 2 == 0)
            found.num_ahead += feed.is_ahead
        found.series.values.append(seconds[0] / seconds[1] - 1)
    gc.unfreeze()
    return found


def _train_in_turn(
    experiment: Experiment, fetched: Iterator[Step], held: Sequence[Step], *, is_fetched_first: bool
) -> tuple[float, float]:
    """Seconds of the steps with fetching, and of the steps alone."""
    seconds = [0.0, 0.0]
    for start in range(0, len(held), BLOCK_STEPS):
        block = held[start : start + BLOCK_STEPS]
        # A generator: each batch is fetched when its step is due.
        turns = [(0, islice(fetched, len(block))), (1, iter(block))]
        for kind, batches in turns if is_fetched_first else turns[::-1]:
            began = time.perf_counter()
            num_steps = len(experiment.train(batches))
            seconds[kind] += time.perf_counter() - began
            if num_steps != len(block):
                raise RuntimeError(f"{num_steps} steps instead of {len(block)}")
        is_fetched_first = not is_fetched_first
    return seconds[0], seconds[1]
