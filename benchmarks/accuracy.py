"""Test accuracies of trainings that differ in one thing only, compared seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import cnn
from embedcache import FeatureStore


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Test accuracies of the seeds 0, 1, …, as fractions.

    Attributes:
        name: What was trained on.
        values: One a seed.
    """

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Their standard deviation, of a sample; NaN of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


@dataclass(frozen=True, slots=True)
class Difference:
    """How two series of accuracies differ, each seed compared with the same seed.

    Attributes:
        mean: Of the differences.
        error: The standard error of this mean: their standard deviation ÷ √n; NaN of one.
        noise: What seeds alone do: twice the standard error, or the standard deviation of the
            accuracies of the base over its seeds, whichever is larger; NaN of one seed.
    """

    mean: float
    error: float
    noise: float


def compare_seeds(one: Accuracies, base: Accuracies) -> Difference:
    """One minus base.

    Raises:
        ValueError: if they are not of the same number of seeds.
    """
    found = [mine - theirs for mine, theirs in zip(one.values, base.values, strict=True)]
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Difference(statistics.fmean(found), error, max(2 * error, base.deviation))


def train_seeds(
    store: FeatureStore,
    dataset: str,
    view: str,
    *,
    name: str,
    num_seeds: int,
    epochs: int,
) -> Accuracies:
    """Train preset ``kim`` with each seed on one view of a dataset that has a test split.

    Args:
        store: The store.
        dataset: Its name.
        view: The view's fingerprint.
        name: Of the result.
        num_seeds: How many.
        epochs: Of each at most; the one with the best dev accuracy is kept.
    """
    configs = [cnn.TrainConfig(preset="kim", seed=seed, epochs=epochs) for seed in range(num_seeds)]
    runs: Sequence[cnn.Run] = [cnn.train(store, dataset, config, view=view) for config in configs]
    return Accuracies(name, tuple(run.record["test"]["accuracy"] for run in runs))
