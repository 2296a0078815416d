"""Runs side by side: scores, what was chosen otherwise, and whether a difference is chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.metrics import decide
from cnn.predictions import Predictions
from cnn.run import Run
from cnn.spec import MULTILABEL

NUM_DRAWS = 10_000
_PAIRED_STREAM = 0x70616972
_TEST = "test"


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on the same n test texts.

    Attributes:
        texts: n.
        accuracies: Of both.
        difference: The first's accuracy less the second's.
        interval: 95 % interval of the difference, by percentiles of 10,000 paired bootstrap
            samples (Efron and Tibshirani 1993, chapter 13).
        only_first: Texts that only the first has right.
        only_second: Texts that only the second has right.
        p_value: Of McNemar's (1947) test, exact and two-sided: how probable so unequal a
            share of the texts that only one has right is, if both are as good.
    """

    texts: int
    accuracies: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    p_value: float

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        record = asdict(self)
        return record | {name: list(record[name]) for name in ("accuracies", "interval")}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        runs: Of each run its name, dataset, version, view, scores and seconds.
        differences: Each field of the configuration that is not the same in all, and
            ``dataset``, ``version``, ``view``, with its value in each run.
        paired: Of two runs on the same test texts; else None.
        note: Why it is None.
    """

    runs: Sequence[dict[str, Any]]
    differences: dict[str, list[Any]]
    paired: Paired | None
    note: str | None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "runs": list(self.runs),
            "differences": self.differences,
            "paired": None if self.paired is None else self.paired.to_record(),
            "note": self.note,
        }


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Compare two runs or more.

    Raises:
        TrainingError: if a run's file is damaged.
    """
    paired: Paired | None = None
    note: str | None = "no paired test: it is for two runs"
    if len(runs) == 2:
        paired, note = _pair(runs[0], runs[1])
    names = ("run", "dataset", "version", "view", "seed", "dev", "test", "seconds")
    return Comparison(
        runs=[{name: run.record[name] for name in names} for run in runs],
        differences=_differences(runs),
        paired=paired,
        note=note,
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    min(1, 2·P(X ≤ min(b, c))) with X binomial of b + c draws and ½ (McNemar 1947; exact
    as in Fagerland et al. 2013, "The McNemar test for binary matched-pairs data").

    Args:
        only_first: b, pairs of which only the first is right.
        only_second: c, pairs of which only the second is right.
    """
    draws, least = only_first + only_second, min(only_first, only_second)
    logs = [
        math.lgamma(draws + 1) - math.lgamma(k + 1) - math.lgamma(draws - k + 1)
        for k in range(least + 1)
    ]
    tail = math.fsum(math.exp(log - draws * math.log(2.0)) for log in logs)
    return min(1.0, 2.0 * tail)


def paired_interval(
    only_first: int, only_second: int, num_texts: int, *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a difference of accuracies, by paired bootstrap.

    Drawing n texts with replacement draws from three kinds: those that only the first, only
    the second, or both or neither have right. Their counts are multinomial.

    Args:
        only_first: Texts that only the first has right.
        only_second: Texts that only the second has right.
        num_texts: n, at least 1.
        seed: What the draws depend on.
    """
    generator = np.random.default_rng((_PAIRED_STREAM, seed))
    shares = np.array([only_first, only_second, num_texts - only_first - only_second])
    drawn = generator.multinomial(num_texts, shares / num_texts, NUM_DRAWS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / num_texts, [2.5, 97.5])
    return float(low), float(high)


def _pair(first: Run, second: Run) -> tuple[Paired | None, str | None]:
    """Both runs text by text; or why that cannot be."""
    if first.record[_TEST] is None or second.record[_TEST] is None:
        return None, "no paired test: one of them has no test texts"
    sorted_tests = [_sorted_tests(run) for run in (first, second)]
    keys = [found.keys for found in sorted_tests]
    if keys[0].shape != keys[1].shape or not np.array_equal(keys[0], keys[1]):
        return None, "no paired test: their test texts are not the same"
    truths = [
        _label_names(run, found) for run, found in zip((first, second), sorted_tests, strict=True)
    ]
    if truths[0] != truths[1]:
        return None, "no paired test: their test texts have other labels"
    right = [
        _is_right(run, found) for run, found in zip((first, second), sorted_tests, strict=True)
    ]
    only_first = int(np.count_nonzero(right[0] & ~right[1]))
    only_second = int(np.count_nonzero(right[1] & ~right[0]))
    num_texts = len(right[0])
    paired = Paired(
        texts=num_texts,
        accuracies=(float(right[0].mean()), float(right[1].mean())),
        difference=(only_first - only_second) / num_texts,
        interval=paired_interval(only_first, only_second, num_texts),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar_p_value(only_first, only_second),
    )
    return paired, None


def _sorted_tests(run: Run) -> Predictions:
    """The test texts in the order of their keys, the same text in corpus order."""
    tests = run.load_predictions().of_part(_TEST)
    order = np.lexsort((tests.rows, *tests.keys.T[::-1]))
    return tests.take(order)


def _label_names(run: Run, tests: Predictions) -> list[Any]:
    names = np.array(run.labels, dtype=object)
    if run.task == MULTILABEL:
        return [tuple(names[row > 0]) for row in tests.labels]
    return list(names[tests.labels])


def _is_right(run: Run, tests: Predictions) -> NDArray[np.bool_]:
    predicted = decide(tests.probabilities, run.task)
    same: NDArray[np.bool_] = (predicted == tests.labels).reshape(len(tests), -1)
    return np.asarray(same.all(axis=1))


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    fields = [
        {**{name: run.record[name] for name in ("dataset", "version", "view")}, **run.config}
        for run in runs
    ]
    names = list(dict.fromkeys(name for record in fields for name in record))
    values = {name: [record.get(name) for record in fields] for name in names}
    return {
        name: found for name, found in values.items() if any(each != found[0] for each in found)
    }
